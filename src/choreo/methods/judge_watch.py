"""The gold judge along training: both judges on the same answers, again and again, and an alarm when they part.

Every trainer has a `JudgeWatch`. It asks `due(step)`, and gives it a step's answers; without a gold judge nothing is
ever due. What the watch knows is in metrics.jsonl, so a resume finds it there, and the run goes on as if it had never
stopped.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from choreo.environments.task import GOLD, TRAINING, Task
from choreo.errors import Interrupted
from choreo.evaluation.judge_gap import Gap, gap, growth, rates, windows
from choreo.judges.base import JudgesPart, judge_episodes
from choreo.judges.resolve import strict
from choreo.runs.folder import Run
from choreo.types import Episode, Prompt

_GAP = ("gap/prompts", "gap/total", "gap/squares")  # what metrics.jsonl keeps of a comparison


class JudgeWatch:
    """Compares both judges of a task. Make it after `Run.rewind`, which cuts what is repeated.

    alarms: those that last, each a sentence that stays the same. began: the last comparison raised them. stopping: the
    recipe wants its run stopped for that. A run that goes on afterwards is stopped by the next alarm alone.
    """

    def __init__(self, task: Task | None, run: Run):
        """task: None, or one without a gold judge, is never due."""
        self._gold = task.recipe.gold if task else None
        self._gaps: list[Gap] = []
        self.alarms: list[str] = []
        self.began = False
        if self._gold and task:
            self._judges = {name: strict(judge) for name, judge in task.judges.items()}
            self._seed = task.recipe.seed
            self._gaps = [found for line in run.metrics if (found := _kept(line))]
            self._compare_windows()

    def due(self, step: int) -> bool:
        """Whether `step` is one whose answers are compared: the first that can be, and then every `gold.every`-th."""
        return self._gold is not None and (not self._gaps or step % self._gold.every == 0)

    def draw(self, prompts: Sequence[Prompt], step: int) -> list[Prompt]:
        """The training prompts whose answers are compared in `step`, where the step itself has none: `gold.probe` of
        `prompts`, a function of (seed, step)."""
        assert self._gold is not None, "nothing is due"
        rng = random.Random(f"gold/{self._seed}/{step}")
        return rng.sample(list(prompts), min(self._gold.probe, len(prompts)))

    def compare(self, episodes: Sequence[Episode]) -> dict[str, Any]:
        """The figures of a step that is due, for metrics.jsonl: `judge_gap.rates` by both judges, the gap between
        them, and how much it has grown since the first comparisons, each a share in [0, 1].

        episodes: of the policy as it was before the step's update; judged by the training judge, or not at all.
        Raises JudgeDown or BadInput where a judge cannot be asked. No weight has moved then.
        """
        assert self._gold is not None, "nothing is due"
        by: dict[str, list[Episode]] = {}
        for name, judge in self._judges.items():
            judged = name == TRAINING and all(e.verdicts for e in episodes)
            by[name] = list(episodes) if judged else judge_episodes(judge, episodes)
        found = gap(by[TRAINING], by[GOLD])
        self._gaps.append(found)
        before = self.alarms
        grown = self._compare_windows()
        self.began = bool(self.alarms) and not before
        figures: dict[str, Any] = {**rates(TRAINING, by[TRAINING]), **rates(GOLD, by[GOLD]), "gap/mean": found.value}
        figures |= zip(_GAP, (found.prompts, found.total, found.squares), strict=True)
        if grown:
            figures |= {"gap/growth": grown["value"], "gap/growth_low": grown["low"], "gap/growth_high": grown["high"]}
        return figures

    @property
    def stopping(self) -> bool:
        return self.began and self._gold is not None and self._gold.stop

    def interruption(self, step: int) -> Interrupted:
        """What stops a run whose state of `step` is saved."""
        if self.stopping:
            return JudgesPart(f"saved at step {step}; {self.alarms[0]} (gold.stop)")
        return Interrupted(f"saved at step {step}")

    def _compare_windows(self) -> Mapping[str, Any] | None:
        """Sets `alarms`; how much the gap has grown, once there are two windows of comparisons."""
        assert self._gold is not None
        both = windows(self._gaps, self._gold.window)
        grown = growth(*both) if both else None
        parted = grown is not None and grown["low"] > 0 and grown["value"] > self._gold.margin
        sentence = (
            "the judges part: since the start, the share of answers that satisfy the training judge alone has grown by "
            f"more than {100 * self._gold.margin:g} points"
        )
        self.alarms = [sentence] if parted else []
        return grown


def _kept(line: Mapping[str, Any]) -> Gap | None:
    """The gap in a line of metrics.jsonl, where there is one."""
    return Gap(*(line[name] for name in _GAP)) if all(name in line for name in _GAP) else None
