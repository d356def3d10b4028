"""How strong each of several systems is, from comparisons of two (Bradley and Terry 1952).

P(i beats j) = 1 / (1 + exp(θ_j − θ_i)). The strengths θ are natural log odds with the mean 0. A tie is half a win for
each side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from choreo.evaluation.intervals import Estimate, bootstrap_weights, estimate

STEPS, LONGEST = 200, 2.0  # Newton's steps at most, and the most that one changes a strength by


def strengths(wins: np.ndarray, n: int, seed: int = 0) -> list[Estimate]:
    """The strength of every system as an estimate with its 95 % interval; None where no finite strengths fit best.

    wins: float [prompts, k, k]; wins[p, i, j] is how often i beat j on prompt p, ties as halves. n: the comparisons,
    for the estimates. Interval: Bayesian bootstrap over prompts (Rubin 1981), so that what raters say of one prompt
    stays together, with half a prompt more that each side of a pair won: what was not seen is not certain.
    """
    k = wins.shape[1]
    total = wins.sum(axis=0)
    if not exists(total):
        return [estimate(None, 0, None, None, n) for _ in range(k)]
    unseen = np.zeros((k * k, k, k))
    unseen.reshape(k * k, k * k)[np.diag_indices(k * k)] = (total + total.T > 0).ravel()
    weights = bootstrap_weights(len(wins), k * k, 0.5, seed)
    drawn = best_fit(np.einsum("dp,pij->dij", weights, np.concatenate([wins, unseen])))
    best = best_fit(total[None])[0]
    low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    ends = zip(best, np.minimum(low, best), np.maximum(high, best), strict=True)
    return [estimate(float(value), n, float(below), float(above)) for value, below, above in ends]


def exists(wins: np.ndarray) -> bool:
    """Whether finite strengths fit best: no group of systems won, or lost, every comparison with the others (Ford
    1957). wins: float [k, k]."""
    groups, _ = connected_components(wins > 0, directed=True, connection="strong")
    return bool(groups == 1)


def best_fit(wins: np.ndarray) -> np.ndarray:
    """The strengths of the highest likelihood, float [n, k] with rows of the mean 0, of n tables of wins, float
    [n, k, k], by Newton's method. Finite strengths must exist (`exists`). Raises ValueError where it does not arrive.
    """
    wins = wins * (1.0 - np.eye(wins.shape[-1]))
    met, won = wins + wins.transpose(0, 2, 1), wins.sum(axis=2)
    found = np.zeros(won.shape)
    for _ in range(STEPS):
        chance = expit(found[:, :, None] - found[:, None, :])
        slope = won - (met * chance).sum(axis=2)
        if np.abs(slope).max() <= 1e-9 * met.sum(axis=(1, 2)).max():
            return np.asarray(found - found.mean(axis=1, keepdims=True))
        curve = met * chance * (1.0 - chance)
        # The likelihood says nothing about the mean. Adding 1 to all cells fixes it, and changes no difference.
        bent = np.eye(won.shape[1]) * curve.sum(axis=2)[:, :, None] - curve + 1.0
        step = np.linalg.solve(bent, slope[:, :, None])[:, :, 0]
        found += step * np.minimum(1.0, LONGEST / np.maximum(np.abs(step).max(axis=1, keepdims=True), 1e-300))
    raise ValueError("Bradley-Terry: no strengths found; are there any that fit best?")


def tally(choices: Sequence[tuple[int, int, int, float]], prompts: int, systems: int) -> np.ndarray:
    """The wins that `strengths` takes. choices: (prompt, i, j, part); part: 1 where i won, 0 where j, 0.5 of a tie."""
    wins = np.zeros((prompts, systems, systems))
    for prompt, i, j, part in choices:
        wins[prompt, i, j] += part
        wins[prompt, j, i] += 1.0 - part
    return wins
