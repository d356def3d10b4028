"""Do prompts to train on turn up among those to measure on? Equal ones, and ones that share most of their words.

Measured as the overlap coefficient of word trigrams, |A ∩ B| / min(|A|, |B|): a request wrapped into a jailbreak holds
nearly all trigrams of the bare request, so containment counts, which the Jaccard index would miss.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from choreo.types import Prompt

NEAR = 0.8
SHORTEST = 3  # trigrams; of fewer than that, two share all by chance
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Overlap:
    """A measured prompt and the training prompt that is nearest to it. share: of trigrams; 1 where they are equal."""

    measured: Prompt
    trained: Prompt
    equal: bool
    share: float


def overlaps(trained: Sequence[Prompt], measured: Sequence[Prompt]) -> list[Overlap]:
    """The measured prompts that some training prompt equals (but for case, marks and spaces) or comes near to.

    One entry per measured prompt, in their order, with the training prompt that is nearest.
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
