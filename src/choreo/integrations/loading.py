"""Agents by their names, for libraries that play the game with them: a run folder, a shipped base, or a model folder."""

from __future__ import annotations

from pathlib import Path

from choreo import config
from choreo.agents.local import LocalSpeaker
from choreo.errors import BadInput
from choreo.evaluation.collaboration import local
from choreo.game.moves import asked_of
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.folder import checkpoints, read_info
from choreo.types import CONVERSATION, FEEDBACK, Episode, Spoken


def run_agents(path: Path) -> tuple[WaltzRecipe, dict[str, LocalSpeaker]]:
    """The recipe and the agents, by role, of the run at `path`, as its newest checkpoint has them.

    A run without a checkpoint gives the untrained pair. Raises BadInput where `path` is no run of a pair.
    """
    read_info(path)
    recipe = config.load(path / "recipe.toml")
    if not isinstance(recipe, WaltzRecipe):
        raise BadInput(f"{path}: is a run of {recipe.method}, which trains no pair")
    from choreo.methods.waltz.trainer import restore

    _, folder = max(checkpoints(path).items(), default=(0, None))
    pair = restore(recipe, folder)
    return recipe, {
        role: LocalSpeaker(str(path), player.chat, player.engine, positions=player.engine.positions)
        for role, player in pair.players.items()
    }


class Partner:
    """One agent of the game that is fixed, in this process.

    name: a run folder, a shipped base, or a model folder. trained: it is a run that choreo trained.
    """

    def __init__(self, name: str, recipe: WaltzRecipe):
        """recipe: limits, seed and temperature of its turns. Raises BadInput where there is no such model."""
        self.trained = (Path(name) / "run.json").is_file()
        self.recipe = recipe
        if self.trained:
            self.agents = run_agents(Path(name))[1]
        else:
            self.agents = dict.fromkeys((CONVERSATION, FEEDBACK), local(name, recipe.seed))

    def turn(self, role: str, game: Episode[Spoken]) -> Spoken:
        """The next turn of `role` in `game`. A turn that failed says why in `failure`."""
        protocol = self.recipe.protocol
        most = protocol.feedback_tokens if role == FEEDBACK else protocol.answer_tokens
        asked = asked_of(game, role, (self.recipe.seed, "verifiers"))
        temperature = self.recipe.evaluation.temperature
        return self.agents[role].say(role, [asked], max_tokens=most, temperature=temperature)[0]
