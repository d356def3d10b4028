"""The trained weights of an agent, and how they are laid over the base: a low-rank adapter, or every weight.

Trained weights are float32 whatever the base is: at the learning rates of fine-tuning most updates of a bfloat16 weight
would be lost to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from functools import cached_property
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from choreo.engine.layers import Layer, stacks_of

Weights = Mapping[str, Tensor]


class LowRank:
    """A LoRA adapter (arXiv 2106.09685) on the layers `targets`. Starts equal to the base: B = 0.

    A linear layer has A [rank, in] and B [out, rank]; a stack of experts has one of each for every expert.
    """

    def __init__(self, base: nn.Module, targets: Sequence[Layer], rank: int, alpha: float, seed: int):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.targets = tuple(targets)
        generator = torch.Generator().manual_seed(seed % 2**63)
        self.parameters: dict[str, nn.Parameter] = {}
        for layer in self.targets:
            device = base.get_parameter(layer.weight).device
            count = () if layer.experts is None else (layer.experts,)
            down = torch.empty(*count, rank, layer.inputs)
            for one in down.unbind() if count else (down,):
                nn.init.kaiming_uniform_(one, a=math.sqrt(5), generator=generator)
            self.parameters[f"{layer.name}.lora_A"] = nn.Parameter(down.to(device))
            up = torch.zeros(*count, layer.outputs, rank, device=device)
            self.parameters[f"{layer.name}.lora_B"] = nn.Parameter(up)

    def copied(self, disturbed: float = 0.0, seed: int = 0) -> LowRank:
        """An adapter of the same weights, which does not learn. disturbed: the standard deviation of noise on B."""
        other, generator = copy(self), torch.Generator().manual_seed(seed)
        other.parameters = {}
        for name, value in self.parameters.items():
            own = value.detach().clone()
            if disturbed and name.endswith("lora_B"):
                own += disturbed * torch.randn(own.shape, generator=generator).to(own)
            other.parameters[name] = nn.Parameter(own, requires_grad=False)
        return other

    @property
    def learnt(self) -> bool:
        """Whether it differs from no adapter: B is not 0 throughout."""
        return any(bool(self.factors(layer)[1].any()) for layer in self.targets)

    def factors(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """A and B of a layer."""
        return self.parameters[f"{layer.name}.lora_A"], self.parameters[f"{layer.name}.lora_B"]

    def merged(self) -> Weights:
        """W + (α/r)·BA of every adapted layer, differentiable in A and B."""
        merged = {}
        for layer in self.targets:
            down, up = self.factors(layer)
            weight, scale = self.base.get_parameter(layer.weight), self.alpha / self.rank
            if layer.experts is None:
                whole = torch.addmm(weight.to(up.dtype), up, down, alpha=scale)
            else:
                left, right = (down.mT, up.mT) if layer.transposed else (up, down)
                whole = torch.baddbmm(weight.to(up.dtype), left, right, alpha=scale)
            merged[layer.weight] = whole.to(weight.dtype)
        return merged

    def weights(self) -> Weights:
        """What is laid over the base: A and B where its layers take them (`make_adaptable`), else merged weights."""
        if not any(_has_buffers(self.base, layer) for layer in self.targets[:1]):
            return self.merged()
        scale = self.alpha / self.rank
        beside: dict[str, Tensor] = {}
        for layer in self.targets:
            down, up = self.factors(layer)
            beside |= {layer.slot("lora_A"): down, layer.slot("lora_B"): up * scale}
        return beside


class Adaptable(nn.Linear):
    """A linear layer with buffers for A and B beside its weight, which are empty while no agent is laid over it."""

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


def make_adaptable(model: nn.Module, targets: Sequence[Layer]) -> None:
    """Adds buffers for A and B beside the weight of every layer in `targets`."""
    for layer in targets:
        module = model.get_submodule(layer.module)
        if layer.experts is None:
            above, _, own = layer.name.rpartition(".")
            assert isinstance(module, nn.Linear)
            setattr(model.get_submodule(above), own, Adaptable(module))
            continue
        for factor in ("lora_A", "lora_B"):
            empty = torch.empty(0, device=model.get_parameter(layer.weight).device)
            module.register_buffer(layer.slot(factor).rpartition(".")[2], empty, persistent=False)
        module.forward = MethodType(_through_experts, module)  # type: ignore[method-assign]


def _has_buffers(model: nn.Module, layer: Layer) -> bool:
    """Whether the layer has buffers for A and B beside its weight."""
    return hasattr(model.get_submodule(layer.module), layer.slot("lora_A").rpartition(".")[2])


def _through_experts(experts: Any, x: Tensor, index: Tensor, shares: Tensor) -> Tensor:
    """The forward of transformers' experts, with A and B beside the weights where an agent is laid over the base.

    x: [tokens, d]. index, shares: [tokens, k], the experts that read a token, and the weight of each expert's output.
    The base is run by this function too, so that an untrained agent equals it to the bit.
    """
    *_, into, out = stacks_of(experts)
    chosen, tokens = index.flatten(), torch.arange(len(x), device=x.device).repeat_interleave(index.shape[-1])
    order = chosen.argsort(stable=True)
    counts = torch.bincount(chosen, minlength=len(experts.get_parameter(out))).tolist()
    outputs = []
    for expert, rows in enumerate(order.split(counts)):
        if len(rows):
            hidden = _expert(experts, into, expert, x[tokens[rows]])
            hidden = experts._apply_gate(hidden) if experts.has_gate else experts.act_fn(hidden)
            hidden = _expert(experts, out, expert, hidden)
            outputs.append(experts.post_expert_norm(hidden) if experts.has_post_expert_norm else hidden)
    whole = torch.cat(outputs)[order.argsort()] * shares.flatten()[:, None]
    return whole.unflatten(0, index.shape).sum(1).to(x.dtype)


def _expert(experts: Any, stack: str, expert: int, x: Tensor) -> Tensor:
    """The rows `x` through one expert's matrix, its bias, and its adapter where there is one."""
    weight = getattr(experts, stack)[expert]
    bias = getattr(experts, f"{stack}_bias")[expert] if experts.has_bias else None
    y = F.linear(x, weight.mT if experts.is_transposed else weight, bias)
    down, up = (getattr(experts, f"{stack}_{factor}", None) for factor in ("lora_A", "lora_B"))
    if down is None or up is None or not down.numel():
        return y
    return y + F.linear(F.linear(x, down[expert].to(x.dtype)), up[expert].to(x.dtype))


class Full:
    """Every weight, copied at the first use: a team that is only checked has no copies. Starts equal to the base."""

    def __init__(self, base: nn.Module):
        self.base = base
        self.dtypes = {name: value.dtype for name, value in base.named_parameters()}

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """float32, by the base's names."""
        with torch.inference_mode(False):  # whoever samples first asks for them within it, and nothing would learn then
            return {
                name: nn.Parameter(value.detach().to(torch.float32, copy=True))
                for name, value in self.base.named_parameters()
            }

    def weights(self) -> Weights:
        """The weights to lay over the base, in the base's dtypes."""
        return {name: value.to(self.dtypes[name]) for name, value in self.parameters.items()}
