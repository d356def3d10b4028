"""The first step of a decode: every distinct context is read once, then each row has its own copy of the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.cache import Slots, as_cache
from choreo.engine.head import Head
from choreo.engine.policies import Weights
from choreo.engine.requests import Ids
from choreo.engine.step import Step, step_of


class Prefilled(NamedTuple):
    """Rows whose contexts have been read.

    hidden: float [rows, d], the state after each context. cache: one entry for each layer, with room for `capacity`
    slots a row. lengths: int64 [rows], of the contexts. width: of the longest; new tokens go into the slots behind it.
    """

    hidden: Tensor
    head: Head
    step: Step
    cache: list[Slots]
    lengths: Tensor
    width: int
    capacity: int


def prefill(team: Team, weights: Weights, rows: Sequence[Ids], new: int, pad_id: int) -> Prefilled:
    """Reads the contexts `rows`, none of them empty. new: the most tokens that may come behind them."""
    device = team.device
    contexts = list(dict.fromkeys(rows))
    place = {context: row for row, context in enumerate(contexts)}
    lengths = torch.tensor([len(context) for context in contexts], device=device)
    width = int(lengths.max())
    padded = torch.tensor([[*context, *[pad_id] * (width - len(context))] for context in contexts], device=device)
    last = torch.arange(len(contexts), device=device) * width + lengths - 1

    capacity = width + new
    cache = [Slots(capacity) for _ in range(team.layers)]
    inputs = {"input_ids": padded, "past_key_values": as_cache(cache), "use_cache": True}
    hidden, head = team.run(weights, inputs, last)
    step = step_of(team, weights)
    if len(contexts) < len(rows):
        copies = torch.tensor([place[context] for context in rows], device=device)
        cache = [layer.take(copies, capacity) for layer in cache]
        hidden, lengths = hidden[copies], lengths[copies]
    return Prefilled(hidden, head, step, cache, lengths, width, capacity)


def gap_mask(lengths: Tensor, width: int, new: int) -> Tensor | None:
    """float32 [rows, 1, 1, width + new], additive: hides the slots between a context's end and the first new token."""
    if bool((lengths == width).all()):
        return None
    slot = torch.arange(width + new, device=lengths.device)
    hidden = (slot >= lengths[:, None]) & (slot < width)
    return torch.zeros(hidden.shape, device=lengths.device).masked_fill_(hidden, float("-inf"))[:, None, None]


def block_mask(lengths: Tensor, width: int, new: int, fed: int) -> Tensor | None:
    """`gap_mask` for a feed of the last `fed` of the `new` tokens, [rows, 1, fed, width + new]: each sees none of those
    behind it."""
    gap = gap_mask(lengths, width, new)
    if fed == 1:
        return gap
    slot = torch.arange(width + new, device=lengths.device)
    later = torch.zeros(fed, width + new, device=lengths.device)
    later.masked_fill_(slot > slot[width + new - fed :, None], float("-inf"))
    return later[None, None].expand(len(lengths), -1, -1, -1) if gap is None else gap + later
