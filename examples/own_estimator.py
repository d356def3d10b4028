"""An advantage estimator of your own: samples in, the same samples with `advantages` out, one number per token.

    python examples/own_estimator.py

A recipe names it as `estimator = "own_estimator.py:RANKS"` under [learning].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import choreo


def by_rank(
    samples: Sequence[choreo.Sample], *, beta: float = 0.0, values: Sequence[float] | None = None
) -> list[choreo.Sample]:
    """A = 2·rank − 1 in [−1, 1]: where a sample's reward stands among those of its agent in the batch. Equal rewards
    share the mean of their ranks. The KL (`beta`) is left out."""
    made = []
    for sample in samples:
        rewards = [other.reward for other in samples if other.agent == sample.agent]
        below = sum(reward < sample.reward for reward in rewards)
        equal = sum(reward == sample.reward for reward in rewards)
        rank = (below + 0.5 * equal) / len(rewards)
        made.append(replace(sample, advantages=(2 * rank - 1,) * len(sample.ids)))
    return made


RANKS = choreo.Estimator(by_rank, divisor="tokens")


def main(out: str = "runs/own-estimator", overrides: Sequence[str] = ("learning.steps=20",)) -> choreo.Run:
    recipe = {"name": "own-estimator", "learning": {"estimator": f"{__file__}:RANKS"}}
    run = choreo.train(recipe, out, [choreo.ProgressBar()], overrides=overrides)
    print(run.summary["systems"]["waltz"]["f1"])
    return run


if __name__ == "__main__":
    main()
