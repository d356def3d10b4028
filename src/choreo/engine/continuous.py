"""The decode loop of a server: rows join and leave between two tokens (iteration-level scheduling, Orca, OSDI 2022).

sample.py decodes a batch to its end. Here each row has its own limit, temperature and length. A step feeds a row all
tokens that it has not read: its context (without the prefix that another row has read already), one new token, or
several that are forced or guessed. A long context is read in chunks, one a step, so that it does not hold up the rows
that are decoded beside it (chunked prefill, Sarathi-Serve, OSDI 2024). Weights, noise and the draw are those of
sample.py, so up to rounding a row gets the same tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.cache import BLOCK, Pool, Prefixes, Slots, as_cache
from choreo.engine.constraint import ENDS, FORCED, Constraint, Given, mask_table
from choreo.engine.draw import draw_tokens, wide
from choreo.engine.noise import uniforms
from choreo.engine.requests import Completion, Request
from choreo.engine.step import Feed, step_of
from choreo.errors import Unsupported

PREFIX_SLOTS = 8192  # slots of prefixes that a batch keeps for later rows
UNEVEN = 2  # the longest feed of a part may be so many times the shortest: all feeds are padded to the longest
CHUNK = 128  # the most tokens of a context that a row reads in one step, whatever the others read in it
AHEAD = 16  # the most forced or guessed tokens in a feed, as all rows of a step are padded to the longest


@dataclass(eq=False)
class Row:
    """One sequence that is being sampled.

    limit: the most new tokens. temperature: 0 is greedy.
    on_token: called with the row after each token; True ends the row (a stop string, or a verdict that is complete).
    forced: ids to take before anything is drawn again. on_token may add to them.
    held: the constraint that the row is held to, and what it gave last, of which `forced` has the ids. A row ends with
        its constraint, and the ids that end it are never fed.
    guess: gives tokens that may come after the ids so far and the forced ones. They are fed together and kept as long
        as they equal what is drawn: a good guess saves steps, a bad one costs none. (Speculative decoding, Leviathan et
        al. 2023. Here the random numbers belong to the row, so the very same tokens are drawn.)
    cached: how many tokens of context and ids have been fed.
    """

    request: Request
    limit: int
    temperature: float
    on_token: Callable[[Row], bool] = lambda row: False
    guess: Callable[[Sequence[int]], Sequence[int]] = lambda ids: ()
    forced: list[int] = field(default_factory=list)
    held: tuple[Constraint, Given] | None = None
    ids: list[int] = field(default_factory=list)
    finished: bool = False
    noise: np.ndarray = field(default_factory=lambda: np.zeros(0))
    cached: int = 0

    @property
    def chunk(self) -> Sequence[int]:
        """What of its context the row reads in this step, where that is not yet the last of it; else nothing."""
        unread = len(self.request.context) - self.cached
        return self.request.context[self.cached : self.cached + CHUNK] if unread > CHUNK and not self.ids else ()

    def completion(self, version: int) -> Completion:
        """The completion without log-probabilities, because nothing is learned from a server's rows."""
        return Completion(tuple(self.ids), (), self.finished, version)

    def take(self, drawn: Sequence[int], ahead: Sequence[int], end_id: int) -> bool:
        """Takes drawn tokens as long as the tokens fed `ahead` equal them. Returns whether the row has ended.

        drawn: [len(ahead) + 1], the tokens drawn after the ids so far and after each token ahead.
        """
        self.cached = len(self.request.context) + len(self.ids)
        for token, fed in zip(drawn, [*ahead, None], strict=True):
            if self.forced:
                self.ids.append(self.forced.pop(0))
            else:
                self.ids.append(token)
                if self.held is not None and self._advance(*self.held, token):
                    self.finished = self.ids[-1] == end_id
                    return True
            self.finished = self.ids[-1] == end_id
            if self.finished or len(self.ids) == self.limit or self.on_token(self):
                return True
            if self.ids[-1] != fed:
                break
            self.cached += 1
        return False

    def _advance(self, constraint: Constraint, before: Given, token: int) -> bool:
        """Takes what the constraint asks for after a chosen token. Returns whether it has ended the row."""
        given = constraint.after(before.state, token)
        self.held = constraint, given
        (self.ids if given.row == ENDS else self.forced).extend(given.ids)
        return given.row == ENDS

    def foresee(self, ahead: Sequence[int]) -> tuple[list[int], list[int]]:
        """`ahead`, cut before what the constraint would not allow, and the row of the masks for each draw after them.

        A draw in whose place an id is forced may be anything, so it has FORCED for a row.
        """
        if self.held is None:
            return list(ahead), [FORCED] * (len(ahead) + 1)
        (constraint, given), forced = self.held, list(self.forced)
        kept: list[int] = []
        rows: list[int] = []
        for token in ahead:
            rows.append(FORCED if forced else given.row)
            if forced:
                if forced.pop(0) != token:
                    return kept, rows
            else:
                if token >= constraint.masks.shape[1] or not constraint.masks[given.row, token]:
                    return kept, rows
                given = constraint.after(given.state, token)
                if given.row == ENDS:  # the row ends here, so nothing behind it needs to be fed
                    return kept, rows
                forced = list(given.ids)
            kept.append(token)
        return kept, [*rows, FORCED if forced else given.row]


