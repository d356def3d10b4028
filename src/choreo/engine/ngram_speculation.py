"""Guesses at what comes next, from what was said before: runs of tokens that go on as they did the last time.

Prompt lookup and n-gram speculation. There is no draft model: reviews repeat one another, and quote what they review.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from choreo.engine.requests import Ids

SIZE = 2**16  # runs that are remembered
AHEAD = 8  # tokens guessed at once


class Recall:
    """What followed each run of one to three tokens in what was learnt; where it contradicts itself, nothing."""

    def __init__(self) -> None:
        self._next: dict[Ids, tuple[int, int]] = {}  # a token, and the trust in it: 0 is none

    def learn(self, ids: Ids) -> None:
        if len(self._next) > SIZE:
            self._next.clear()
        for n in (1, 2, 3):
            for i in range(n, len(ids)):
                run = ids[i - n : i]
                token, trust = self._next.get(run, (ids[i], 0))
                if token == ids[i]:
                    self._next[run] = token, trust + 1
                else:
                    self._next[run] = (token, trust // 2) if trust else (ids[i], 0)

    def guesser(self, context: Ids) -> Callable[[Sequence[int]], list[int]]:
        """What may come after `context` and the ids so far. A pair of tokens that stands in the context goes on as it
        does there; else what was learnt counts, the longer run first."""
        own = {context[i - n : i]: context[i] for n in (1, 2) for i in range(n, len(context))}

        def after(run: Sequence[int]) -> int | None:
            three, two, one = tuple(run[-3:]), tuple(run[-2:]), tuple(run[-1:])
            if two in own:
                return own[two]
            for key in (three, two):
                if key in self._next:
                    token, trust = self._next[key]
                    return token if trust else None
            if one in own:
                return own[one]
            token, trust = self._next.get(one, (0, 0))
            return token if trust else None

        def guess(ids: Sequence[int]) -> list[int]:
            run = [*context[-3:], *ids][-3:]
            for _ in range(AHEAD):
                token = after(run)
                if token is None:
                    break
                run.append(token)
            return run[3:]

        return guess
