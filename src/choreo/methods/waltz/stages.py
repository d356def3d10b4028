"""The two stages of WaltzRL (arXiv 2510.08240, section 4.2): the feedback agent learns alone first, and then both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.methods.waltz.recipe import Stages, WaltzRecipe, learners, stage1_steps

SWITCH_WINDOW = 5  # steps whose mean label accuracy and format rate decide the switch to stage 2


class Stage:
    """The stage that a run is in. number: 1 or 2."""

    def __init__(self, recipe: WaltzRecipe):
        self._stages, self._most = recipe.stages, stage1_steps(recipe)
        # Where the conversation agent is frozen throughout, all of the run is stage 1.
        first = recipe.stages.train == "feedback" or (recipe.stages.train == "both" and self._most)
        self.number = 1 if first else 2
        self._recent: list[tuple[float, float]] = []  # label accuracy and format rate of the last steps of stage 1

    @property
    def agents(self) -> tuple[str, ...]:
        """The agents that learn in this stage."""
        return learners(self._stages, self.number)

    def advance(self, step: int, figures: Mapping[str, Any]) -> bool:
        """Takes the figures of `step`. Returns whether stage 2 begins after it. Call it once a step, in order."""
        if self.number == 2 or self._stages.train != "both":
            return False
        last = (figures.get("label_accuracy", 0.0), figures["format_rate"])
        self._recent = [*self._recent, last][-SWITCH_WINDOW:]
        if step >= self._most or ready(self._recent, self._stages):
            self.number = 2
        return self.number == 2

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"stage": self.number, "recent": [list(row) for row in self._recent]}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Takes what `state_dict` gave."""
        self.number, self._recent = saved["stage"], [(label, form) for label, form in saved["recent"]]

    @staticmethod
    def example() -> dict[str, Any]:
        """An example of a saved state (`checkpoint.check`)."""
        return {"stage": 1, "recent": [(0.0, 0.0)]}


def ready(recent: Sequence[tuple[float, float]], stages: Stages) -> bool:
    """Whether labels and format, as the last steps of stage 1 had them, are good enough for stage 2."""
    if len(recent) < SWITCH_WINDOW:
        return False
    label, form = (sum(column) / len(recent) for column in zip(*recent, strict=True))
    return label >= stages.switch_label_accuracy and form >= stages.switch_format_rate
