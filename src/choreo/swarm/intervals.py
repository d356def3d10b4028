"""Percentile bootstrap over interactions, for one run's metrics.

Interactions of one run share agents, reputations and an order, so this says how much of a figure rests on few of
them, not how it would vary over runs. That is what seeds are for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from choreo.swarm.metrics import Measured
from choreo.swarm.records import Interaction


@dataclass(frozen=True, slots=True)
class Interval:
    """value with its 95 % interval; NaN where it is not defined. defined: share of resamples in which it was."""

    value: float
    low: float
    high: float
    n: int
    defined: float


def bootstrap(
    metric: Callable[[Sequence[Interaction]], Measured], interactions: Sequence[Interaction],
    seed: int = 0, draws: int = 1000,
) -> Interval:  # fmt: skip
    """The metric with its 2.5 % and 97.5 % points over `draws` resamples with replacement (Efron 1979).

    A resample without, say, a rejected interaction has no quality gap; it is left out, and `defined` says how many
    were not.
    """
    found = metric(interactions)
    if math.isnan(found.value):
        return Interval(math.nan, math.nan, math.nan, found.n, 0.0)
    rng, n = np.random.default_rng(seed), len(interactions)
    drawn = (metric([interactions[k] for k in rng.integers(n, size=n)]).value for _ in range(draws))
    values = [value for value in drawn if not math.isnan(value)]
    low, high = np.quantile(values, (0.025, 0.975)) if values else (math.nan, math.nan)
    return Interval(found.value, float(low), float(high), found.n, len(values) / draws)
