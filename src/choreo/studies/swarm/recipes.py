"""How the recipes of a study's runs differ, by the dotted names of their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from choreo.config import Recipe
from choreo.errors import BadInput

REPEATED = ("name", "seed", "world.split_seed")  # in which repetitions of one training may differ


def differences(a: Recipe, b: Recipe, besides: tuple[str, ...] = ()) -> list[str]:
    """Settings that the two say differently, in the order of their names; tables in `besides` are left out whole."""
    said, other = (dict(_flat(recipe.model_dump())) for recipe in (a, b))
    found = (key for key in sorted(said.keys() | other.keys()) if said.get(key) != other.get(key))
    return [key for key in found if not any(key == name or key.startswith(f"{name}.") for name in besides)]


def refuse_unlike(recipes: Mapping[Path, Recipe]) -> None:
    """Raises BadInput unless the runs repeat one training with other seeds or splits: an interval over trainings is
    about one method, and a training counts once."""
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
