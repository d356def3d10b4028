"""The decode loop of constrained turns.

It is the loop of sample.py, but a row takes forced ids without a draw, and draws the others among those that its
constraint allows. Where every row has several ids to read that are known, one step reads them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from choreo.engine.agent import Team
from choreo.engine.constraint import ENDS, FORCED, Constraint, Given, mask_table
from choreo.engine.draw import next_tokens, wide
from choreo.engine.noise import uniforms
from choreo.engine.policies import Weights
from choreo.engine.prefill import block_mask, prefill
from choreo.engine.requests import Completion, Request
from choreo.engine.step import Feed


@dataclass(eq=False, slots=True)
class _Row:
    """One turn as far as it has come. unread: its last ids, which the model has not been fed yet."""

    noise: np.ndarray
    row: int = ENDS
    state: Any = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    choices: list[int] = field(default_factory=list)
    unread: list[int] = field(default_factory=list)

    def choose(self, token: int, logprob: float) -> None:
        self.ids.append(token)
        self.logprobs.append(logprob)
        self.choices.append(self.row)
        self.unread.append(token)

    def take(self, given: Given) -> None:
        self.ids += given.ids
        self.logprobs += [0.0] * len(given.ids)
        self.choices += [FORCED] * len(given.ids)
        self.unread += given.ids
        self.row, self.state = given.row, given.state

    @property
    def ended(self) -> bool:
        return self.row == ENDS


def constrained_sample(
    team: Team,
    weights: Weights,
    requests: Sequence[Request],
    constraint: Constraint,
    *,
    max_new_tokens: int,
    temperature: float,
    end_id: int,
    pad_id: int,
    version: int,
    compact: float,
) -> list[Completion]:
    """One completion per request, in order, as one batch. compact: as `sample.COMPACT`."""
    first = constraint.start(max_new_tokens)
    noise = uniforms([request.key for request in requests], max_new_tokens)
    rows = [_Row(own) for own in noise]
    for row in rows:
        row.take(first)
        row.unread.clear()  # they are fed with the context
    start = prefill(team, weights, [(*request.context, *first.ids) for request in requests], max_new_tokens, pad_id)
    hidden, cache, lengths, fed = start.hidden, start.cache, start.lengths, 0
    table = mask_table(constraint.masks, len(start.head.weight), hidden)
    batch = rows if first.row != ENDS else []
    while batch:
        ready = [i for i, row in enumerate(batch) if not row.ended and not row.unread]
        if ready:
            drawing = [batch[i] for i in ready]
            uniform = torch.tensor([row.noise[len(row.ids)] for row in drawing], dtype=wide(team.device))
            allowed = table[torch.tensor([row.row for row in drawing], device=team.device)]
            token, logprob = next_tokens(hidden[ready], start.head, uniform.to(team.device), temperature, allowed)
            for row, chosen, its in zip(drawing, token.tolist(), logprob.tolist(), strict=True):
                state = row.state
                row.choose(chosen, its)
                row.take(constraint.after(state, chosen))
        live = [i for i, row in enumerate(batch) if not row.ended]
        if not live:
            break
        if len(live) < compact * len(batch):  # an ended row stays until then, and reads padding
            kept = torch.tensor(live, device=team.device)
            cache = [layer.take(kept, start.capacity) for layer in cache]
            lengths, batch = lengths[kept], [batch[i] for i in live]
        # In windows, which count slots, and in lower precision, which rounds by what is fed together, one at a time.
        together = team.full_attention and team.dtype == torch.float32
        step = min(len(row.unread) for row in batch if not row.ended) if together else 1
        tokens = torch.tensor([[pad_id] * step if row.ended else row.unread[:step] for row in batch])
        for row in batch:
            del row.unread[:step]
        position = lengths[:, None] + torch.arange(fed, fed + step, device=team.device)
        fed += step
        part = Feed(tokens.to(team.device), position, cache, block_mask(lengths, start.width, fed, step))
        hidden = start.step(part)[0][:, -1]
    return [
        Completion(tuple(row.ids), tuple(row.logprobs), row.ids[-1] == end_id, version, tuple(row.choices))
        for row in rows
    ]
