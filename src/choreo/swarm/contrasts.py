"""From paired seeds to a verdict on every claim: pure functions.

A sample is {group: {seed: value}}. A group is what was trained once (a run); its seeds replay the same answers in
another order and selection, so they vary less than trainings or prompts do: over one group an interval describes that
run on those prompts, and no more. Where there are several groups, a difference has to
hold between them too: the wider of the two intervals is given, and the larger of the two p values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from choreo.evaluation.paired import ALPHA, by_student

Sample = Mapping[str, Mapping[int, float]]
ClaimVerdict = Literal["supported", "refuted", "inconclusive", "not testable"]


@dataclass(frozen=True, slots=True)
class MeanInterval:
    """A mean with its 95 % interval (Student's t). n: values; groups: trainings that gave any; played: runs, of which
    those without a value are not in n. NaN with n = 0 where there is none."""

    value: float
    low: float
    high: float
    n: int
    groups: int
    played: int


@dataclass(frozen=True, slots=True)
class ClaimContrast:
    """arm − baseline over paired seeds. effect: mean over standard deviation of the differences (Cohen's d_z).

    p: two-sided, of the difference against the margin that the claim names; NaN with fewer than two pairs.
    errors: (standard error, number of values that it is of), over the pairs and over the groups' means; p is by both.
    """

    difference: MeanInterval
    effect: float
    p: float
    beyond: bool  # on the side of the margin that the claim is on
    errors: tuple[tuple[float, int], ...]


def mean_interval(sample: Sample) -> MeanInterval:
    """Mean over all values, its interval over seeds and, with two groups or more, over the groups' means."""
    played = sum(map(len, sample.values()))
    rows = [[v for v in seeds.values() if not math.isnan(v)] for seeds in sample.values()]
    rows = [row for row in rows if row]
    values = [v for row in rows for v in row]
    if not values:
        return MeanInterval(math.nan, math.nan, math.nan, 0, 0, played)
    mean = math.fsum(values) / len(values)
    errors = [_quantile(n - 1) * error for error, n in _errors(rows)]
    half = max(errors, default=math.nan)
    return MeanInterval(mean, mean - half, mean + half, len(values), len(rows), played)


def contrast(arm: Sample, baseline: Sample, direction: str, margin: float) -> ClaimContrast:
    """Tests "`arm` is lower (higher, the same) than `baseline` by more than (within) `margin`" on their pairs."""
    pairs = {
        group: {seed: seeds[seed] - baseline[group][seed] for seed in seeds.keys() & baseline[group].keys()}
        for group, seeds in arm.items()
        if group in baseline
    }
    rows = [[d for _, d in sorted(seeds.items()) if not math.isnan(d)] for seeds in pairs.values()]
    rows = [row for row in rows if row]
    found = mean_interval(pairs)
    # How far the difference lies beyond the margin, on the side that the claim is on.
    value = found.value
    ahead = {"lower": -margin - value, "higher": value - margin, "same": margin - abs(value)}[direction]
    errors = _errors(rows)
    return ClaimContrast(found, _effect([d for row in rows for d in row]), _p(ahead, errors), ahead > 0, tuple(errors))


def smallest_told(found: ClaimContrast, alpha: float) -> float:
    """How far from its margin a difference has to lie to be told from it in four of five repetitions, at level alpha.
    NaN with fewer than two pairs."""
    return max((by_student(error, n - 1, alpha) for error, n in found.errors), default=math.nan)


def claim_verdict(found: ClaimContrast, adjusted: float) -> ClaimVerdict:
    """Supported or refuted where the difference is told from the margin, by its side; else inconclusive."""
    if math.isnan(adjusted):
        return "not testable"
    if adjusted >= ALPHA:
        return "inconclusive"
    return "supported" if found.beyond else "refuted"


def _errors(rows: Sequence[Sequence[float]]) -> list[tuple[float, int]]:
    """(standard error of the mean, n) over all values, and over the groups' means."""
    flat = [v for row in rows for v in row]
    levels = [flat, [math.fsum(row) / len(row) for row in rows]]
    return [(_deviation(level) / math.sqrt(len(level)), len(level)) for level in levels if len(level) > 1]


def _p(ahead: float, errors: Sequence[tuple[float, int]]) -> float:
    from scipy.stats import t

    if not errors:
        return math.nan
    # Without any spread a difference is what it is: told from the margin unless it lies on it.
    return max(float(2 * t.sf(abs(ahead) / e, n - 1)) if e > 0 else float(ahead == 0) for e, n in errors)


def _quantile(freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(1 - ALPHA / 2, freedom))


def _effect(values: Sequence[float]) -> float:
    deviation = _deviation(values) if len(values) > 1 else 0.0
    return math.fsum(values) / len(values) / deviation if deviation else math.nan


def _deviation(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1))
