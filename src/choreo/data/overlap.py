"""Finds prompts to measure on that are also training prompts: equal ones, and ones that share most of their words.

The measure is the overlap coefficient of word trigrams, |A ∩ B| / min(|A|, |B|). A request that is wrapped into a
jailbreak has nearly all trigrams of the request itself, which this coefficient shows and the Jaccard index would not.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
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


def overlaps(trained: Sequence[Prompt], measured: Sequence[Prompt]) -> list[Overlap]:
    """The measured prompts that equal a training prompt (except for case, marks and spaces) or are near to one.

    One entry for each such prompt, in their order, with the nearest training prompt.
    """
    equal = {_plain(prompt.text): prompt for prompt in reversed(trained)}
    shingles = [_trigrams(prompt.text) for prompt in trained]
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, own in enumerate(shingles):
        for trigram in own:
            holders[trigram].append(i)
    found: list[Overlap] = []
    for prompt in measured:
        if twin := equal.get(_plain(prompt.text)):
            found.append(Overlap(prompt, twin, True, 1.0))
            continue
        own = _trigrams(prompt.text)
        shared = Counter(i for trigram in own for i in holders.get(trigram, ()))
        rated = [
            (count / smaller, -i)
            for i, count in shared.items()
            if (smaller := min(len(own), len(shingles[i]))) >= SHORTEST and count >= NEAR * smaller
        ]
        if rated:
            share, i = max(rated)
            found.append(Overlap(prompt, trained[-i], False, share))
    return found


def _plain(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def _trigrams(text: str) -> frozenset[tuple[str, ...]]:
    words = _WORD.findall(text.casefold())
    return frozenset(zip(words, words[1:], words[2:], strict=False))
