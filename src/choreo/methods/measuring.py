"""Measuring agents, whatever their method: by every judge of the run, and what is reported by the judge of record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from choreo.config.recipe import Recipe
from choreo.environments.task import TRAINING, Task
from choreo.evaluation.metrics import BY_TRAINING, measure
from choreo.judges.base import judge_episodes
from choreo.methods.agents import Agents
from choreo.types import Episode, Prompt

AT_ONCE = 64  # prompts between two reports of progress

Judged = dict[str, list[Episode]]
"""The same episodes as each of the task's judges judged them, by the judge's part (`Task.judges`)."""


def judged_by_all(task: Task, played: Sequence[Episode], so_far: Judged | None = None) -> Judged:
    """`played`, judged by every judge of the task, after what was judged `so_far`."""
    before = so_far or {}
    return {name: [*before.get(name, []), *judge_episodes(judge, played)] for name, judge in task.judges.items()}


def figures_of(
    task: Task, judged: Judged, figures: Callable[[list[Episode], bool], dict[str, Any]]
) -> tuple[dict[str, Any], list[Episode]]:
    """The figures and the episodes by the judge of record. Where that is the gold judge, the figures by the training
    judge stand in them, under BY_TRAINING.

    figures: makes them of judged episodes, and is told whether their judge knows if a general answer is right.
    """
    found = {name: figures(episodes, task.exact_by(name)) for name, episodes in judged.items()}
    beside = {} if task.record == TRAINING else {BY_TRAINING: found[TRAINING]}
    return {**found[task.record], **beside}, judged[task.record]


def measure_answers(
    recipe: Recipe, agents: Agents, prompts: Sequence[Prompt], task: Task, on_progress: Callable[[int], None]
) -> tuple[dict[str, Any], list[Episode]]:
    """What `metrics.measure` finds of the agents' answers, and the judged episodes.

    The noise follows from (recipe.seed, prompt id), so that systems differ by what they do alone.
    """
    judged: Judged = {}
    for start in range(0, len(prompts), AT_ONCE):
        chunk = prompts[start : start + AT_ONCE]
        judged = judged_by_all(task, agents.answer(chunk, seed=recipe.seed), judged)
        on_progress(start + len(chunk))
    return figures_of(task, judged, lambda episodes, ability: measure(episodes, seed=recipe.seed, ability=ability))
