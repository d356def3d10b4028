"""n-gram speculation: guesses the next tokens from n-grams that were seen before, without a draft model.

An n-gram in the context of the row itself counts first (prompt lookup), then n-grams of earlier completions. This pays
for reviews, which repeat one another and quote the answer that they review.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from choreo.engine.requests import Ids

SIZE = 2**16  # n-grams that are kept
AHEAD = 8  # tokens guessed at once


class NgramTable:
    """The token that followed each n-gram of one to three tokens, trusted less where other tokens followed too."""

    def __init__(self) -> None:
        self._next: dict[Ids, tuple[int, int]] = {}  # the next token, and how far it is trusted: 0 is not at all

    def learn(self, ids: Ids) -> None:
        """Adds the n-grams of a completion. A next token gains 1 when it comes again, and loses half for another."""
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
        """A function that guesses up to AHEAD tokens after `context` and the ids so far.

        Two last tokens that stand in the context go on as they do there. Otherwise what was learnt counts, the longer
        n-gram first."""
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
