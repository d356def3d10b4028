"""Randomness that belongs to the sequence, not to the batch.

A counter-based generator: the uniform number of a position is a hash of (request key, position).
It keeps no state, so batch size, order, compaction and ranks cannot change what is sampled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(keys: Sequence[tuple[int | str, ...]], positions: int) -> np.ndarray:
    """float64 [len(keys), positions] in [0, 1), each row the stream of its key."""
    bits = splitmix64(np.array([seed_of(key) for key in keys], dtype=np.uint64), positions)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def splitmix64(seeds: np.ndarray, n: int) -> np.ndarray:
    """uint64 [len(seeds), n]: the first n outputs of SplitMix64 (Steele et al. 2014) for each uint64 seed."""
    x = seeds[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN  # wraps modulo 2^64
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def seed_of(key: tuple[int | str, ...]) -> int:
    """64 bits of a key. It is hashed as JSON, in which 1 and "1" differ, and so do ("a", "b") and ("ab",)."""
    return int.from_bytes(blake2b(json.dumps(key).encode(), digest_size=8).digest(), "little")