class Batch:
    """Rows of one policy. The weights are copied once, at the start, so a row ends with the weights it began with.

    Raises Unsupported for models with sliding windows: they count the window in slots, and rows start at other slots.
    """

    def __init__(self, team: Team, agent: str, *, end_id: int, pad_id: int):
        if not team.full_attention:
            raise Unsupported("rows that come and go need attention to everything before them; this model slides")
        self.device, self.end_id = team.device, end_id
        weights = {name: value.detach().clone() for name, value in team.weights(agent).items()}
        self.version = team.version[agent]
        self.positions, self._exact = team.positions or 2**31, team.dtype == torch.float32
        # The first `_placed` rows have a row of the pool, at the same index. Of these, rows that still read their
        # context come last.
        self.rows: list[Row] = []
        self._placed = 0
        self._tables: dict[Constraint, Tensor] = {}
        self._feed = step_of(team, weights)
        with torch.inference_mode():
            example = [Slots(1) for _ in range(team.layers)]  # filled by one token, for the shapes of keys and values
            inputs = {"input_ids": torch.tensor([[pad_id]], device=team.device), "past_key_values": as_cache(example)}
            _, self._head = team.run(weights, {**inputs, "use_cache": True})
            self._pool = Pool(example)
            self._prefixes = Prefixes(self._pool, PREFIX_SLOTS)

    def join(self, rows: Sequence[Row]) -> None:
        """Adds rows, which begin with the next step.

        Raises ValueError, before anything is changed, where a row may become longer than the base's positions.
        """
        if any(len(row.request.context) + row.limit > self.positions for row in rows):
            raise ValueError(f"a row of more than {self.positions} positions")
        for row in rows:
            row.noise = uniforms([row.request.key], row.limit)[0]
        self.rows += rows

    @torch.inference_mode()
    def step(self) -> list[Row]:
        """Gives every row one token or more, unless it has more than a chunk to read yet. Returns the rows that ended,
        which have left the batch."""
        old = sum(bool(row.ids) for row in self.rows[: self._placed])
        rows = self.rows[: self._place()]
        chunks = [row.chunk for row in rows]
        ahead, masks = [], []
        for row, chunk in zip(rows, chunks, strict=True):
            more, own = ([], []) if chunk else row.foresee(self._ahead(row))
            ahead.append(more)
            masks.append(own)
        feeds = [
            chunk or [*row.request.context, *row.ids, *more][row.cached :]
            for row, chunk, more in zip(rows, chunks, ahead, strict=True)
        ]
        spans = _spans(old, [len(feed) for feed in feeds])
        hidden = self._feed(*(self._part(span, feeds[span]) for span in spans))
        known = [min(len(row.forced), len(more)) for row, more in zip(rows, ahead, strict=True)]
        # Places of each row's last states: of its newest token, and of the tokens ahead, but for those before a forced
        # id, for which nothing is drawn.
        where: list[int] = []
        offset = 0
        for span, part in zip(spans, hidden, strict=True):
            for i in range(span.start, span.stop):
                if not chunks[i]:
                    where += range(offset + len(feeds[i]) - 1 - len(ahead[i]) + known[i], offset + len(feeds[i]))
                offset += part.shape[1]
        places = [own[skip:] for own, skip in zip(masks, known, strict=True)]
        states = torch.cat([part.flatten(0, 1) for part in hidden])[where]
        drawn = self._draw(rows, known, places, states) if where else [[] for _ in rows]
        ended = set()
        for i, (row, tokens, more) in enumerate(zip(rows, drawn, ahead, strict=True)):
            if chunks[i]:
                row.cached += len(chunks[i])
                self._prefixes.keep(i, row.request.context[: row.cached])
                continue
            if row.take([*row.forced[: known[i]], *tokens], more, self.end_id):
                ended.add(i)
            if i in ended or i >= old:
                self._prefixes.keep(i, (*row.request.context, *row.ids)[: row.cached])
        self._drop(ended)
        return [rows[i] for i in sorted(ended)]

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Removes a row that nobody waits for any more."""
        if row in self.rows[: self._placed]:
            self._drop({self.rows.index(row)})
        elif row in self.rows:
            self.rows.remove(row)

    def _place(self) -> int:
        """Gives waiting rows a row of the pool, the shorter ones first. Returns how many rows have one now.

        Of rows with the same context only the first is placed; the others find its prefix kept in a later step.
        """
        waiting = self.rows[self._placed :]
        now, later = [], []
        reading = {row.request.context for row in self.rows[: self._placed] if not row.ids}
        for row in waiting:
            context = row.request.context
            read = self._prefixes.known(context[:-1])
            row.cached = read  # for the sort below
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

    def _part(self, span: slice, feeds: Sequence[Sequence[int]]) -> Feed:
        """`feeds` for the rows of `span`. A shorter feed is padded with its last token, at the place of that token."""
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
        return Feed(token, slots, self._pool.layers(span, slots, reach), mask)

    def _draw(
        self, rows: Sequence[Row], known: Sequence[int], masks: Sequence[Sequence[int]], hidden: Tensor
    ) -> list[list[int]]:
        """Draws a token of every row for each entry of its `masks`, which is a row of its constraint's masks or FORCED.

        known: how many ids of the row come before the first draw. hidden: [number of draws, d].
        """
        logits = self._head.logits(hidden).float()
        counts = [len(own) for own in masks]
        allowed = self._allowed(rows, masks)
        temperatures = np.repeat([row.temperature for row in rows], counts)
        token = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        for temperature in set(temperatures.tolist()):
            mine = torch.from_numpy(np.flatnonzero(temperatures == temperature)).to(logits.device)
            own = logits if len(mine) == len(logits) else logits[mine]
            mask = None if allowed is None else allowed[mine]
            if temperature == 0:
                token[mine] = _likeliest(own if mask is None else own.masked_fill(~mask, float("-inf")))
            else:
                begins = [len(row.ids) + skip for row, skip in zip(rows, known, strict=True)]
                noise = np.concatenate([r.noise[i : i + n] for r, i, n in zip(rows, begins, counts, strict=True)])
                uniform = torch.from_numpy(noise).to(logits.device, wide(logits.device))
                token[mine] = draw_tokens(own, uniform[mine], temperature, mask)[0]
        return [part.tolist() for part in token.split(counts)]

    def _allowed(self, rows: Sequence[Row], masks: Sequence[Sequence[int]]) -> Tensor | None:
        """bool [number of draws, vocabulary]: what each draw may give. None where every row is free."""
        found: list[Tensor] = []
        if all(row.held is None for row in rows):
            return None
        for row, own in zip(rows, masks, strict=True):
            if row.held is None:
                found.append(torch.ones(len(own), len(self._head.weight), dtype=torch.bool, device=self.device))
            else:
                found.append(self._table(row.held[0])[torch.tensor(own, dtype=torch.int64, device=self.device)])
        return torch.cat(found)

    def _table(self, constraint: Constraint) -> Tensor:
        """The masks of a constraint for this model, made once."""
        if constraint not in self._tables:
            self._tables[constraint] = mask_table(constraint.masks, len(self._head.weight), self._head.weight)
        return self._tables[constraint]

    def _drop(self, ended: set[int]) -> None:
        """Removes rows (indices below `_placed`). The others come together, those that still read behind those that
        draw; only rows that stand in the wrong part are moved."""
        left = [i for i in range(self._placed) if i not in ended]
        draw = [i for i in left if self.rows[i].ids]
        read = [i for i in left if not self.rows[i].ids]
        stay, parts = len(left), ((draw, range(len(draw))), (read, range(len(draw), len(left))))
        movers = [i for own, part in parts for i in own if i not in part]
        gaps = [i for own, part in parts for i in sorted({*part}.difference(own))]
        if movers:
            self._pool.move(movers, gaps, max(self.rows[i].cached for i in movers))
        for target, row in zip(gaps, [self.rows[i] for i in movers], strict=True):
            self.rows[target] = row
        del self.rows[stay : self._placed]
        self._placed = stay
        if not stay:
            self._pool.clear()

    def _ahead(self, row: Row) -> list[int]:
        """The forced and guessed tokens to feed after the known ones. One more token than these may be drawn.

        In lower precision the rounding of a token depends on the tokens that are fed with it, which would sometimes
        change what is drawn. So nothing is guessed there."""
        guessed = row.guess([*row.ids, *row.forced]) if self._exact else ()
        return [*row.forced, *guessed][: min(AHEAD, row.limit - len(row.ids) - 1)]


def _likeliest(logits: Tensor) -> Tensor:
    """int64 [rows]. NumPy's argmax is 20 times as fast as torch's on a CPU."""
    return torch.from_numpy(logits.numpy().argmax(-1)) if logits.device.type == "cpu" else logits.argmax(-1)


def _spans(old: int, lengths: Sequence[int]) -> list[slice]:
    """Rows that are fed in one part: first the `old` rows, with a few tokens each, then rows that read, with feeds of
    similar length."""
    spans, begin = [slice(0, old)] if old else [], old
    for i in range(old, len(lengths)):
        if max(lengths[begin : i + 1]) > UNEVEN * min(lengths[begin : i + 1]):
            spans.append(slice(begin, i))
            begin = i
    return [*spans, slice(begin, len(lengths))] if begin < len(lengths) else spans
