"""What an agent learns, and how it is laid over the base: a low-rank adapter, or every weight.

What is learnt is float32 whatever the base is: at the rates of fine-tuning a bfloat16 weight would round most of its
updates away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = Mapping[str, Tensor]


class LowRank:
    """A LoRA adapter (arXiv 2106.09685) on the linear layers `targets`. Starts equal to the base: B = 0."""

    def __init__(self, base: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.targets = tuple(targets)
        generator = torch.Generator().manual_seed(seed % 2**63)
        self.parameters: dict[str, nn.Parameter] = {}
        for name in self.targets:
            weight = base.get_parameter(f"{name}.weight")
            out_features, in_features = weight.shape
            down = torch.empty(rank, in_features)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            self.parameters[f"{name}.lora_A"] = nn.Parameter(down.to(weight.device))
            up = torch.zeros(out_features, rank, device=weight.device)
            self.parameters[f"{name}.lora_B"] = nn.Parameter(up)

    def merged(self) -> Weights:
        """W + (α/r)·BA of every adapted layer, differentiable in A and B."""
        merged = {}
        for name in self.targets:
            down, up = self.parameters[f"{name}.lora_A"], self.parameters[f"{name}.lora_B"]
            weight = self.base.get_parameter(f"{name}.weight")
            whole = torch.addmm(weight.to(up.dtype), up, down, alpha=self.alpha / self.rank)
            merged[f"{name}.weight"] = whole.to(weight.dtype)
        return merged

    def weights(self) -> Weights:
        """What is laid over the base: whole weights over a float32 base, A and B beside those of any other.

        Over bfloat16 a sum would round small adapters away, and for a large base it would be a copy of it.
        """
        if not self.targets or not isinstance(self.base.get_submodule(self.targets[0]), Adaptable):
            return self.merged()
        scale = self.alpha / self.rank
        return {
            name: value * scale if name.endswith("lora_B") else value for name, value in self.parameters.items()
        }


class Adaptable(nn.Linear):
    """A linear layer with room for A and B beside its weight. Both are empty but while an agent is laid over."""

    lora_A: Tensor
    lora_B: Tensor

    def __init__(self, linear: nn.Linear):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        for name in ("lora_A", "lora_B"):
            self.register_buffer(name, torch.empty(0, device=linear.weight.device), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.lora_A.numel():
            return y
        return y + F.linear(F.linear(x, self.lora_A.to(x.dtype)), self.lora_B.to(x.dtype))


def make_adaptable(model: nn.Module, targets: Sequence[str]) -> None:
    """Puts an `Adaptable` in the place of every layer in `targets`."""
    for name in targets:
        above, _, own = name.rpartition(".")
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(model.get_submodule(above), own, Adaptable(linear))


class Full:
    """Every weight, copied. Starts equal to the base."""

    def __init__(self, base: nn.Module):
        self.dtypes = {name: value.dtype for name, value in base.named_parameters()}
        self.parameters = {
            name: nn.Parameter(value.detach().to(torch.float32, copy=True)) for name, value in base.named_parameters()
        }

    def weights(self) -> Weights:
        return {name: value.to(self.dtypes[name]) for name, value in self.parameters.items()}


def linear_layers(model: Any, endings: Sequence[str] = ()) -> list[str]:
    """The names of the linear layers but the output layer; of those, where any are given, whose last part is in
    `endings`. An ending may belong to another model. Raises ValueError where that leaves none."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not names:
        raise ValueError(f'{type(model).__name__} has no linear layers to adapt; train = "full" needs none')
    chosen = [name for name in names if not endings or name.rpartition(".")[2] in endings]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise ValueError(f"{type(model).__name__} has no linear layer called {', '.join(endings)}; it has {known}")
    return chosen
