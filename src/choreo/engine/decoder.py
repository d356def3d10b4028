"""A causal language model in the two parts that the engine asks for, and the list of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from choreo.engine.head import Head, shaping
from choreo.errors import Unsupported


class Decoder(nn.Module):
    """A causal language model in two parts: hidden states, then the output layer. Logits are computed only where they
    are needed, which saves memory."""

    def __init__(self, model: Any):
        """Raises Unsupported where the model has no layer that makes its logits."""
        super().__init__()
        layer = model.get_output_embeddings()
        if not (hasattr(layer, "weight") and hasattr(layer, "bias")):
            raise Unsupported(f"{type(model).__name__} has no output layer")
        self.model = model
        self.scale, self.cap = shaping(model.config.get_text_config())

    def forward(self, inputs: Mapping[str, Any], where: Tensor | None = None) -> tuple[Tensor, Head]:
        """Hidden states [batch·length, d] (or their rows `where` [n]), and the output layer now."""
        return self.hidden(inputs, where), self.head()

    def hidden(self, inputs: Mapping[str, Any], where: Tensor | None) -> Tensor:
        """Hidden states [batch·length, d], or their rows `where` [n]."""
        hidden: Tensor = self.model.base_model(**inputs).last_hidden_state.flatten(0, 1)
        return hidden if where is None else hidden[where]

    def head(self) -> Head:
        """The output layer, with the weights that it has now."""
        layer = self.model.get_output_embeddings()
        return Head(layer.weight, layer.bias, self.scale, self.cap)


def layer_list(model: Any, what: str) -> nn.ModuleList:
    """The model's layers, in order. what: the feature that needs them, for the error message.

    Raises Unsupported where the model does not keep its layers in one list.
    """
    count = model.config.get_text_config().num_hidden_layers
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise Unsupported(f"{type(model).__name__} keeps its layers in no list: {what} is not supported")
