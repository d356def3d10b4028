"""Gradient checkpointing: only the input of every layer is kept, and the layer runs again in the backward pass.

The checkpointing of transformers would run a layer again when the policy's weights are no longer laid over the base, so
with the base's weights. Here a layer runs again with the very tensors of its first run.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from choreo.engine.decoder import layer_list


def recompute_layers(model: Any, lock: AbstractContextManager[Any] | None) -> None:
    """Makes each of the model's layers recompute itself. lock: held while weights are laid over a layer; None where a
    model learns its own weights, and nothing is laid over it.

    Raises Unsupported where the model does not keep its layers in one list.
    """
    for layer in layer_list(model, "gradient checkpointing"):
        _wrap(layer, lock)


def _wrap(layer: nn.Module, lock: AbstractContextManager[Any] | None) -> None:
    plain = layer.forward

    def forward(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return plain(*inputs, **options)
        if lock is None:
            return checkpoint(plain, *inputs, use_reentrant=False, preserve_rng_state=False, **options)
        overlay = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}

        def again(*inputs: Any) -> Any:
            with lock:
                layer.forward = plain  # type: ignore[method-assign]
                try:
                    return functional_call(layer, overlay, inputs, options)
                finally:
                    layer.forward = forward  # type: ignore[method-assign]

        return checkpoint(again, *inputs, use_reentrant=False, preserve_rng_state=False)

    layer.forward = forward  # type: ignore[method-assign]
