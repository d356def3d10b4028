"""Chance that belongs to a name: one number from a key, the same in every process, order and resume."""

from __future__ import annotations

from choreo.engine.noise import seed_of


def uniform(*key: int | str) -> float:
    """A number in [0, 1), 53 bits, a fixed function of `key` alone."""
    return (seed_of(key) >> 11) * 2.0**-53
