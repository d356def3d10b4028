"""A MACPO run from its recipe to its summary, round by round."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from choreo.engine import checkpoint
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.evaluation.metrics import measure
from choreo.files import durable
from choreo.files.json_file import read_array
from choreo.judges.base import JudgeDown
from choreo.methods.macpo.agents import Crew
from choreo.methods.macpo.measure import answer, measure_round, outcomes, pgr, reward, warnings
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.report_sections import said_by
from choreo.methods.macpo.schedule import CEILING, ceiling_of
from choreo.methods.macpo.trainer import train
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Episode, Prompt

BASE = "base"

Played = dict[str, list[Episode]]


def run_macpo(
    recipe: MacpoRecipe, run: Run, progress: Progress, task: Task | None = None
) -> tuple[dict[str, Any], Played]:
    """Trains `run` to its end and measures every round on held-out; what summary.json says beyond its head, and the
    student's dialogues by system. A round that was measured before a kill is not measured again.

    Where the recipe wants its ceiling, that is trained and measured in a run of its own under `run`'s folder.
    Raises Interrupted with its state saved.
    """
    file = run.path / "rounds.json"
    task = task or Task(recipe, run.path)
    crew = Crew.load(recipe)
    prompts = fitting(recipe, crew, task.suites("heldout"), progress)
    rounds = read_array(file) if file.exists() else []
    episodes: list[Episode] = []
    for number, _ in train(recipe, run, progress, crew):
        if number == len(rounds):
            try:
                agents, episodes = measure_round(task, recipe, crew, number, prompts, progress)
            except (BadInput, JudgeDown) as missing:
                what = f"round {number} is trained and saved, but not measured; --resume will measure it"
                raise type(missing)(f"{what}: {missing}") from None
            rounds.append({"round": number, "agents": agents})
            rounds[-1]["warnings"] = warnings(rounds, recipe)
            durable.write_json(file, rounds)
        said = rounds[number]["warnings"]
        for warning in said:
            progress.say(f"! round {number}: {warning}")
        if said and recipe.watch.stop:
            progress.say(f"stopped after round {number}, because watch.stop is true")
            break
    found, played = systems(task, recipe, crew, prompts, episodes)
    durable.write_json(run.path / "outcomes.json", outcomes(played[recipe.name]))
    weak = rounds[0]["agents"].get(crew.teachers[0].positive)
    student = rounds[-1]["agents"][crew.student.positive]
    device = str(crew.student.team.device)
    # The ceiling has a crew of its own, and a device need not hold two. With recompute a model's layers are cycles.
    del crew, _
    gc.collect()
    ceiling = _ceiling(task, recipe, run, progress) if recipe.ceiling else None
    gap = None
    if ceiling and weak:
        found[CEILING] = ceiling
        gap = pgr(student["reward"]["value"], weak["reward"]["value"], ceiling["reward"]["value"])
    return {
        "device": device,
        "rounds": rounds,
        "warnings": said_by(rounds),
        "pgr": gap,
        "systems": found,
    }, played


def fitting(recipe: MacpoRecipe, crew: Crew, prompts: Sequence[Prompt], progress: Progress) -> list[Prompt]:
    """The prompts that every agent can be measured on; how many cannot is said. Raises BadInput where none is left.

    Before anything is trained, or one long prompt would end a run at its first measurement, and every resume again.
    """
    kept = crew.fitting(prompts, recipe.writing.answer_tokens)
    if lost := len(prompts) - len(kept):
        progress.say(
            f"! {lost} of {len(prompts)} prompts to measure on are left out: with an answer of "
            f"{recipe.writing.answer_tokens} tokens they are too long for some agent's model"
        )
    return kept


def systems(
    task: Task, recipe: MacpoRecipe, crew: Crew, prompts: Sequence[Prompt], trained: Sequence[Episode] = ()
) -> tuple[dict[str, Any], Played]:
    """The student's base and the student as it stands, measured like WaltzRL's systems, and their reward.

    trained: the student's judged episodes, where they are at hand.
    """
    untrained = crew.student.untrained()
    played = {
        BASE: answer(task, recipe, untrained, untrained.positive, prompts),
        recipe.name: list(trained) or answer(task, recipe, crew.student, crew.student.positive, prompts),
    }
    return {
        name: {"reward": reward(episodes), **measure(episodes, seed=recipe.seed, ability=task.exact)}
        for name, episodes in played.items()
    }, played


def restore(recipe: MacpoRecipe, path: Path) -> Crew:
    """The agents of a run as its checkpoint at `path` has them. Raises BadInput where they are on other bases."""
    crew = Crew.load(recipe)
    saved = checkpoint.load(path)
    checkpoint.check(path, saved, {"agents": {}})
    crew.load_state_dict(saved["agents"], str(path))
    return crew


def _ceiling(task: Task, recipe: MacpoRecipe, run: Run, progress: Progress) -> dict[str, Any]:
    """Figures of the student trained on human labels of half B, from `run`'s folder or made there."""
    path = run.path / CEILING
    own = ceiling_of(recipe)
    begun = (path / "recipe.toml").is_file()
    with Run.open(path) if begun else Run.create(path, own, overwrite=path.exists()) as inner:
        found, _ = run_macpo(own, inner, progress, task)
    return found["rounds"][0]["agents"]["student+"]
