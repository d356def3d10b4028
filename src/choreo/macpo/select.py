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


def within_quota(candidates: Sequence[Sequence[Candidate]], quota: float, keep: int = 1) -> list[list[int]]:
    """`most_likely`, with refusals for at most the share `quota` of all prompts (this project's).

    Low perplexity favours what is familiar, and nothing is as familiar as a stock refusal; where positives turn into
    refusals round after round, the student does too. Here a prompt keeps its refusals only where the case for them
    is among the strongest: prompts are ranked by log-perplexity of the best refusal less that of the best answer that
    is none, lowest first, and the first `quota` of them may be refused. A prompt for which every answer is a
    refusal takes its best one: there is nothing else to learn from, and it uses up the quota first.
    """
    only_refusals = [all(c.refuses for c in answers) for answers in candidates]
    allowed = max(0, round(quota * len(candidates)) - sum(only_refusals))
    cases = sorted(
        (case, i) for i, answers in enumerate(candidates) if (case := _case_for_refusal(answers)) is not None
    )
    refused = {i for case, i in cases[:allowed] if case < 0}
    chosen = []
    for i, answers in enumerate(candidates):
        wants = i in refused or only_refusals[i]
        chosen.append([k for k in _ranked(answers) if answers[k].refuses == wants][:keep])
    return chosen


def best_and_worst(scores: Sequence[float]) -> tuple[int, int] | None:
    """The first index of the highest and of the lowest score; None where all are equal (self-rewarding)."""
    high, low = max(scores), min(scores)
    return None if high == low else (scores.index(high), scores.index(low))


def _ranked(answers: Sequence[Candidate]) -> list[int]:
    return sorted(range(len(answers)), key=lambda k: (answers[k].perplexity, k))


def _case_for_refusal(answers: Sequence[Candidate]) -> float | None:
    """log PPL of the best refusal less that of the best other answer; None unless there are both."""
    refusals = [c.perplexity for c in answers if c.refuses]
    others = [c.perplexity for c in answers if not c.refuses]
    return math.log(min(refusals)) - math.log(min(others)) if refusals and others else None
