"""Agents by their names, for libraries that play the game: a run folder, or a base as `model.base` has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from choreo import config
from choreo.agents.base import Agent
from choreo.config.recipe import Recipe
from choreo.errors import BadInput
from choreo.evaluation.collaboration import local_agent
from choreo.methods.agents import Agents
from choreo.methods.base import method_of, methods_with_a_pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.checkpoints import checkpoint_at
from choreo.runs.folder import read_info
from choreo.types import AGENTS, CONVERSATION, AnyTurn


def run_agents(path: Path) -> tuple[Recipe, Agents]:
    """The recipe of the run at `path`, and its agents as the newest checkpoint has them.

    A run that has not come to its first checkpoint gives the untrained agents. Raises BadInput where `path` is no run,
    or is a finished one whose checkpoints are gone.
    """
    read_info(path)
    recipe = config.load(path / "recipe.toml")
    _, newest = checkpoint_at(path)
    return recipe, method_of(recipe).load(recipe, newest)


def players(agents: Any) -> dict[str, Agent[AnyTurn]]:
    """The agents of a trained pair, by role, for prompts that nobody has chosen by their length: an answer that has no
    room in the model's positions fails alone."""
    return {**agents.agents, CONVERSATION: replace(agents.agents[CONVERSATION], trained=False)}


def partners(name: str, recipe: WaltzRecipe) -> Mapping[str, Agent[AnyTurn]]:
    """Who can play with a policy, by role: the pair of a run, or an untrained model in both roles.

    recipe: of the games; an untrained model takes its seed, and has to read as many rounds.

    Raises BadInput where `name` is neither a run of a pair nor a base.
    """
    protocol = recipe.protocol
    if not (Path(name) / "run.json").is_file():
        return dict.fromkeys(AGENTS, local_agent(name, recipe.seed, rounds=protocol.rounds, wording=protocol.wording))
    theirs, agents = run_agents(Path(name))
    if not method_of(theirs).has_pair:
        pairs = " or ".join(methods_with_a_pair())
        raise BadInput(f"{name}: is a run of {theirs.method}; a partner is of a pair, which a run of {pairs} has")
    return players(agents)
