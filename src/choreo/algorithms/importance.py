"""Importance weights for what another program sampled: π_old / π_sampler per token, truncated.

The update's ratio is π_θ / π_old, both by the learner's arithmetic. That the ids were drawn from π_sampler is corrected
for by w = min(π_old / π_sampler, C) on every token of the policy loss (truncated importance sampling: Ionides 2008; for
language models Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training"). As w > 0,
w · min(ρA, clip(ρ)A) = min(ρ·wA, clip(ρ)·wA): the weight goes into the advantage, and no loss knows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from choreo.types import Sample

LARGEST = 700.0  # nats; beyond it a ratio is no float64


def truncated(samples: Sequence[Sample], cap: float) -> list[Sample]:
    """The samples, with the advantage of every token times its weight, which is at most `cap`."""
    return [_weighted(sample, cap) for sample in samples]


def mismatch(samples: Sequence[Sample], cap: float) -> dict[str, float]:
    """The figures of π_old / π_sampler before truncation, by name and agent: over the action tokens its mean, which is
    1 but for chance where the engines agree, its largest value, and the share of tokens whose ratio exceeds `cap`."""
    figures: dict[str, float] = {}
    for agent in dict.fromkeys(sample.agent for sample in samples):
        ratios = np.concatenate([_ratios(sample)[list(sample.actions)] for sample in samples if sample.agent == agent])
        figures |= {
            f"sampler_ratio/{agent}": float(ratios.mean()),
            f"sampler_ratio_max/{agent}": float(ratios.max()),
            f"truncated/{agent}": float((ratios > cap).mean()),
        }
    return figures


def _weighted(sample: Sample, cap: float) -> Sample:
    weights = np.minimum(_ratios(sample), cap)
    return replace(sample, advantages=tuple((weights * np.asarray(sample.advantages, np.float64)).tolist()))


def _ratios(sample: Sample) -> NDArray[np.float64]:
    """float64 [ids]: π_old / π_sampler."""
    gap = np.asarray(sample.logprobs, np.float64) - np.asarray(sample.sampler, np.float64)
    return np.exp(np.minimum(gap, LARGEST))
