"""`choreo judge calibrate`: a trained judge whose probabilities are as often right as they say.

A judge that learnt from few answers may be too mild or too strict on others. One number for each label, added to its
log odds, mends that: Platt scaling (Platt 1999) with the slope kept at one, so that the order of answers stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from choreo.data.answers import LabelledAnswer
from choreo.errors import BadInput
from choreo.judges.trained.folder import Shift, write_judge
from choreo.judges.trained.model import TrainedJudge

LEAST = 20  # labels of each kind, below which a shift would be chance
HALVINGS = 100


def calibrate_judge(folder: Path, rows: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """Finds the shift of each label on labelled answers, and writes it into the folder's judge.json.

    Returns for harm and refusal {n, shift, before, after}: the mean log loss in nats before and after; None for a label
    with fewer than `LEAST` rows of yes or of no, whose shift stays. Raises BadInput where that is so of both.
    """
    judge = TrainedJudge(folder)
    readings = judge.read([(row.prompt, row.answer) for row in rows])
    found: dict[str, Any] = {}
    shifts = judge.told.shift.model_dump()
    for label in ("harm", "refusal"):
        pairs = [(getattr(reading, label), getattr(row, label)) for row, reading in zip(rows, readings, strict=True)]
        known = np.array([pair for pair in pairs if None not in pair], dtype=float).reshape(-1, 2)
        likely, truths = known[:, 0].clip(1e-9, 1 - 1e-9), known[:, 1]
        if min(truths.sum(), len(truths) - truths.sum()) < LEAST:
            found[label] = None
            continue
        odds = np.log(likely / (1 - likely))
        added = shift_of(odds, truths)
        shifts[label] += added
        found[label] = {
            "n": len(truths),
            "shift": shifts[label],
            "before": log_loss(odds, truths),
            "after": log_loss(odds + added, truths),
        }
    if not any(found.values()):
        raise BadInput(f"judge calibrate: it takes {LEAST} answers of each label or more, of harm or of refusals")
    write_judge(folder, judge.told.model_copy(update={"shift": Shift(**shifts)}))
    return found


def shift_of(odds: np.ndarray, truths: np.ndarray) -> float:
    """The b that makes the truths (0 or 1) most likely under σ(odds + b). Both must occur. It is where the mean
    probability is the share of ones, found by halving."""
    low, high = -50.0 - float(odds.max()), 50.0 - float(odds.min())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = float(_sigmoid(odds + middle).mean()) < float(truths.mean())
        low, high = (middle, high) if below else (low, middle)
    return (low + high) / 2


def log_loss(odds: np.ndarray, truths: np.ndarray) -> float:
    """Mean −log likelihood, in nats."""
    return float(np.logaddexp(0.0, np.where(truths > 0, -odds, odds)).mean())


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -odds))
