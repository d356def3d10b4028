"""A MACPO run from its recipe to its summary, round by round."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from choreo.engine import checkpoint
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.evaluation.metrics import measure
from choreo.files import durable
from choreo.files.json_file import read_array
from choreo.judges.base import JudgeDown
from choreo.methods.base import Measurement
from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.measure import measure_round, pgr, reward, warnings
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.report_sections import warnings_of
from choreo.methods.macpo.schedule import CEILING, ceiling_of
from choreo.methods.macpo.trainer import train
from choreo.methods.measuring import Judged, figures_of, judged_by_all
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Episode, Prompt

BASE = "base"


def run_macpo(recipe: MacpoRecipe, run: Run, progress: Progress, task: Task | None = None) -> Measurement:
    """Trains `run` to its end and measures every round on held-out: the student's base and the student as it ends as
    systems, and every round in `extra`. A round that was measured before a kill is not measured again.

    Where the recipe wants its ceiling, that is trained and measured in a run of its own under `run`'s folder.
    Raises Interrupted with its state saved.
    """
    file = run.path / "rounds.json"
    task = task or Task(recipe, run.path)
    agents = MacpoAgents.load(recipe)
    prompts = agents.fitting(task.suites("heldout"), "heldout", progress)
    rounds = read_array(file) if file.exists() else []
    judged: Judged = {}
    for number, _ in train(recipe, run, progress, agents, task):
        if number == len(rounds):
            began = time.monotonic()
            try:
                figures, judged = measure_round(task, recipe, agents, number, prompts, progress, run)
            except (BadInput, JudgeDown) as missing:
                what = f"round {number} is trained and saved, but not measured; --resume will measure it"
                raise type(missing)(f"{what}: {missing}") from None
            rounds.append({"round": number, "agents": figures})
            rounds[-1]["warnings"] = warnings(rounds, recipe)
            durable.write_json(file, rounds)
            run.note(measuring=time.monotonic() - began)
        found = rounds[number]["warnings"]
        for warning in found:
            progress.say(f"! round {number}: {warning}")
        if found and recipe.watch.stop:
            progress.say(f"stopped after round {number}, because watch.stop is true")
            run.note(steps=run.metrics[-1]["step"])
            break
    measured = Measurement({}, {})
    for name, trained in (BASE, False), (recipe.name, True):
        playing, answered = (agents, judged) if trained else (agents.untrained(), None)
        figures, games = measure_student(recipe, playing, prompts, task, answered)
        run.save_measured(name, figures, games)
        measured.systems[name], measured.episodes[name] = figures, games
    weak = rounds[0]["agents"].get(agents.teachers[0].positive)
    student = rounds[-1]["agents"][agents.student.positive]
    device = str(agents.device)
    run.note(device=device)
    # The ceiling loads agents of its own, and a device need not hold both. With recompute a model's layers are cycles.
    del agents, playing, _
    gc.collect()
    ceiling = _ceiling(task, recipe, run, progress) if recipe.ceiling else None
    gap = None
    if ceiling and weak:
        measured.systems[CEILING] = ceiling
        gap = pgr(student["reward"]["value"], weak["reward"]["value"], ceiling["reward"]["value"])
    extra = {"device": device, "rounds": rounds, "warnings": warnings_of(rounds), "pgr": gap}
    return replace(measured, extra=extra)


def measure_student(
    recipe: MacpoRecipe,
    agents: MacpoAgents,
    prompts: Sequence[Prompt],
    task: Task,
    answered: Judged | None = None,
) -> tuple[dict[str, Any], list[Episode]]:
    """The student measured like WaltzRL's systems, and its reward; and its judged episodes.

    answered: its judged answers, where they are at hand.
    """

    def figures(episodes: list[Episode], ability: bool) -> dict[str, Any]:
        return {"reward": reward(episodes), **measure(episodes, seed=recipe.seed, ability=ability)}

    judged = answered or judged_by_all(task, agents.answer(prompts, seed=recipe.seed))
    return figures_of(task, judged, figures)


def restore(recipe: MacpoRecipe, path: Path | None) -> MacpoAgents:
    """The agents of a run as its checkpoint at `path` has them; None is as they begin.

    Raises BadInput where they are on other bases.
    """
    agents = MacpoAgents.load(recipe)
    if path is None:
        return agents
    saved = checkpoint.load(path)
    checkpoint.check(path, saved, {"agents": {}})
    agents.load_state_dict(saved["agents"], str(path))
    return agents


def _ceiling(task: Task, recipe: MacpoRecipe, run: Run, progress: Progress) -> dict[str, Any]:
    """Figures of the student trained on human labels of the unlabelled prompts, from `run`'s folder or made there."""
    path = run.path / CEILING
    own = ceiling_of(recipe)
    begun = (path / "recipe.toml").is_file()
    with Run.open(path) if begun else Run.create(path, own, overwrite=path.exists()) as inner:
        ceiling = run_macpo(own, inner, progress, task).extra
    return ceiling["rounds"][0]["agents"]["student+"]
