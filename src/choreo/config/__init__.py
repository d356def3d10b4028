"""Recipes. This part imports no torch, so that a mistake in a recipe is reported before anything heavy is loaded."""

from choreo.config.common import MICROWORLD, World
from choreo.config.reading import differences, find, load, make, purpose, shipped_names, to_toml, unset
from choreo.config.recipe import Recipe

__all__ = [
    "MICROWORLD",
    "Recipe",
    "World",
    "differences",
    "find",
    "load",
    "make",
    "purpose",
    "shipped_names",
    "to_toml",
    "unset",
]
