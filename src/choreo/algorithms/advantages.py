"""Advantages: pure functions of one signature, samples in, the same samples with `advantages` out.

    estimator(samples, *, beta=0.0, values=None)

One more is a function here and a line in ESTIMATORS; nothing else knows their names. A user's own is such a function,
or an `Estimator`, and a recipe names it: learning.estimator = "mine.py:function".

Every one of them turns a sample's reward R into a score R', and the score into returns per token
    r_i = 1[i last]·R' − β·k1_i,   k1_i = log π_old − log π_ref,   G_i = Σ_{s≥i} r_s
(REINFORCE++, arXiv 2501.03262, equations 4 and 5). They differ in the score, and in whether G is
normalised. `beta` is the KL in the reward; 0 where the KL is a loss (k2) or absent, and then `reference`
is not looked at. `values` (float, one per sample) is an optional learnt baseline: R − V comes first.

A forced token of a constrained turn has k1 = 0, and counts in no mean and no deviation.

Samples are never pooled over agents (Dr. MAS, arXiv 2602.08847). All arithmetic is float64.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from choreo.config import parts
from choreo.types import Sample

Floats = NDArray[np.float64]
FLOOR = 1e-8  # least variance, as in the REINFORCE++ reference: √max(σ², 1e-8)


class Advantages(Protocol):
    """The signature of every estimator's function."""

    def __call__(
        self, samples: Sequence[Sample], *, beta: float = 0.0, values: Sequence[float] | None = None
    ) -> list[Sample]:
        """The same samples, in order, each with one finite advantage per id.

        beta: the coefficient of the KL in the reward. values: a baseline V per sample, or None.
        """
        ...


@dataclass(frozen=True)
class Estimator:
    """How advantages are computed, and what the policy loss is divided by.

    function: computes the advantages.
    divisor: what the sum of the loss over a batch is divided by. "tokens": the number of action tokens; "sequences":
        each sequence's own length, then the number of sequences; "longest": for each sequence the number of new tokens
        that the recipe allows the agent; a number: that many tokens for each sequence.
    grouped: the score is relative to a group of samples, so that a group whose rewards are equal has no gradient.
    """

    function: Advantages
    divisor: Literal["tokens", "sequences", "longest"] | int = "tokens"
    grouped: bool = False

    def __call__(
        self, samples: Sequence[Sample], *, beta: float = 0.0, values: Sequence[float] | None = None
    ) -> list[Sample]:
        """As `Advantages`. Raises ValueError where the function does not give what it has to."""
        found = self.function(samples, beta=beta, values=values)
        name = getattr(self.function, "__name__", "estimator")
        if len(found) != len(samples):
            raise ValueError(f"{name} gave {len(found)} samples for {len(samples)}")
        for sample in found:
            if len(sample.advantages) != len(sample.ids):
                raise ValueError(f"{name} gave {len(sample.advantages)} advantages for {len(sample.ids)} ids")
            if not np.isfinite(sample.advantages).all():
                raise ValueError(f"{name} gave an advantage that is not finite, in a sample of {sample.group}")
        return found

    def divide(self, longest: int) -> Literal["tokens", "sequences"] | int:
        """The divisor as `PolicyLoss` takes it. longest: most new tokens of the agent."""
        return longest if self.divisor == "longest" else self.divisor


def estimator(name: str) -> Estimator:
    """The estimator of this name, or `module:object` (see `choreo.registry`). Raises BadInput where there is none."""
    found = parts.ESTIMATORS.get(name)
    return found if isinstance(found, Estimator) else Estimator(found)


def reinforce_pp(
    samples: Sequence[Sample], *, beta: float = 0.0, values: Sequence[float] | None = None
) -> list[Sample]:
    """REINFORCE++: A = (G − μ)/√max(σ², 1e-8), μ and population σ² per agent over all of its tokens.

    Over tokens, as published: long actions weigh more in μ and σ than short ones.
    """
    return _fill(samples, _normalised(samples, _returns(samples, _rewards(samples, values), beta)))


def reinforce_pp_baseline(
    samples: Sequence[Sample], *, beta: float = 0.0, values: Sequence[float] | None = None
) -> list[Sample]:
    """REINFORCE++ with group baseline: R' = R − mean of the group, then normalised per agent as above."""
    scores = _by_group(samples, _rewards(samples, values), _centred)
    return _fill(samples, _normalised(samples, _returns(samples, scores, beta)))


def grpo(samples: Sequence[Sample], *, beta: float = 0.0, values: Sequence[float] | None = None) -> list[Sample]:
    """GRPO (arXiv 2402.03300): R' = (R − mean)/√max(σ², 1e-8), population σ², per group."""
    scores = _by_group(samples, _rewards(samples, values), lambda r: _centred(r) / _deviation(r))
    return _fill(samples, _returns(samples, scores, beta))


