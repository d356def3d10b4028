"""A pair whose weights a service has: two adapters on one base, which is sampled, scored and trained there.

Which service it is, `[engine] backend` says (`clients.training_service.BACKENDS`), and nothing here asks which one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from typing import Any, NoReturn

from choreo import parallel
from choreo.agents.local import LocalAgent
from choreo.clients.training_service import TrainingService
from choreo.config.parts import BACKENDS
from choreo.config.rollouts import Rollouts
from choreo.engine.remote import RemoteEngine, RemoteLearner
from choreo.errors import BadInput
from choreo.methods.agents import Policy
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.recipe import Learning, WaltzRecipe
from choreo.models import model_folder
from choreo.models.hub import fingerprint
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import AGENTS

ALONE = "engine.backend: the service does the work; with --processes or --cluster every process would ask for it"


class RemotePair(AnyPair[RemoteEngine]):
    """The agents of a recipe on a service. Of the base only the tokenizer and the configuration are here."""

    def __init__(self, recipe: WaltzRecipe):
        """Raises BadInput in several processes, before anything is asked; where there is no such tokenizer, or its chat
        template cannot be used; and what connecting raises (`TrainingService`). Trains and samples nothing yet."""
        super().__init__(recipe)
        if parallel.started() > 1:
            raise BadInput(ALONE)
        self.backend, base = recipe.engine.backend, recipe.model.base
        name = recipe.engine.model or base
        service: TrainingService = BACKENDS.get(self.backend)("".join(recipe.engine.url), name)
        folder = base_folder(base, weights=False)
        chat = load_chat(folder, recipe.model.template, rounds=recipe.protocol.rounds, wording=recipe.protocol.wording)
        service.connect()
        self.url, self.base = service.url, f"{name}+{fingerprint(folder, weights=False)}"
        self._named = [(f"{base} on {self.backend}", chat)]
        config = model_folder.configuration(folder, quantised=True).get_text_config()
        positions = [getattr(config, "max_position_embeddings", None), service.positions]
        engine = RemoteEngine(
            service,
            pad_id=chat.pad_id,
            end_id=chat.end_id,
            positions=min((most for most in positions if most is not None), default=None),
            vocabulary=config.vocab_size,
            rank=recipe.model.rank,
            seed=recipe.seed,
        )
        self.agents = dict.fromkeys(AGENTS, LocalAgent(chat, engine, chat, name=base))

    @property
    def engine(self) -> RemoteEngine:
        """The one of both agents."""
        return self.agents[AGENTS[0]].engine

    @contextmanager
    def rollouts(self) -> Iterator[RemotePair]:
        yield self

    @contextmanager
    def sampled_by(self, settings: Rollouts) -> Iterator[RemotePair]:
        if not settings.local:
            raise BadInput(f"engine.rollouts: the pair's weights are on {self.backend}, which samples them itself")
        yield self

    def learner(self, agent: str, learning: Learning, lr: float) -> RemoteLearner:
        return RemoteLearner(self.engine, agent, lr=lr, max_grad_norm=learning.max_grad_norm)

    def example(self, agent: str) -> dict[str, Any]:
        return {"version": 0, "weights": ""}

    def take(self, agent: str, state: Mapping[str, Any]) -> None:
        self.engine.take(agent, state)

    def untrained(self) -> RemotePair:
        other = copy(self)
        agent = self.agents[AGENTS[0]]
        other.agents = dict.fromkeys(AGENTS, replace(agent, engine=agent.engine.untrained()))
        return other

    def warm(self) -> NoReturn:
        raise BadInput(f"warmup: is not done on {self.backend}")

    @property
    def device(self) -> str:
        return f"{self.backend} at {self.url}"

    def policies(self) -> dict[str, Policy]:
        raise BadInput(f"the pair's weights are on {self.backend} ({self.url}), and none is here")
