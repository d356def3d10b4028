"""Recipes. Imports no torch: one is checked, and a mistake reported, before anything heavy is loaded."""

from choreo.config.common import MICROWORLD, World
from choreo.config.reading import find, load, to_toml, unsaid
from choreo.config.recipe import Recipe

__all__ = ["MICROWORLD", "Recipe", "World", "find", "load", "to_toml", "unsaid"]
