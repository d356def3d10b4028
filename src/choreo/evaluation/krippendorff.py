"""Whether raters agree beyond chance: Krippendorff's alpha for labels without an order (Krippendorff 2011)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np

from choreo.evaluation.intervals import Estimate, bootstrap_weights, estimate


def alpha(units: Sequence[Sequence[Hashable]], seed: int = 0) -> Estimate:
    """α = 1 − D_o/D_e as an estimate with its 95 % interval; None where all labels are one, so that none could differ.

    units: for everything that was labelled, the labels it got. Of a unit with one label nothing can be said; it is not
    in n, the number of units. Interval: Bayesian bootstrap over units (Rubin 1981), with two units more, shared out
    evenly among all pairs of labels: what was not seen is not certain.
    """
    several = [Counter(unit) for unit in units if len(unit) > 1]
    labels = sorted({label for unit in several for label in unit}, key=str)
    if len(labels) < 2:
        return estimate(None, 0, None, None, len(several))
    counts = np.array([[unit[label] for label in labels] for unit in several], dtype=np.float64)
    k = len(labels)
    unseen = (np.eye(k)[:, None] + np.eye(k)[None]).reshape(k * k, k)
    value = float(_of(np.ones((1, len(several))), counts)[0])
    drawn = _of(bootstrap_weights(len(several), k * k, 2 / k**2, seed), np.concatenate([counts, unseen]))
    low, high = np.quantile(drawn, (0.025, 0.975))
    return estimate(value, len(several), min(value, float(low)), max(value, float(high)))


def _of(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """α of every row of weights. weights: float [n, units]. counts: float [units, labels]."""
    size = counts.sum(axis=1)
    apart = (size**2 - (counts**2).sum(axis=1)) / (size - 1)  # ordered pairs that differ, of a unit's weight
    each = weights @ counts
    n = each.sum(axis=1)
    return np.asarray(1.0 - (n - 1) * (weights @ apart) / (n**2 - (each**2).sum(axis=1)))
