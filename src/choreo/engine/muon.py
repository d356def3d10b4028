"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon): momentum whose update is made orthogonal.

PyTorch's own Muon works in bfloat16 and on one matrix at a time: on a CPU without bfloat16 arithmetic its step takes as
long as the forward and backward passes together. Here matrices of one shape are computed together, in their own dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# The quintic of the post: steepest at zero, so that five iterations bring every singular value near one.
A, B, C, ITERATIONS = 3.4445, -4.7750, 2.0315, 5


def orthogonal(matrices: Tensor) -> Tensor:
    """[n, rows, columns]: every matrix with its singular values brought to about 1, by Newton–Schulz iterations."""
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / torch.linalg.matrix_norm(wide, keepdim=True).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x if wide is matrices else x.mT


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum, for matrices only. The scale of a step is lr · √max(1, rows / columns)."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of every parameter that has a gradient. closure: is not called."""
        for group in self.param_groups:
            for same in _by_shape(group["params"]):
                updates = torch.stack([self._momentum(parameter, group["momentum"]) for parameter in same])
                rows, columns = same[0].shape
                scale = -group["lr"] * math.sqrt(max(1.0, rows / columns))
                for parameter, update in zip(same, orthogonal(updates), strict=True):
                    parameter.add_(update, alpha=scale)
        return None

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        assert parameter.grad is not None
        state = self.state[parameter]
        mean = state.setdefault("momentum", torch.zeros_like(parameter))
        mean.lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(mean, momentum)


def _by_shape(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    found: dict[torch.Size, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            found.setdefault(parameter.shape, []).append(parameter)
    return list(found.values())
