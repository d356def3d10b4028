"""The decode loop of a server: rows join and leave between two tokens (iteration-level scheduling, Orca, OSDI 2022).

`sample.py` plays a batch to its end; here each row has its own limit, temperature and length, and a step feeds it all
that it has to read: a context but for what another row has read already, one token, or several that are given or
guessed. Weights, noise and the draw are the same, so that a row says what `sample` would say, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.cache import BLOCK, Pool, Prefixes, Slots, as_cache
from choreo.engine.noise import uniforms
from choreo.engine.requests import Completion, Request
from choreo.engine.sample import _draw, _wide
from choreo.engine.step import Part, step_of
from choreo.errors import Unsupported

KEPT = 8192  # slots of prefixes that a batch keeps for rows to come
UNEVEN = 2  # how many times the shortest feed of a part its longest may be: all are padded to that
AHEAD = 16  # tokens fed behind what is known, at most: all rows of a step are padded to the longest


@dataclass(eq=False)
class Row:
    """One sequence in the making.

    limit: most new tokens. temperature: 0 is greedy.
    heard: called after each token with the row; True ends it there (a stop string, a verdict that needs no more words).
    forced: ids to be taken before anything is drawn again; `heard` may add to them.
    guess: what may come after the ids so far and those that are forced. It is fed together with them and kept as far as
    it is what is drawn: a good guess saves steps, a bad one costs none. (Speculative decoding, Leviathan et al.
    2023; but noise belongs to the row here, so that the very same token is drawn.)
    """

    request: Request
    limit: int
    temperature: float
    heard: Callable[[Row], bool] = lambda row: False
    guess: Callable[[Sequence[int]], Sequence[int]] = lambda ids: ()
    forced: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finished: bool = False
    noise: np.ndarray = field(default_factory=lambda: np.zeros(0))
    cached: int = 0  # of context and ids: how many have been fed

    def completion(self, version: int) -> Completion:
        """Without log-probabilities: nobody learns from what is served."""
        return Completion(tuple(self.ids), (), self.finished, version)

    def take(self, drawn: Sequence[int], ahead: Sequence[int], end_id: int) -> bool:
        """Takes tokens as long as what was fed `ahead` is what was drawn; whether the row has ended.

        drawn: [len(ahead) + 1], after the ids so far and after each token ahead.
        """
        self.cached = len(self.request.context) + len(self.ids)
        for token, fed in zip(drawn, [*ahead, None], strict=True):
            self.ids.append(self.forced.pop(0) if self.forced else token)
            self.finished = self.ids[-1] == end_id
            if self.finished or len(self.ids) == self.limit or self.heard(self):
                return True
            if self.ids[-1] != fed:
                break
            self.cached += 1
        return False


class Batch:
    """Rows of one policy. Its weights are read once, when it is made: what begins under them ends under them.

    Raises Unsupported for models with sliding windows, which count their window in slots of a common start.
    """

    def __init__(self, team: Team, agent: str, *, end_id: int, pad_id: int):
        if not team.full_attention:
            raise Unsupported("rows that come and go need attention to everything before them; this model slides")
        self.device, self.end_id = team.device, end_id
        weights = {name: value.detach().clone() for name, value in team.weights(agent).items()}
        self.version = team.version[agent]
        self.positions, self._exact = team.positions or 2**31, team.dtype == torch.float32
        self.rows: list[Row] = []  # first those that have a row of the pool, which is then the same
        self._placed = 0
        self._feed = step_of(team, weights)
        with torch.inference_mode():
            shown = [Slots(1) for _ in range(team.layers)]  # what the keys and values of this model are like
            inputs = {"input_ids": torch.tensor([[pad_id]], device=team.device), "past_key_values": as_cache(shown)}
            _, self._head = team.run(weights, {**inputs, "use_cache": True})
            self._pool = Pool(shown)
            self._prefixes = Prefixes(self._pool, KEPT)

    def join(self, rows: Sequence[Row]) -> None:
        """Adds rows, which begin with the next step.

        Raises ValueError, before anything is changed, where a row may come to more than the base has positions for.
        """
        if any(len(row.request.context) + row.limit > self.positions for row in rows):
            raise ValueError(f"a row of more than {self.positions} positions")
        for row in rows:
            row.noise = uniforms([row.request.key], row.limit)[0]
        self.rows += rows

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """One token or more for every row; the rows that ended with it, which have left."""
        old, new = self._placed, self._place()
        rows = self.rows[:new]
        ahead = [self._ahead(row) for row in rows]
        feeds = [[*row.request.context, *row.ids, *more][row.cached :] for row, more in zip(rows, ahead, strict=True)]
        spans = _spans(old, [len(feed) for feed in feeds])
        hidden = self._feed(*(self._part(span, feeds[span]) for span in spans))
        where: list[int] = []  # the last states of each row: of its newest token, and of those ahead
        offset = 0
        for span, states in zip(spans, hidden, strict=True):
            for i in range(span.start, span.stop):
                where += range(offset + len(feeds[i]) - 1 - len(ahead[i]), offset + len(feeds[i]))
                offset += states.shape[1]
        drawn = self._draw(rows, ahead, torch.cat([states.flatten(0, 1) for states in hidden])[where])
        ended = set()
        for i, (row, tokens, more) in enumerate(zip(rows, drawn, ahead, strict=True)):
            if row.take(tokens, more, self.end_id):
                ended.add(i)
            if i in ended or i >= old:
                self._prefixes.keep(i, (*row.request.context, *row.ids)[: row.cached])
        self._drop(ended)
        return [rows[i] for i in sorted(ended)]

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Takes out a row that nobody waits for any more."""
        if row in self.rows[: self._placed]:
            self._drop({self.rows.index(row)})
        elif row in self.rows:
            self.rows.remove(row)

    def _place(self) -> int:
        """Gives rows of the pool to those that have none, the shorter ones first; how many rows have one then.

        Of rows that wait with one context, the first goes ahead, and the others find it read.
        """
        waiting = self.rows[self._placed :]
        now, later, reading = [], [], set()
        for row in waiting:
            context = row.request.context
            read = self._prefixes.known(context[:-1])
            row.cached = read  # as it will be
            if context in reading and read < (len(context) - 1) // BLOCK * BLOCK:
                later.append(row)
            else:
                now.append(row)
                reading.add(context)
        now.sort(key=lambda row: len(row.request.context) - row.cached)
        self.rows[self._placed :] = [*now, *later]
        total = self._placed + len(now)
        longest = max((len(row.request.context) + row.limit for row in now), default=0)
        self._pool.fit(total, longest, self.positions)
        for i, row in enumerate(now, self._placed):
            row.cached = self._prefixes.load(i, row.request.context[:-1])
        self._placed = total
        return total

    def _part(self, span: slice, feeds: Sequence[Sequence[int]]) -> Part:
        """`feeds` for the rows of `span`. Where one is shorter it is filled with its last token at its last place."""
        width = max(map(len, feeds))
        token = torch.tensor([[*fed, *[fed[-1]] * (width - len(fed))] for fed in feeds], device=self.device)
        begin = [row.cached for row in self.rows[span]]
        ends = [start + len(fed) for start, fed in zip(begin, feeds, strict=True)]
        first, last = (torch.tensor(side, device=self.device)[:, None] for side in (begin, ends))
        slots = torch.minimum(first + torch.arange(width, device=self.device), last - 1)
        mask, reach = None, max(ends)
        whole = max(begin) == 0 and min(ends) == width  # contexts from their start, and no padding
        if not whole if width > 1 else min(ends) < reach:
            hidden = torch.arange(reach, device=self.device) > slots[:, None, :, None]
            mask = torch.zeros(hidden.shape, device=self.device).masked_fill_(hidden, float("-inf"))
        return Part(token, slots, self._pool.layers(span, slots, reach), mask)

    def _draw(self, rows: Sequence[Row], ahead: Sequence[Sequence[int]], hidden: Tensor) -> list[list[int]]:
        """[len(ahead) + 1] for every row, from hidden [their sum, d]."""
        logits = self._head.logits(hidden).float()
        counts = [len(more) + 1 for more in ahead]
        temperatures = np.repeat([row.temperature for row in rows], counts)
        token = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        for temperature in set(temperatures.tolist()):
            mine = torch.from_numpy(np.flatnonzero(temperatures == temperature)).to(logits.device)
            own = logits if len(mine) == len(logits) else logits[mine]
            if temperature == 0:
                token[mine] = _likeliest(own)
            else:
                noise = np.concatenate([row.noise[len(row.ids) :][:n] for row, n in zip(rows, counts, strict=True)])
                uniform = torch.from_numpy(noise).to(logits.device, _wide(logits.device))
                token[mine] = _draw(own, uniform[mine], temperature)[0]
        return [part.tolist() for part in token.split(counts)]

    def _drop(self, ended: set[int]) -> None:
        """Takes rows out and fills the gaps from the end of those that have a row of the pool."""
        stay = self._placed - len(ended)
        movers = [i for i in range(stay, self._placed) if i not in ended]
        gaps = [i for i in range(stay) if i in ended]
        if movers:
            self._pool.move(movers, gaps, max(self.rows[i].cached for i in movers))
        for source, target in zip(movers, gaps, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[stay : self._placed]
        self._placed = stay
        if not stay:
            self._pool.clear()

    def _ahead(self, row: Row) -> list[int]:
        """What to feed behind what is known; one more token than that may be drawn. In lower precision a token's
        neighbours move its rounding, and with it now and then what is said: nothing is guessed there."""
        guessed = row.guess([*row.ids, *row.forced]) if self._exact else ()
        return [*row.forced, *guessed][: min(AHEAD, row.limit - len(row.ids) - 1)]


def _likeliest(logits: Tensor) -> Tensor:
    """int64 [rows]. NumPy's argmax is 20 times as fast as torch's on a CPU."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


def _spans(old: int, lengths: Sequence[int]) -> list[slice]:
    """Rows that are fed in one part: the `old` ones, which are fed a few tokens each, and new ones of like length."""
    spans, begin = [slice(0, old)] if old else [], old
    for i in range(old, len(lengths)):
        if lengths[i] > UNEVEN * lengths[begin]:
            spans.append(slice(begin, i))
            begin = i
    return [*spans, slice(begin, len(lengths))] if begin < len(lengths) else spans
