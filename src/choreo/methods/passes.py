"""What a training computes, as data: `choreo plan` turns it into time. Nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["sample", "score", "learn"]


@dataclass(frozen=True, slots=True)
class Pass:
    """A batch of work that one model does, `times` times in a run.

    sample: `rows` turns of `new` tokens are written after contexts of `context` tokens, one token of every row at a
        time. distinct: how many of the contexts differ; only these are read.
    score: log-probabilities of `rows` turns, without a gradient. Those of a server's samples are scored here.
    learn: one update by `rows` turns.
    new is the most tokens of a turn; written: the share of it that a turn has on average.
    whose: of the models that a method plans with (`PlannedModel.whose`).
    """

    whose: str
    kind: Kind
    rows: float
    context: float
    new: float
    times: float
    distinct: float | None = None
    written: float = 1.0


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of contexts, on average over the prompts that are trained on.

    prompt: of a prompt with the conversation before it. answer, review: of what frames an answer's context and a
    review's: marks of turns, system prompts, instructions. revise: of what a round of feedback adds beside the answer
    and the feedback. written: the share of the most tokens that a turn has.
    """

    prompt: float = 0.0
    answer: float = 0.0
    review: float = 0.0
    revise: float = 0.0
    written: float = 1.0
