"""Data parallelism: several processes, the ranks, run one program, and share the work of the engine and the judges.

Every rank takes the same decisions from the same numbers. What costs is divided (`spread`, `sum_gradients`); what must
happen once happens on the first rank (`first`, and all writing in `files.durable`). Ranks exchange sums, never means.
In a process that has not joined others every function is the identity.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # PyTorch is loaded by who joins
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")
R = TypeVar("R")

WAIT = timedelta(hours=6)  # for the slowest rank; one that dies is noticed at once
_ALONE: ContextVar[bool] = ContextVar("choreo.parallel.alone", default=False)  # within `first` and `spread`


@contextmanager
def joined() -> Iterator[None]:
    """Joins the ranks that torchrun started, by the environment that it sets, until the end. Alone it does nothing."""
    if started() == 1 or active():
        yield
        return
    import torch
    import torch.distributed as dist

    on_cards = torch.cuda.is_available()
    if on_cards:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_cards else "gloo", timeout=WAIT)
    try:
        yield
    finally:
        dist.destroy_process_group()


def started() -> int:
    """How many processes torchrun started together. Of the environment alone, so that it holds within `first` too."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def active() -> bool:
    """Whether this process is a rank of several."""
    dist: Any = sys.modules.get("torch.distributed")  # who has joined has imported it
    return dist is not None and dist.is_available() and dist.is_initialized() and not _ALONE.get()


def rank() -> int:
    """This process's rank, from 0."""
    return _dist().get_rank() if active() else 0


def ranks() -> int:
    """How many ranks there are."""
    return _dist().get_world_size() if active() else 1


def ranks_here() -> int:
    """How many of them are on this machine, as torchrun says it."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if active() else 1


def speaks() -> bool:
    """Whether this process is the one that speaks to people: the first rank, or the only process. Of the environment
    alone, so that it holds before and after the ranks are joined."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def shard(items: Sequence[T]) -> list[T]:
    """This rank's share of the work: neighbours stay together, for they may share a beginning."""
    here, many = rank(), ranks()
    return list(items[len(items) * here // many : len(items) * (here + 1) // many])


def gather(items: Sequence[T]) -> list[T]:
    """Undoes `shard`: the items of all ranks, in their first order, on every rank."""
    return [item for part in _exchanged(list(items)) for item in part]


def spread(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R]:
    """What `work` gives for all items, one for each, in their order, on every rank; each rank does a share. What it
    raises on one rank is raised on all."""
    if not active():
        return list(work(items))
    found, failed, own = list[R](), None, shard(items)
    try:
        with _alone():  # what is a share already is not divided again
            found = list(work(own)) if own else []
    except Exception as error:
        failed = error
    parts = _exchanged((found, _sendable(failed)))
    if failed is not None:
        raise failed
    for _, raised in parts:
        if raised is not None:
            raise raised
    return [item for part, _ in parts for item in part]


def first(work: Callable[[], R]) -> R:
    """What `work` gives, or raises. The first rank does it, alone, and the others wait for it."""
    if not active():
        return work()
    wait()  # what others have decided from what is on the disk, they have decided before this changes it
    told: list[Any] = [None, None]
    error: Exception | None = None
    if rank() == 0:
        try:
            with _alone():
                told[0] = work()
        except Exception as raised:
            error = raised
        told[1] = _sendable(error)
    _dist().broadcast_object_list(told)
    if error is not None:
        raise error
    value, failed = told
    if failed is not None:
        raise failed
    result: R = value
    return result


@contextmanager
def _alone() -> Iterator[None]:
    """Within it this process is as if it had joined nobody."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def _sendable(error: Exception | None) -> Exception | None:
    """The error, or its words where it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def wait() -> None:
    """Returns when all ranks have come here."""
    if active():
        _dist().barrier()


def agreed(wanted: bool) -> bool:
    """Whether any rank wants it, on all ranks."""
    return any(_exchanged(wanted))


def most(number: int) -> int:
    """The largest of the ranks' numbers, on all ranks."""
    return max(_exchanged(number))


def mesh(kind: str) -> DeviceMesh:
    """All ranks in a row, on their devices of that kind ("cpu", "cuda"): what PyTorch shards tensors over."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(kind, (ranks(),))


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Adds up `grad` over the ranks, in place, in one exchange. A missing gradient counts as zero."""
    import torch

    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if active():
        flat = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
        flat = flat if flat.device.type in ("cpu", "cuda") else flat.cpu()  # no backend sums on other devices
        _dist().all_reduce(flat)
        for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))


def sum_figures(figures: Mapping[str, float]) -> dict[str, float]:
    """Adds up named figures over the ranks. A rank may lack some, such as a rank without samples."""
    total: dict[str, float] = {}
    for part in _exchanged(dict(figures)):
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    return total


def _exchanged(mine: T) -> list[T]:
    """What every rank has, by rank."""
    if not active():
        return [mine]
    parts: list[Any] = [None] * ranks()
    _dist().all_gather_object(parts, mine)
    return parts


def _dist() -> Any:
    import torch.distributed as dist

    return dist
