"""Recipes. Imports no torch: one is checked, and a mistake reported, before anything heavy is loaded."""

from choreo.config.common import World
from choreo.config.macpo import MacpoRecipe
from choreo.config.reading import Recipe, find, load, to_toml, unsaid
from choreo.config.waltz import Learning, Rewards, Stages, WaltzRecipe

__all__ = [
    "Learning", "MacpoRecipe", "Recipe", "Rewards", "Stages", "WaltzRecipe", "World",
    "find", "load", "to_toml", "unsaid",
]  # fmt: skip
