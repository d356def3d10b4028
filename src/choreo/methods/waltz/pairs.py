"""Which pair a recipe means: one that is loaded here, or one on a service."""

from __future__ import annotations

from typing import Any

from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.remote import RemotePair


def pair_of(recipe: WaltzRecipe) -> AnyPair[Any]:
    """The untrained pair of a recipe. Raises what `Pair` and `RemotePair` raise."""
    return RemotePair(recipe) if recipe.engine.remote else Pair(recipe)


def here(pair: AnyPair[Any]) -> Pair:
    """The pair itself, for what takes weights in this process; the recipe refuses that of a service."""
    assert isinstance(pair, Pair)
    return pair
