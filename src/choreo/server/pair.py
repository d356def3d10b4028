"""The pair of a run, in this process. It is loaded again when the run has a newer checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from choreo import config
from choreo.agents.constrained_review import ReviewGrammar
from choreo.agents.local import LocalAgent
from choreo.config.rollouts import Rollouts
from choreo.engine.local import LocalEngine
from choreo.errors import BadInput, Unsupported
from choreo.methods.base import method_of, methods_with_a_pair
from choreo.methods.waltz.agents import Pair
from choreo.runs.checkpoints import checkpoint_at
from choreo.runs.folder import read_info
from choreo.server.local import WorkerAgent
from choreo.server.session import SessionAgent
from choreo.server.worker import Worker
from choreo.types import CONVERSATION, FEEDBACK

if TYPE_CHECKING:  # it takes httpx2
    from choreo.server.asking import AskingWorker


class Resident:
    """The agents of the run at `path`.

    fingerprint: the checkpoint's step, and a digest of the base's contents. remarks: as of `Pair`.
    sampler: who samples; by default this process. deadline: the seconds that a turn of a server may take.

    Raises BadInput where it is no run of a pair, or a model that cannot be served, or the server that samples cannot
    be used.
    """

    def __init__(self, path: Path, sampler: Rollouts | None = None, deadline: float = 600.0):
        self.path, self.recipe, self.sampler = path, recipe_with_pair(path), sampler or Rollouts()
        pair, self.fingerprint = self._load()
        self.chat, self.remarks = pair.agents[CONVERSATION].chat, pair.remarks
        torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one of several threads is left for requests
        self.worker = self._worker(pair, deadline)
        try:
            self.agents: Mapping[str, SessionAgent] = {
                role: self._agent(role, player, pair) for role, player in pair.agents.items()
            }
        except BaseException:
            self.close()
            raise

    def _agent(self, role: str, player: LocalAgent[LocalEngine], pair: Pair) -> WorkerAgent:
        return WorkerAgent(
            self.worker,
            player.chat,
            role,
            feedback_tokens=pair.protocol.feedback_tokens,
            positions=self.worker.positions(role) or 2**31,
            writer=self.chat,
            grammar=_grammar(player, pair) if role == FEEDBACK else None,
        )

    def _load(self) -> tuple[Pair, str]:
        """The pair as the newest checkpoint has it; a run without one serves the untrained pair."""
        step, folder = checkpoint_at(self.path)
        pair: Pair = method_of(self.recipe).load(self.recipe, folder)
        return pair, f"step-{step:06d}/{pair.base}"

    def _worker(self, pair: Pair, deadline: float) -> Worker | AskingWorker:
        if not self.sampler.local:
            from choreo.server.asking import AskingWorker

            return AskingWorker(pair, self.sampler, deadline)
        try:
            return Worker(pair)
        except Unsupported as error:
            raise BadInput(f"{self.path}: {error}") from None

    def close(self) -> None:
        """Ends the worker, and leaves the servers that sample."""
        self.worker.close()

    def swap(self) -> str:
        """Loads the newest checkpoint; games in play end under the old weights. Returns its fingerprint.

        Where that fails, a server that samples may have lost the old weights: they are proven again, and where that
        fails too no turn is given until a pair is proven.
        """
        try:
            pair, fingerprint = self._load()
            self.worker.swap(pair)
        except Exception as error:
            if not isinstance(self.worker, Worker):
                self.worker.prove(error)
            raise
        self.fingerprint = fingerprint
        return self.fingerprint

    def encode(self, text: str) -> tuple[int, ...]:
        return (*self.chat.encode(text), self.chat.end_id)


def _grammar(player: LocalAgent, pair: Pair) -> ReviewGrammar | None:
    """What a server holds reviews to, whether the pair was trained with it or not. None where the recipe's
    `feedback_tokens` are too few for any review."""
    grammar = player.grammar or ReviewGrammar.of(player.chat, pair.protocol.reasoning_tokens)
    return grammar if grammar.need <= pair.protocol.feedback_tokens else None


def recipe_with_pair(run: Path) -> Any:
    """The recipe of a run of a pair; whatever its method, it has a `protocol`. Raises BadInput for another run."""
    read_info(run)
    recipe = config.load(run / "recipe.toml")
    method = method_of(recipe)
    if not method.has_pair:
        pairs = " or ".join(methods_with_a_pair())
        raise BadInput(f"{run}: is a run of {method.name}; serve takes a pair, which a run of {pairs} has")
    if recipe.engine.remote:
        raise BadInput(f"{run}: its weights are on {recipe.engine.backend}; serve takes a pair that is loaded here")
    return recipe
