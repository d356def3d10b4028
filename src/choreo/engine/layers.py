"""Which weights of a model take an adapter: those of its linear layers, and those of its experts.

transformers keeps the experts of one layer as stacks, one parameter for all of them (`use_experts_implementation`).
Each expert of a stack gets an adapter of its own. Routers get none: an adapted router would send tokens to other
experts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from choreo.errors import Unsupported


@dataclass(frozen=True)
class Layer:
    """A weight that takes an adapter.

    name: of the linear layer, or of the stack. weight: the parameter's own name.
    experts: how many a stack has; None is a linear layer. used: how many of them read one token.
    transposed: a stack is [experts, inputs, outputs] instead of [experts, outputs, inputs].
    """

    name: str
    weight: str
    inputs: int
    outputs: int
    experts: int | None = None
    used: int = 1
    transposed: bool = False

    @property
    def size(self) -> int:
        """The number of weights, of all experts together."""
        return self.inputs * self.outputs * (self.experts or 1)

    @property
    def module(self) -> str:
        """The module that holds the parameter."""
        return self.weight.rpartition(".")[0]

    def slot(self, factor: str) -> str:
        """The name of the buffer of `module` that holds a factor (lora_A or lora_B) beside the weight."""
        return f"{self.name}.{factor}" if self.experts is None else f"{self.name}_{factor}"

    def parameters(self, rank: int) -> int:
        """How many parameters an adapter of that rank has."""
        return rank * (self.inputs + self.outputs) * (self.experts or 1)


def chosen(model: Any, endings: Sequence[str] = ()) -> list[Layer]:
    """The layers that take an adapter and whose names end in one of `endings`; without endings all of them.

    An ending that this model lacks is ignored. Raises Unsupported where no layer is left.
    """
    layers = layers_of(model)
    if not layers:
        raise Unsupported(f'{type(model).__name__} has no linear layers to adapt; train = "full" needs none')
    found = [layer for layer in layers if not endings or _ending(layer.name) in endings]
    if not found:
        known = ", ".join(sorted({_ending(layer.name) for layer in layers}))
        raise Unsupported(f"{type(model).__name__} has no linear layer called {', '.join(endings)}; it has {known}")
    return found


def layers_of(model: Any) -> list[Layer]:
    """Every layer that takes an adapter, in the model's order."""
    return list(_layers(model))


def _layers(model: Any) -> Iterator[Layer]:
    head, used = model.get_output_embeddings(), _used(model.config.get_text_config())
    routers: set[nn.Module] = set()
    for name, module in model.named_modules():
        for child in module.children():
            if stacks := stacks_of(child):
                count = child.get_parameter(stacks[0]).shape[0]
                routers |= {m for m in module.children() if isinstance(m, nn.Linear) and m.out_features == count}
        if isinstance(module, nn.Linear) and module is not head and module not in routers:
            outputs, inputs = module.weight.shape
            yield Layer(name, f"{name}.weight", inputs, outputs)
        for stack in stacks_of(module):
            experts, *sides = module.get_parameter(stack).shape
            inputs, outputs = sides if module.is_transposed else sides[::-1]
            whole = f"{name}.{stack}"
            yield Layer(whole, whole, inputs, outputs, experts, min(used, experts), bool(module.is_transposed))


def stacks_of(module: nn.Module) -> list[str]:
    """The names of the stacks of experts' weights in `module`; none where it has no stacks of a known layout."""
    if not all(hasattr(module, name) for name in ("is_transposed", "has_gate", "has_bias", "has_post_expert_norm")):
        return []
    own = dict(module.named_parameters(recurse=False))
    return [name for name in ("gate_up_proj", "up_proj", "down_proj") if name in own and own[name].dim() == 3]


def _used(config: Any) -> int:
    """How many experts read one token."""
    names = ("num_experts_per_tok", "moe_topk", "top_k_experts")
    return next((n for name in names if isinstance(n := getattr(config, name, None), int)), 1)


@dataclass(frozen=True)
class Reach:
    """How many of a model's weights adapters reach, embeddings, output layer, norms and biases not counted.

    beyond: the last parts of the names of weights that no adapter reaches.
    """

    reached: int
    whole: int
    beyond: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """For JSON. `said` is a sentence that has it all."""
        share = self.reached / self.whole
        percent = min(round(100 * share, 1), 100.0 if share == 1 else 99.9)
        sentence = f"adapters reach {percent} % of the weights in its layers, and not {', '.join(self.beyond)}"
        return {
            "reached": self.reached,
            "of": self.whole,
            "share": share,
            "beyond": list(self.beyond),
            "said": sentence,
        }


def reach(model: Any, layers: Sequence[Layer]) -> Reach:
    """How many of the model's weights adapters on `layers` reach."""
    head = model.get_output_embeddings()
    outside = {id(head.weight)} if head is not None else set()
    outside |= {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    weights = {
        name: p.numel()
        for name, p in model.named_parameters()
        if p.dim() > 1 and id(p) not in outside and not name.endswith("bias")
    }
    beyond = weights.keys() - {layer.weight for layer in layers}
    named = {_ending(name.removesuffix(".weight")) for name in beyond}
    return Reach(
        sum(weights.values()) - sum(weights[name] for name in beyond), sum(weights.values()), tuple(sorted(named))
    )


def _ending(name: str) -> str:
    return name.rpartition(".")[2]
