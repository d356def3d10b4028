"""The first step of a decode: every distinct context is read once, then each row has its own copy of the cache.

What all contexts begin with, such as a system prompt, is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from choreo.engine.agent import BESIDE, Team
from choreo.engine.cache import Slots, as_cache
from choreo.engine.head import Head
from choreo.engine.policies import Weights
from choreo.engine.requests import Ids
from choreo.engine.step import Step, step_of

COMMON = 16  # tokens; what is shorter is not worth a pass of its own


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
    common = _common(team, contexts)
    lengths = torch.tensor([len(context) for context in contexts], device=device)
    width = int(lengths.max())
    own = width - common
    padded = torch.tensor([[*context, *[pad_id] * (width - len(context))][common:] for context in contexts])
    last = torch.arange(len(contexts), device=device) * own + lengths - common - 1

    capacity = width + new
    inputs = {"input_ids": padded.to(device), "use_cache": True}
    cache = [Slots(common or capacity) for _ in range(team.layers)]
    if common:
        beginning = torch.tensor([contexts[0][:common]], device=device)
        team.run(weights, {"input_ids": beginning, "past_key_values": as_cache(cache), "use_cache": True})
        everyone = torch.zeros(len(contexts), dtype=torch.int64, device=device)
        cache = [layer.take(everyone, capacity) for layer in cache]
        inputs["position_ids"] = torch.arange(common, width, device=device).expand(len(contexts), -1)
    hidden, head = team.run(weights, inputs | {"past_key_values": as_cache(cache)}, last)
    step = step_of(team, weights)
    if len(contexts) < len(rows):
        copies = torch.tensor([place[context] for context in rows], device=device)
        cache = [layer.take(copies, capacity) for layer in cache]
        hidden, lengths = hidden[copies], lengths[copies]
    return Prefilled(hidden, head, step, cache, lengths, width, capacity)


def _common(team: Team, contexts: Sequence[Ids]) -> int:
    """How many tokens all contexts begin with, where it pays to read them once; every context has one more at least.

    0 for models with sliding windows, which count slots, and in lower precision, which rounds by what is read together.
    0 for narrow models: it would save them little, and would change the last digits of their numbers.
    """
    narrow = team.decoder.model.config.get_text_config().hidden_size < BESIDE
    if len(contexts) == 1 or narrow or not team.full_attention or team.dtype != torch.float32:
        return 0
    first, last = min(contexts), max(contexts)  # in sorted order, so all contexts begin with what these two share
    most = min(map(len, contexts)) - 1
    shared = next((i for i, (a, b) in enumerate(zip(first[:most], last, strict=False)) if a != b), most)
    return shared if shared >= COMMON else 0


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
