"""From a recipe to a finished run, and a run measured again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from choreo import config
from choreo.errors import BadInput, Interrupted
from choreo.evaluate.systems import TRAINED, evaluate
from choreo.microworld.world import World, base_folder
from choreo.runs import files
from choreo.runs.folder import Run, checkpoints, versions
from choreo.runs.progress import Progress
from choreo.text.chat import Chat
from choreo.types import Episode
from choreo.waltz.trainer import Pair, draw, restore, train

SCHEMA = 1
DIALOGUES = 24  # kept per suite and system, for the report to show


def run_recipe(run: Run, progress: Progress) -> dict[str, Any]:
    """Trains `run` to its end, measures it on held-out beside its untrained pair, and returns the summary.

    seconds: of all training steps, those before a resume too, without measuring.
    Writes dialogues.json; the caller writes summary.json (`Run.finish`). Raises Interrupted with its state saved.
    """
    pair = train(run.recipe, run, progress)
    run.note(device=str(pair.team.device))
    seconds = sum(line["seconds"] for line in files.read_lines(run.path / "metrics.jsonl"))
    systems, dialogues = _measure(run.recipe, pair, "heldout", progress)
    run.save_dialogues(dialogues)
    return {
        "schema": SCHEMA,
        "method": run.recipe.method,
        "recipe": run.recipe.name,
        "seed": run.recipe.seed,
        "split_seed": run.recipe.world.split_seed,
        "suite": "heldout",
        "seconds": seconds,
        "device": str(pair.team.device),
        "base": pair.base,
        "versions": versions(),
        "systems": systems,
    }


def check(recipe: config.Recipe) -> None:
    """Raises BadInput where the recipe asks for what is not there: a base, or more prompts than the world has.

    It draws what training and measuring will draw, so that no run begins that cannot end.
    """
    Chat.load(base_folder(recipe.model.base))
    world = World(recipe.world)
    try:
        draw(world.training(), recipe.learning, recipe.seed, 1)
        world.suites("heldout")
    except ValueError as error:
        raise BadInput(f"world: {error}") from None


def evaluate_run(path: str | Path, suite: str, progress: Progress) -> dict[str, Any]:
    """A run's systems measured again from its last checkpoint on `suite` ("heldout" or "train").

    Raises BadInput where the run has none, or its recipe asks what the world cannot give; Interrupted.
    """
    recipe = config.load(Path(path) / "recipe.toml")
    check(recipe)
    found = checkpoints(path)
    if not found:
        raise BadInput(f"{path}: has no checkpoint to measure; go on with choreo train --resume {path}")
    step, folder = max(found.items())
    pair = restore(recipe, folder)
    systems, _ = _measure(recipe, pair, suite, progress)
    return {
        "schema": SCHEMA,
        "method": recipe.method,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "split_seed": recipe.world.split_seed,
        "suite": suite,
        "step": step,
        "device": str(pair.team.device),
        "base": pair.base,
        "versions": versions(),
        "systems": systems,
    }


def _measure(
    recipe: config.Recipe, trained: Pair, part: str, progress: Progress
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    prompts = World(recipe.world).suites("train" if part == "train" else "heldout")
    untrained = Pair(recipe)
    systems: dict[str, Any] = {}
    dialogues: list[dict[str, Any]] = []
    name = TRAINED[recipe.stages.train]
    for system, pair in (("base", untrained), ("collaboration-untrained", untrained), (name, trained)):
        progress.start(f"measuring {system}", len(prompts))
        systems[system], episodes = evaluate(system, pair, recipe, prompts, told(progress))
        dialogues += dialogue_records(system, episodes)
    return systems, dialogues


def told(progress: Progress) -> Callable[[int], None]:
    """What an evaluation tells after every chunk: shown, and where the user has asked to stop, Interrupted raised."""

    def advance(done: int) -> None:
        progress.advance(done)
        if progress.interrupted:
            raise Interrupted("the measurement under way is left out")

    return advance


def dialogue_records(system: str, episodes: Sequence[Episode]) -> list[dict[str, Any]]:
    """The first `DIALOGUES` episodes of every suite as the report shows them."""
    kept: dict[str, list[Episode]] = {}
    for episode in episodes:
        kept.setdefault(episode.prompt.suite, []).append(episode)
    return [
        {
            "system": system,
            "prompt": episode.prompt.text,
            "kind": episode.prompt.kind,
            "suite": episode.prompt.suite,
            "language": episode.prompt.language,
            "answers": [turn.text for turn in episode.answers],
            "reviews": [
                {"text": turn.text, "parsed": asdict(parsed) if parsed else None}
                for turn, parsed in zip(episode.reviews, episode.feedback, strict=True)
            ],
            "verdicts": [asdict(verdict) for verdict in episode.verdicts],
        }
        for rows in kept.values()
        for episode in rows[:DIALOGUES]
    ]
