"""Measuring agents that answer prompts, whatever their method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from choreo.config.recipe import Recipe
from choreo.environments.task import Task
from choreo.evaluation.metrics import measure
from choreo.judges.base import judge_episodes
from choreo.methods.agents import Agents
from choreo.types import Episode, Prompt

AT_ONCE = 64  # prompts between two reports of progress


def measure_answers(
    recipe: Recipe, agents: Agents, prompts: Sequence[Prompt], task: Task, on_progress: Callable[[int], None]
) -> tuple[dict[str, Any], list[Episode]]:
    """What `metrics.measure` finds of the agents' answers, and the judged episodes.

    The noise follows from (recipe.seed, prompt id), so that systems differ by what they do alone.
    """
    episodes: list[Episode] = []
    for start in range(0, len(prompts), AT_ONCE):
        episodes += judge_episodes(task.judge, agents.answer(prompts[start : start + AT_ONCE], seed=recipe.seed))
        on_progress(len(episodes))
    return measure(episodes, seed=recipe.seed, ability=task.exact), episodes
