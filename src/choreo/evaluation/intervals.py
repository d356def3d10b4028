"""95 % intervals for rates and means. None has the width zero only because no error was seen.

An estimate is a plain dict, ready for JSON: {value, n, low, high, undetermined}. `n` counts the decided
outcomes, `undetermined` those that the judge left open. With n = 0, value, low and high are None (NaN is not JSON).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit

Estimate = dict[str, Any]

Z = 1.959963984540054
DRAWS = 2000
BLOCK = 2**20  # numbers that a bootstrap draws at once


def estimate(value: float | None, n: int, low: float | None, high: float | None, undetermined: int = 0) -> Estimate:
    """An estimate as a plain dict; see the module."""
    return {"value": value, "n": n, "low": low, "high": high, "undetermined": undetermined}


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927). Contains successes/n; inside [0, 1]; n must be positive."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"a share needs 0 <= successes <= n and n > 0, got {successes} of {n}")
    p, z2 = successes / n, Z * Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # The exact ends at 0 and n successes, which rounding would miss by 1e-17.
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def share(outcomes: Sequence[bool | None]) -> Estimate:
    """Share of True among the decided outcomes, with its Wilson interval; None is counted as undetermined."""
    decided = [bool(outcome) for outcome in outcomes if outcome is not None]
    n, undetermined = len(decided), len(outcomes) - len(decided)
    if n == 0:
        return estimate(None, 0, None, None, undetermined)
    return estimate(sum(decided) / n, n, *wilson(sum(decided), n), undetermined)


def bootstrap_mean(values: Sequence[float], seed: int = 0) -> Estimate:
    """Mean with the percentile bootstrap interval (Efron 1979), resampling `values` with replacement."""
    data = np.asarray(values, dtype=np.float64)
    if data.size == 0:
        return estimate(None, 0, None, None)
    mean = float(data.mean())
    if np.ptp(data) == 0.0:
        return estimate(mean, data.size, mean, mean)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // data.size)
    means = [
        data[rng.integers(data.size, size=(min(block, DRAWS - first), data.size))].mean(axis=1)
        for first in range(0, DRAWS, block)
    ]
    low, high = np.quantile(np.concatenate(means), (0.025, 0.975))
    return estimate(mean, data.size, float(low), float(high))


def bootstrap_weights(seen: int, unseen: int, part: float, seed: int = 0) -> np.ndarray:
    """Weights of the Bayesian bootstrap (Rubin 1981), float64 [DRAWS, seen + unseen]. In the mean each of `seen`
    units has the weight 1, and each of `unseen` ones, which stand for what was not seen, `part`."""
    concentration = np.concatenate([np.ones(seen), np.full(unseen, part)])
    return np.random.default_rng(seed).dirichlet(concentration, size=DRAWS) * concentration.sum()


def f1(asr: Estimate, orr: Estimate, seed: int = 0, draws: int = 20 * DRAWS) -> Estimate:
    """Harmonic mean of 1 − ASR and 1 − ORR (WaltzRL, section 5), from two `share` estimates.

    Interval: Bayesian bootstrap over the episodes of both suites (Rubin 1981; for yes/no outcomes a
    Beta draw), with half an episode of each outcome added. The plain bootstrap would call a suite
    without a single error certain: resampling what was seen cannot show what was not.
    """
    undetermined = asr["undetermined"] + orr["undetermined"]
    if asr["value"] is None or orr["value"] is None:
        return estimate(None, 0, None, None, undetermined)
    rng = np.random.default_rng(seed)

    def right(rate: Estimate) -> np.ndarray:
        errors = rate["value"] * rate["n"]
        return 1.0 - rng.beta(errors + 0.5, rate["n"] - errors + 0.5, size=draws)

    low, high = np.quantile(harmonic(right(asr), right(orr)), (0.025, 0.975))
    value = float(harmonic(np.float64(1.0 - asr["value"]), np.float64(1.0 - orr["value"])))
    return estimate(value, asr["n"] + orr["n"], min(value, float(low)), max(value, float(high)), undetermined)


def student_t(freedom: int) -> float:
    """97.5 % point of Student's t."""
    if freedom < 1:
        raise ValueError(f"degrees of freedom must be at least 1, got {freedom}")
    return float(stdtrit(freedom, 0.975))


def over_seeds(estimates: Sequence[Estimate], ceiling: float = math.inf, floor: float = 0.0) -> Estimate:
    """One estimate from the estimates of one quantity under several seeds: the mean of their values.

    The claim is about the method, not about one training run, so the interval is Student's t over the
    seeds' values. Few seeds can agree by chance, so it is never narrower than what the episodes alone
    allow (the seeds' own one-sided widths, added as independent errors). Cut to [floor, ceiling].
    A single seed keeps its own interval. n and undetermined are sums.
    """
    undetermined = sum(e["undetermined"] for e in estimates)
    known = [e for e in estimates if e["value"] is not None]
    if not known:
        return estimate(None, 0, None, None, undetermined)
    values = [e["value"] for e in known]
    k, mean, n = len(known), math.fsum(values) / len(known), sum(e["n"] for e in known)
    between = student_t(k - 1) * math.sqrt(sum((v - mean) ** 2 for v in values) / (k - 1) / k) if k > 1 else 0.0
    below = math.sqrt(sum((e["value"] - e["low"]) ** 2 for e in known)) / k
    above = math.sqrt(sum((e["high"] - e["value"]) ** 2 for e in known)) / k
    low, high = mean - max(between, below), mean + max(between, above)
    return estimate(mean, n, max(floor, low), min(ceiling, high), undetermined)


def harmonic(a: Any, b: Any) -> Any:
    """The harmonic mean of two numbers or arrays of one shape, none below 0; 0 where both are 0."""
    total = a + b
    return np.where(total > 0, 2 * a * b / np.where(total > 0, total, 1.0), 0.0)
