"""Logistic regression with few rows and many features, solved among the rows (numpy alone, the same on every run).

With rows x and weights w = Σ aᵢ xᵢ, the penalised likelihood Σ sᵢ log p(yᵢ) − |w|²/(2C) depends on the Gram matrix of
the rows alone, so a thousand rows take a thousand unknowns whatever the number of features (Zhu and Hastie 2005).
"""

from __future__ import annotations

import numpy as np


def fit(gram: np.ndarray, labels: np.ndarray, weights: np.ndarray, penalty: float, steps: int = 30) -> np.ndarray:
    """The a of f = gram @ a, by Newton's method.

    gram: float64 (n, n), inner products of the rows, a large constant in place of a free intercept included.
    labels: 0 or 1 (n,). weights: how much each row counts (n,). penalty: C; a larger one fits closer.
    """
    a, f = np.zeros(len(labels)), np.zeros(len(labels))
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(f, -30, 30)))
        curvature = np.maximum(weights * p * (1 - p), 1e-6)
        target = f + weights * (labels - p) / curvature
        new = np.linalg.solve(gram + np.diag(1 / (penalty * curvature)), target)
        moved, a = float(np.abs(new - a).max()), new
        f = gram @ a
        if moved < 1e-4 * max(1.0, float(np.abs(a).max())):
            break
    return a
