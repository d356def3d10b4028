"""Recipes. Imports no torch: one is checked, and a mistake reported, before anything heavy is loaded."""

from choreo.config.common import World
from choreo.config.reading import find, load, make, to_toml, unsaid
from choreo.config.recipe import Recipe

__all__ = ["Recipe", "World", "find", "load", "make", "to_toml", "unsaid"]
