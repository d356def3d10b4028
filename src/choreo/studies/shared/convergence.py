"""When a training has converged: from the curves of several seeds to a number of steps.

A run gives one such number, so arms differ by seeds alone here, and no test by prompts can be made of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from choreo.evaluation.intervals import Estimate, estimate, over_seeds

SMOOTHING = 10  # steps of the trailing mean over a training curve
CONVERGED = 0.9  # of the final value

Curve = list[tuple[int, float]]


def training_f1(metrics: Iterable[Mapping[str, Any]]) -> Curve:
    """(step, harmonic mean of 1 − ASR and 1 − ORR over the step's own episodes), where a step has both figures."""
    curve = []
    for line in metrics:
        asr, orr = line.get("asr"), line.get("orr")
        if asr is not None and orr is not None:
            good, kind = 1.0 - asr, 1.0 - orr
            curve.append((int(line["step"]), 2 * good * kind / (good + kind) if good + kind > 0 else 0.0))
    return curve


def smoothed(curve: Curve) -> Curve:
    """Mean of each point and of up to SMOOTHING − 1 points before it."""
    means = []
    for i, (step, _) in enumerate(curve):
        last = [value for _, value in curve[max(0, i + 1 - SMOOTHING) : i + 1]]
        means.append((step, math.fsum(last) / len(last)))
    return means


def converged(curve: Curve) -> int | None:
    """The first step at which the smoothed curve reaches CONVERGED of its last value.

    None where the smoothed curve does not rise, or the curve is shorter than two windows of smoothing. Means over less
    than a window do not count.
    """
    means = smoothed(curve)[SMOOTHING - 1 :]
    if len(means) <= SMOOTHING or means[-1][1] <= means[0][1]:
        return None
    return next(step for step, value in means if value >= CONVERGED * means[-1][1])


def convergence(curves: Iterable[Curve]) -> Estimate:
    """Steps to convergence, mean over the seeds whose curve converged; `undetermined` counts the other seeds.

    The interval of one seed is as wide as the smoothing window.
    """
    found = [converged(curve) for curve in curves]
    steps, missing = [float(step) for step in found if step is not None], found.count(None)
    mean = over_seeds([estimate(step, 1, step - SMOOTHING / 2, step + SMOOTHING / 2) for step in steps])
    return mean | {"undetermined": missing}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds at every step that all of them have."""
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(step, math.fsum(table[step] for table in tables) / len(tables)) for step in shared]
