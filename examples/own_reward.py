"""Rewards of your own: functions of one action and of what came of it.

    python examples/own_reward.py

They take the place of R_c and R_f of WaltzRL. A recipe names them under [rewards], as
`conversation = "own_reward.py:brief"`.
"""

from __future__ import annotations

from collections.abc import Sequence

import choreo


def brief(action: choreo.RewardedAction) -> tuple[float, dict[str, float]] | None:
    """R_c of the paper, less a hundredth for every word of the answer. The parts are kept in the run's record."""
    if action.reward is None:  # the judge could not decide: there is nothing to learn
        return None
    parts = {"paper": action.reward, "words": -0.01 * len(action.answer.split())}
    return sum(parts.values()), parts


def improvement_alone(action: choreo.RewardedAction) -> float | None:
    """Pays a review for what it changed in the answer, and for nothing else."""
    if action.reward is None:
        return None
    return action.parts["dir"]


def main(out: str = "runs/own-reward", overrides: Sequence[str] = ("learning.steps=20",)) -> choreo.Run:
    recipe = {
        "name": "own-reward",
        "rewards": {"conversation": f"{__file__}:brief", "feedback": f"{__file__}:improvement_alone"},
    }
    run = choreo.train(recipe, out, [choreo.ProgressBar()], overrides=overrides)
    for line in run.metrics[-3:]:
        print({name: round(value, 3) for name, value in line.items() if name.startswith("reward/")})
    return run


if __name__ == "__main__":
    main()