def rloo(samples: Sequence[Sample], *, beta: float = 0.0, values: Sequence[float] | None = None) -> list[Sample]:
    """RLOO (arXiv 2402.14740): R' = R − mean of the others in the group; 0 where there are no others."""
    scores = _by_group(samples, _rewards(samples, values), lambda r: _centred(r) * len(r) / max(len(r) - 1, 1))
    return _fill(samples, _returns(samples, scores, beta))


def dr_grpo(samples: Sequence[Sample], *, beta: float = 0.0, values: Sequence[float] | None = None) -> list[Sample]:
    """Dr. GRPO (arXiv 2503.20783): R' = R − mean of the group, no deviation.

    Its loss is divided by a constant length, the most that an agent may write (see ESTIMATORS).
    """
    scores = _by_group(samples, _rewards(samples, values), _centred)
    return _fill(samples, _returns(samples, scores, beta))


ESTIMATORS: dict[str, Estimator] = {
    "reinforce++": Estimator(reinforce_pp),
    "reinforce++baseline": Estimator(reinforce_pp_baseline, grouped=True),
    "grpo": Estimator(grpo, divisor="sequences", grouped=True),
    "rloo": Estimator(rloo, grouped=True),
    "dr-grpo": Estimator(dr_grpo, divisor="longest", grouped=True),
}


def flat_groups(samples: Sequence[Sample]) -> dict[str, tuple[int, int]]:
    """Per agent: (groups whose rewards are all equal, groups), of two samples or more.

    From the first the group baselines learn nothing; nor do they from a sample that is alone in its group.
    """
    counts: dict[str, tuple[int, int]] = {}
    for rows in _indices((sample.agent, sample.group) for sample in samples).values():
        if len(rows) < 2:
            continue
        agent = samples[rows[0]].agent
        flat, total = counts.get(agent, (0, 0))
        counts[agent] = (flat + (len({samples[i].reward for i in rows}) == 1), total + 1)
    return counts


def _rewards(samples: Sequence[Sample], values: Sequence[float] | None) -> Floats:
    rewards = np.array([sample.reward for sample in samples], dtype=np.float64)
    if values is None:
        return rewards
    if len(values) != len(samples):
        raise ValueError(f"{len(values)} values for {len(samples)} samples")
    return rewards - np.asarray(values, dtype=np.float64)


def _by_group(samples: Sequence[Sample], rewards: Floats, score: Callable[[Floats], Floats]) -> Floats:
    scores = np.empty_like(rewards)
    for rows in _indices((sample.agent, sample.group) for sample in samples).values():
        scores[rows] = score(rewards[rows])
    return scores


def _centred(rewards: Floats) -> Floats:
    return rewards - rewards.mean()


def _deviation(numbers: Floats) -> float:
    return float(np.sqrt(max(numbers.var(), FLOOR)))


def _returns(samples: Sequence[Sample], scores: Floats, beta: float) -> list[Floats]:
    """G per token of every sample."""
    returns = []
    for sample, score in zip(samples, scores, strict=True):
        tokens = np.zeros(len(sample.ids))
        if beta:
            tokens -= beta * _k1(sample)
        tokens[-1:] += score
        returns.append(tokens[::-1].cumsum()[::-1])
    return returns


def _k1(sample: Sample) -> Floats:
    if not len(sample.ids) == len(sample.logprobs) == len(sample.reference):
        raise ValueError(
            f"sample of {sample.group}: {len(sample.ids)} ids, {len(sample.logprobs)} log-probabilities "
            f"and {len(sample.reference)} of the reference; KL in the reward needs one of each per token"
        )
    k1 = np.asarray(sample.logprobs, np.float64) - np.asarray(sample.reference, np.float64)
    if not np.isfinite(k1).all():
        # One such token would turn μ, and so every advantage of the agent, into NaN.
        raise ValueError(f"sample of {sample.group}: a log-probability is not finite")
    return k1


def _normalised(samples: Sequence[Sample], returns: list[Floats]) -> list[Floats]:
    out = list(returns)
    for rows in _indices(sample.agent for sample in samples).values():
        tokens = np.concatenate([returns[i][samples[i].actions] for i in rows])  # forced tokens are no actions
        if len(tokens):
            mean, deviation = tokens.mean(), _deviation(tokens)
            for i in rows:
                out[i] = (returns[i] - mean) / deviation
    return out


def _fill(samples: Sequence[Sample], advantages: list[Floats]) -> list[Sample]:
    return [replace(sample, advantages=tuple(a.tolist())) for sample, a in zip(samples, advantages, strict=True)]


def _indices(names: Iterable[Hashable]) -> dict[Hashable, list[int]]:
    """Positions of every name, in order of first appearance."""
    places: dict[Hashable, list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        places[name].append(i)
    return places
