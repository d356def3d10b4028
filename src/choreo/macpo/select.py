"""Which answers are learnt from. Pure functions over plain data; what a choice needs is measured before it is made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One answer to a prompt. perplexity: under the one who chooses. refuses: by its words alone."""

    writer: str
    perplexity: float
    refuses: bool


def perplexity(logprobs: Sequence[float]) -> float:
    """exp(−mean log π) over an answer's tokens (MACPO, section 3); infinite for an answer without tokens."""
    return math.exp(-math.fsum(logprobs) / len(logprobs)) if logprobs else math.inf


def most_likely(candidates: Sequence[Sequence[Candidate]], keep: int = 1) -> list[list[int]]:
    """Per prompt the indices of the `keep` answers of lowest perplexity, lowest first (MACPO, section 3)."""
    return [_ranked(answers)[:keep] for answers in candidates]


@dataclass(frozen=True, slots=True)
class Sides:
    """What a pair teaches: whether its two sides refuse. doubt: log PPL of the chosen less that of the rejected side,
    under the one who learns: the lower, the more it is of the same mind."""

    chosen_refuses: bool
    rejected_refuses: bool
    doubt: float


def balanced(pairs: Sequence[Sides]) -> list[int]:
    """Indices of pairs of which as many teach to refuse as teach not to (this project's), in order.

    DPO learns what all its pairs share before it learns what tells prompts apart. Where chosen answers refuse more
    often than rejected ones do, on whatever prompts, that is to refuse; positives are then written by a policy that
    refuses more, and so on. Of the two kinds of pair with one refusal, chosen or rejected, the larger one is cut to the
    size of the other, the most doubtful first. Pairs that both refuse or both do not are kept.
    """
    kinds: dict[bool, list[tuple[float, int]]] = {True: [], False: []}
    kept = []
    for i, pair in enumerate(pairs):
        if pair.chosen_refuses == pair.rejected_refuses:
            kept.append(i)
        else:
            kinds[pair.chosen_refuses].append((pair.doubt, i))
    fewer = min(map(len, kinds.values()))
    return sorted([*kept, *(i for ranked in kinds.values() for _, i in sorted(ranked)[:fewer])])


def best_and_worst(scores: Sequence[float]) -> tuple[int, int] | None:
    """The first index of the highest and of the lowest score; None where all are equal (self-rewarding)."""
    high, low = max(scores), min(scores)
    return None if high == low else (scores.index(high), scores.index(low))


def _ranked(answers: Sequence[Candidate]) -> list[int]:
    return sorted(range(len(answers)), key=lambda k: (answers[k].perplexity, k))
