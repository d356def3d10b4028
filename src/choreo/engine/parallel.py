"""Data parallelism under torchrun. Ranks exchange sums, never means. Without it all functions are the identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def active() -> bool:
    """Whether this process is a rank of several (torchrun)."""
    return dist.is_available() and dist.is_initialized()


def shard(items: Sequence[T]) -> list[T]:
    """This rank's share of the work."""
    return list(items[dist.get_rank() :: dist.get_world_size()]) if active() else list(items)


def gather(items: Sequence[T]) -> list[T]:
    """Undoes `shard`: the items of all ranks, in their first order, on every rank."""
    if not active():
        return list(items)
    parts: list[list[T]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, list(items))
    whole: list[T] = []
    for i in range(max(len(part) for part in parts)):
        whole += [part[i] for part in parts if i < len(part)]
    return whole


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Adds up `grad` over the ranks, in place, in one exchange. A missing gradient counts as zero."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if active():
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        dist.all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))


def sum_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Adds up named figures over the ranks. A rank may lack some, such as a rank without samples."""
    total: dict[str, float] = {}
    for part in gather([dict(figures)]):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total
