"""From a recipe to a finished run, and a run measured again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from choreo import config
from choreo.evaluate.systems import TRAINED, evaluate
from choreo.microworld.world import World
from choreo.runs.folder import Run, checkpoints, read_info, versions
from choreo.runs.progress import Progress
from choreo.types import Episode
from choreo.waltz.trainer import Pair, restore, train

SCHEMA = 1
DIALOGUES = 24  # kept per suite and system, for the report to show


def run_recipe(run: Run, progress: Progress) -> dict[str, Any]:
    """Trains `run` to its end, measures it on held-out beside its untrained pair, and returns the summary.

    Writes dialogues.json; the caller writes summary.json (`Run.finish`). Raises Interrupted with its state saved.
    """
    began = time.monotonic()
    pair = train(run.recipe, run, progress)
    seconds = time.monotonic() - began
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
        "versions": versions(),
        "systems": systems,
    }


def evaluate_run(path: str | Path, suite: str = "heldout", progress: Progress | None = None) -> dict[str, Any]:
    """A run's systems measured again from its last checkpoint on `suite` ("heldout" or "train")."""
    info, recipe = read_info(path), config.load(Path(path) / "recipe.toml")
    step, folder = max(checkpoints(path).items(), default=(0, None))
    pair = restore(recipe, folder)
    systems, _ = _measure(recipe, pair, suite, progress or Progress())
    return {
        "schema": SCHEMA,
        "method": recipe.method,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "split_seed": recipe.world.split_seed,
        "suite": suite,
        "step": step,
        "device": info["device"],
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
        systems[system], episodes = evaluate(system, pair, recipe, prompts, progress.advance)
        dialogues += dialogue_records(system, episodes)
    return systems, dialogues


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
