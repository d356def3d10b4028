"""Which answers are learnt from. Pure functions over plain data; what a choice needs is measured before it is made."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to a prompt. perplexity: under the one who chooses. refuses: by its words alone."""

    perplexity: float
    refuses: bool


def perplexity(logprobs: Sequence[float]) -> float:
    """exp(−mean log π) over an answer's tokens (MACPO, section 3); infinite for an answer without tokens."""
    return math.exp(-math.fsum(logprobs) / len(logprobs)) if logprobs else math.inf


def most_likely(candidates: Sequence[Sequence[Candidate]], keep: int = 1) -> list[list[int]]:
    """Per prompt the indices of the `keep` answers of lowest perplexity, lowest first (MACPO, section 3)."""
    return [_ranked(answers)[:keep] for answers in candidates]


def in_share(share: float, refuses: Sequence[bool], doubt: Sequence[float]) -> list[int]:
    """Indices of answers among which `share` refuse, in order (this project's).

    An agent writes more of what it learns, and the others then learn from that: where positives refuse a little more
    often than they should, refusals grow round by round. So of refusals and other answers the kind in excess is cut,
    the most doubtful first, but never by more than half: an agent that never refuses, or always, still has something
    to learn from. doubt: perplexity under the agent that learns.
    """
    kinds: dict[bool, list[int]] = {True: [], False: []}
    for i, kind in enumerate(refuses):
        kinds[kind].append(i)
    kept = []
    for kind, part in ((True, share), (False, 1 - share)):
        other, least = len(kinds[not kind]), math.ceil(len(kinds[kind]) / 2)
        most = round(part / (1 - part) * other) if part < 1 else len(refuses)
        kept += sorted(kinds[kind], key=lambda i: (doubt[i], i))[: max(most, least)]
    return sorted(kept)


def best_and_worst(scores: Sequence[float]) -> tuple[int, int] | None:
    """The first index of the highest and of the lowest score; None where all are equal (self-rewarding)."""
    high, low = max(scores), min(scores)
    return None if high == low else (scores.index(high), scores.index(low))


def consensus(answers: Sequence[str]) -> int:
    """The index of the answer that has the most in common with the others: the highest sum of F1 over words; the first
    of equals. It is a majority vote for texts (minimum Bayes risk decoding, Kumar and Byrne 2004)."""
    words = [Counter(answer.split()) for answer in answers]
    return max(range(len(words)), key=lambda i: (sum(_f1(words[i], other) for other in words), -i))


def _f1(one: Counter[str], other: Counter[str]) -> float:
    total = one.total() + other.total()
    return 2 * (one & other).total() / total if total else 1.0


def _ranked(answers: Sequence[Candidate]) -> list[int]:
    return sorted(range(len(answers)), key=lambda k: (answers[k].perplexity, k))
