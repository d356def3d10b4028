"""Finds prompts to measure on that are also training prompts: equal ones, and ones that share most of their words.

The measure is the overlap coefficient of word trigrams, |A ∩ B| / min(|A|, |B|). A request that is wrapped into a
jailbreak has nearly all trigrams of the request itself, which this coefficient shows and the Jaccard index would not.

A conversation is equal to another where all its turns are, and near by the words of the user's turns: what an assistant
once said in between does not make another prompt of it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from choreo.types import Prompt

NEAR = 0.8
SHORTEST = 3  # trigrams: shorter prompts share all of them by chance
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A measured prompt and the training prompt nearest to it. share: the overlap coefficient; 1 where equal."""

    measured: Prompt
    trained: Prompt
    equal: bool
    share: float


class Seen:
    """Prompts to compare others with; it grows by `add`."""

    def __init__(self, prompts: Iterable[Prompt] = ()):
        self._prompts: list[Prompt] = []
        self._shingles: list[frozenset[tuple[str, ...]]] = []
        self._equal: dict[tuple[str, ...], Prompt] = {}
        self._holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for prompt in prompts:
            self.add(prompt)

    def add(self, prompt: Prompt) -> None:
        own = _trigrams(prompt)
        self._equal.setdefault(_plain(prompt), prompt)
        for trigram in own:
            self._holders[trigram].append(len(self._prompts))
        self._prompts.append(prompt)
        self._shingles.append(own)

    def overlap(self, prompt: Prompt) -> Overlap | None:
        """The one that equals `prompt` (except for case, marks and spaces), else the nearest that is near; or None."""
        if twin := self._equal.get(_plain(prompt)):
            return Overlap(prompt, twin, True, 1.0)
        own = _trigrams(prompt)
        shared = Counter(i for trigram in own for i in self._holders.get(trigram, ()))
        rated = [
            (count / smaller, -i)
            for i, count in shared.items()
            if (smaller := min(len(own), len(self._shingles[i]))) >= SHORTEST and count >= NEAR * smaller
        ]
        if not rated:
            return None
        share, i = max(rated)
        return Overlap(prompt, self._prompts[-i], False, share)


def overlaps(trained: Sequence[Prompt], measured: Sequence[Prompt]) -> list[Overlap]:
    """The measured prompts that equal a training prompt (except for case, marks and spaces) or are near to one.

    One entry for each such prompt, in their order, with the nearest training prompt.
    """
    seen = Seen(trained)
    return [found for prompt in measured if (found := seen.overlap(prompt))]


def _plain(prompt: Prompt) -> tuple[str, ...]:
    return tuple(f"{role} {' '.join(_WORD.findall(text.casefold()))}" for role, text in prompt.turns)


def _trigrams(prompt: Prompt) -> frozenset[tuple[str, ...]]:
    words = [_WORD.findall(text.casefold()) for role, text in prompt.turns if role == "user"]
    return frozenset(three for turn in words for three in zip(turn, turn[1:], turn[2:], strict=False))
