"""The run folders that a study takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from choreo import config
from choreo.config import Recipe
from choreo.errors import BadInput
from choreo.studies.shared.kept import REPEATED


def run_folders(study: str, what: Sequence[str]) -> list[Path]:
    """The run folders in `what`. Raises BadInput where there is none, or where two have the same name."""
    runs = [Path(folder) for folder in what]
    if not runs:
        raise BadInput(f"swarm study {study}: give one run folder or more, which choreo train {study} makes")
    if len({run.name for run in runs}) < len(runs):
        raise BadInput(f"swarm study {study}: two runs have one name; rename a folder")
    return runs


def refuse_unlike(recipes: Mapping[Path, Recipe]) -> None:
    """Raises BadInput unless the runs repeat one training with other seeds or splits.

    An interval over trainings is about one method, and each training counts once.
    """
    first, *others = recipes
    for run in others:
        for key in config.differences(recipes[run], recipes[first], REPEATED):
            raise BadInput(f"{run}: differs from {first} in {key}; one study takes trainings that differ in seed alone")
    known: dict[tuple[int, int], Path] = {}
    for run, recipe in recipes.items():
        if (twin := known.setdefault((recipe.seed, recipe.world.split_seed), run)) != run:
            raise BadInput(f"{run}: has the seed and the split of {twin}; a training counts once")
