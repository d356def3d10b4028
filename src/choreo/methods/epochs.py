"""Passes over data for supervised phases: the order of the rows, and the learning rate of every update."""

from __future__ import annotations

import math
import random
from typing import NamedTuple


class PlannedUpdate(NamedTuple):
    """places: of the rows that one update learns from. lr: its learning rate."""

    places: list[int]
    lr: float


def planned_epochs(rows: int, *, epochs: int, batch: int, lr: float, key: str) -> list[list[PlannedUpdate]]:
    """The updates of every epoch: each takes all rows once, shuffled by (key, epoch), in batches of at most `batch`.

    The learning rate falls from `lr` to nothing as half a cosine over all updates.
    """
    updates = epochs * math.ceil(rows / batch)
    planned: list[list[PlannedUpdate]] = []
    done = 0
    for epoch in range(epochs):
        order = list(range(rows))
        random.Random(f"{key}/{epoch}").shuffle(order)
        planned.append([])
        for start in range(0, rows, batch):
            rate = lr * 0.5 * (1 + math.cos(math.pi * done / updates))
            planned[-1].append(PlannedUpdate(order[start : start + batch], rate))
            done += 1
    return planned
