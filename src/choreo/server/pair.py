"""The pair of a run, in this process, and taken up anew when the run has a newer checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from choreo import config
from choreo.errors import BadInput, Unsupported
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import restore
from choreo.runs.folder import checkpoints, read_info
from choreo.server.constrained_review import ReviewConstraint
from choreo.server.local import Worker, WorkerAgent
from choreo.server.session import SessionAgent
from choreo.types import CONVERSATION


class Resident:
    """The agents of the run at `path`.

    fingerprint: the checkpoint's step, and a digest of the base's contents. remarks: as of `Pair`.

    Raises BadInput where it is no run of a pair, or a model that cannot be served.
    """

    def __init__(self, path: Path):
        self.path, self.recipe = path, waltz_recipe(path)
        pair, self.fingerprint = self._load()
        self.chat, self.remarks = pair.agents[CONVERSATION].chat, pair.remarks
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one is left for requests, where there are several
        try:
            self.worker = Worker(pair)
        except Unsupported as error:
            raise BadInput(f"{path}: {error}") from None
        self.agents: Mapping[str, SessionAgent] = {
            role: WorkerAgent(
                self.worker,
                player.chat,
                role,
                feedback_tokens=self.recipe.protocol.feedback_tokens,
                positions=player.engine.positions or 2**31,
                writer=self.chat,
                constraint=ReviewConstraint(player.chat),
            )
            for role, player in pair.agents.items()
        }

    def _load(self) -> tuple[Pair, str]:
        """The pair as the newest checkpoint has it; a run without one serves the untrained pair."""
        step, folder = max(checkpoints(self.path).items(), default=(0, None))
        pair = restore(self.recipe, folder)
        return pair, f"step-{step:06d}/{pair.base}"

    def swap(self) -> str:
        """Takes up the newest checkpoint: what is in play ends under the old weights. Returns its fingerprint."""
        pair, fingerprint = self._load()
        self.worker.swap(pair)
        self.fingerprint = fingerprint
        return self.fingerprint

    def encode(self, text: str) -> tuple[int, ...]:
        return (*self.chat.encode(text), self.chat.end_id)


def waltz_recipe(run: Path) -> WaltzRecipe:
    """Raises BadInput where `run` is no run of a pair."""
    read_info(run)
    recipe = config.load(run / "recipe.toml")
    if not isinstance(recipe, WaltzRecipe):
        raise BadInput(f"{run}: is a run of {recipe.method}; serve takes a pair that choreo train waltz made")
    return recipe
