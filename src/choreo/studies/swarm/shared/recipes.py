"""The run folders that a study takes, and how their recipes differ, by the dotted names of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.config import Recipe
from choreo.errors import BadInput

REPEATED = ("name", "seed", "world.split_seed")  # in which repetitions of one training may differ


def run_folders(study: str, what: Sequence[str]) -> list[Path]:
    """The run folders in `what`. Raises BadInput where there is none, or where two have the same name."""
    runs = [Path(folder) for folder in what]
    if not runs:
        raise BadInput(f"swarm study {study}: give one run folder or more, which choreo train {study} makes")
    if len({run.name for run in runs}) < len(runs):
        raise BadInput(f"swarm study {study}: two runs have one name; rename a folder")
    return runs


def differences(a: Recipe, b: Recipe, besides: tuple[str, ...] = ()) -> list[str]:
    """The settings in which the two differ, sorted by name. besides: settings, or whole tables, to leave out."""
    one, other = (dict(_flat(recipe.model_dump())) for recipe in (a, b))
    found = (key for key in sorted(one.keys() | other.keys()) if one.get(key) != other.get(key))
    return [key for key in found if not any(key == name or key.startswith(f"{name}.") for name in besides)]


def refuse_unlike(recipes: Mapping[Path, Recipe]) -> None:
    """Raises BadInput unless the runs repeat one training with other seeds or splits.

    An interval over trainings is about one method, and each training counts once.
    """
    first, *others = recipes
    for run in others:
        for key in differences(recipes[run], recipes[first], REPEATED):
            raise BadInput(f"{run}: differs from {first} in {key}; one study takes trainings that differ in seed alone")
    known: dict[tuple[int, int], Path] = {}
    for run, recipe in recipes.items():
        if (twin := known.setdefault((recipe.seed, recipe.world.split_seed), run)) != run:
            raise BadInput(f"{run}: has the seed and the split of {twin}; a training counts once")


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value
