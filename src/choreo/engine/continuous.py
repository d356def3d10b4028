"""The decode loop of a server: rows join and leave between two tokens (iteration-level scheduling, Orca, OSDI 2022).

`sample.py` plays a batch to its end; here each row has its own limit, temperature and length. Weights, noise, the draw
and the step of one token are the same, so that a row says what `sample` would say, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.cache import Places, Slots, as_cache
from choreo.engine.head import Head
from choreo.engine.noise import uniforms
from choreo.engine.requests import Completion, Request
from choreo.engine.sample import _draw, _wide
from choreo.engine.step import step_of


@dataclass(eq=False)
class Row:
    """One sequence in the making.

    limit: most new tokens. temperature: 0 is greedy.
    heard: called after each token with the row; True ends it there (a stop string, a verdict that needs no more words).
    forced: ids to be taken before anything is drawn again; `heard` may add to them.
    """

    request: Request
    limit: int
    temperature: float
    heard: Callable[[Row], bool] = lambda row: False
    forced: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finished: bool = False
    noise: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def completion(self, version: int) -> Completion:
        return Completion(tuple(self.ids), tuple(self.logprobs), self.finished, version)


class Batch:
    """Rows of one policy. Its weights are read once, when it is made: what begins under them ends under them.

    Raises ValueError for models with sliding windows, which count their window in slots of a common start.
    """

    def __init__(self, team: Team, agent: str, *, end_id: int, pad_id: int):
        if not team.full_attention:
            raise ValueError("rows that come and go need attention to everything before them; this model slides")
        self.team, self.end_id, self.pad_id = team, end_id, pad_id
        self.weights = {name: value.detach().clone() for name, value in team.weights(agent).items()}
        self.version = team.version[agent]
        config = team.decoder.model.config.get_text_config()
        self.positions: int = getattr(config, "max_position_embeddings", 2**31)
        self.rows: list[Row] = []
        self._next = step_of(team, self.weights)
        self._cache = [Places() for _ in range(team.layers)]
        self._lengths = torch.zeros(0, dtype=torch.int64, device=team.device)
        self._hidden: Tensor | None = None  # [rows, d]: what the next token of each row is drawn from
        self._head: Head | None = None

    @torch.inference_mode()
    def join(self, rows: Sequence[Row]) -> None:
        """Prefills contexts, once where several rows have the same one.

        Raises ValueError, before anything is changed, where a row may come to more than the base has positions for.
        """
        if any(len(row.request.context) + row.limit > self.positions for row in rows):
            raise ValueError(f"a row of more than {self.positions} positions")
        contexts = list(dict.fromkeys(row.request.context for row in rows))
        place = {context: i for i, context in enumerate(contexts)}
        device = self.team.device
        lengths = torch.tensor([len(context) for context in contexts], device=device)
        width = int(lengths.max())
        padded = torch.tensor([[*c, *[self.pad_id] * (width - len(c))] for c in contexts], device=device)
        last = torch.arange(len(contexts), device=device) * width + lengths - 1
        filled = [Slots(width) for _ in range(self.team.layers)]
        inputs = {"input_ids": padded, "past_key_values": as_cache(filled), "use_cache": True}
        hidden, self._head = self.team.run(self.weights, inputs, last)
        copies = torch.tensor([place[row.request.context] for row in rows], device=device)
        capacity = max(len(row.request.context) + row.limit for row in rows)
        for layer, slots in zip(self._cache, filled, strict=True):
            layer.admit(slots, copies, max(width, capacity))
        self._lengths = torch.cat((self._lengths, lengths[copies]))
        self._hidden = hidden[copies] if self._hidden is None else torch.cat((self._hidden, hidden[copies]))
        for row in rows:
            row.noise = uniforms([row.request.key], row.limit)[0]
        self.rows += rows

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """One token for every row; the rows that ended with it, which have left."""
        drawn, logprobs = self._draw()
        ended = set()
        for i, (row, token, logprob) in enumerate(zip(self.rows, drawn.tolist(), logprobs.tolist(), strict=True)):
            row.ids.append(token)
            row.logprobs.append(logprob)
            row.finished = token == self.end_id
            if row.finished or len(row.ids) == row.limit or row.heard(row):
                ended.add(i)
        gone = [self.rows[i] for i in sorted(ended)]
        drawn = drawn[self._drop(ended)]
        if self.rows:
            reach = int(self._lengths.max()) + 1
            for layer in self._cache:
                layer.aim(self._lengths, reach)
            self._hidden = self._next(drawn, self._lengths, self._cache, _end_mask(self._lengths, reach))
            self._lengths = self._lengths + 1
        return gone

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Takes out a row that nobody waits for any more."""
        if row in self.rows:
            self._drop({self.rows.index(row)})

    def _draw(self) -> tuple[Tensor, Tensor]:
        assert self._hidden is not None and self._head is not None
        logits = self._head.logits(self._hidden).float()
        drawn, wide = [row.noise[len(row.ids)] for row in self.rows], _wide(logits.device)
        noise = torch.tensor(drawn, dtype=wide, device=logits.device)
        temperatures = [row.temperature for row in self.rows]
        if len(set(temperatures)) == 1:
            token, logprob = _draw(logits, noise, temperatures[0])
        else:
            token = torch.zeros(len(self.rows), dtype=torch.int64, device=logits.device)
            logprob = torch.zeros(len(self.rows), device=logits.device)
            for temperature in set(temperatures):
                mine = torch.tensor([i for i, t in enumerate(temperatures) if t == temperature], device=logits.device)
                token[mine], logprob[mine] = _draw(logits[mine], noise[mine], temperature)
        for i, row in enumerate(self.rows):
            if row.forced:
                token[i] = row.forced.pop(0)
                logprob[i] = logits[i].log_softmax(-1)[token[i]]
        return token, logprob

    def _drop(self, ended: set[int]) -> list[int]:
        """Takes rows out and fills the gaps from the end. Returns where each row that stays was before."""
        stay = len(self.rows) - len(ended)
        order = list(range(len(self.rows)))
        if ended:
            movers = [i for i in order[stay:] if i not in ended]
            order = [movers.pop() if i in ended else i for i in range(stay)]
            assert self._hidden is not None
            used = int(self._lengths.max())
            for layer in self._cache:
                layer.keep(order, used)
            self.rows = [self.rows[i] for i in order]
            self._lengths, self._hidden = self._lengths[order], self._hidden[order]
        return order


def _end_mask(lengths: Tensor, reach: int) -> Tensor | None:
    """float32 [rows, 1, 1, reach], additive: hides what lies behind each row's newest token (slot `lengths`)."""
    if bool((lengths == reach - 1).all()):
        return None
    hidden = torch.arange(reach, device=lengths.device) > lengths[:, None]
    return torch.zeros(hidden.shape, device=lengths.device).masked_fill_(hidden, float("-inf"))[:, None, None]
