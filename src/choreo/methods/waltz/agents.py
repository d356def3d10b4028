"""The two agents of WaltzRL, loaded: two policies on one base, or each on a base of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from choreo.agents.constrained_review import ReviewGrammar
from choreo.agents.local import LocalAgent
from choreo.config.rollouts import Rollouts
from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.learner import Learner
from choreo.engine.local import Kept, LocalEngine, Untrained
from choreo.engine.rollouts import sampler_of
from choreo.errors import BadInput
from choreo.methods.agents import Policy
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.recipe import Learning, Protocol, WaltzRecipe
from choreo.models.chat import Chat
from choreo.models.hub import fingerprint
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import CONVERSATION, FEEDBACK

START = f"{FEEDBACK}-start"  # the feedback agent as it was after its warm start; RL does not change it


class Pair(AnyPair[LocalEngine]):
    """The agents of a recipe, loaded here and ready to play; see `AnyPair`."""

    def __init__(self, recipe: WaltzRecipe):
        """Raises BadInput where there is no such base, before any is loaded, or its chat template cannot be used."""
        super().__init__(recipe)
        shared = recipe.model.shared()
        folders = [base_folder(base) for base, _ in shared]
        self.base = "+".join(map(fingerprint, folders))
        self.agents = {}
        self._kept: dict[Team, Kept] = {}  # shared by all pairs that this one gives of what it was
        for folder, ((base, template), roles) in zip(folders, shared.items(), strict=True):
            chat = load_chat(folder, template, rounds=recipe.protocol.rounds, wording=recipe.protocol.wording)
            self._named.append((base, chat))
            kept = [START] if recipe.warmup.on and FEEDBACK in roles else []
            policies = [CONVERSATION] if recipe.model.one_policy else [*roles, *kept]
            team = Team.open(folder, policies, seed=recipe.seed, **recipe.model.loading())
            if recipe.model.one_policy:
                team.alias(FEEDBACK, CONVERSATION)
            engine = LocalEngine(team, pad_id=chat.pad_id, end_id=chat.end_id)
            writer = self.agents[CONVERSATION].chat if CONVERSATION in self.agents else chat
            grammar = _grammar(chat, recipe.protocol, base) if FEEDBACK in roles else None
            self.agents |= dict.fromkeys(roles, LocalAgent(chat, engine, writer, name=base, grammar=grammar))
        self._rollouts = recipe.engine

    @contextmanager
    def rollouts(self) -> Iterator[Pair]:
        """The pair as it samples what it learns from, by the engine that the recipe names: itself, where that is the
        one of this process. Raises BadInput where a server cannot be used."""
        with self.sampled_by(self._rollouts) as other:
            yield other

    @contextmanager
    def sampled_by(self, settings: Rollouts) -> Iterator[Pair]:
        """The pair as it samples by another engine: itself, where that is the one of this process. Raises BadInput
        where a server cannot be used."""
        if settings.local:
            yield self
            return
        if len(self.models()) > 1:
            raise BadInput("a server has one base, and the agents are on two (engine.rollouts)")
        with ExitStack() as open_engines:
            other = copy(self)
            other.agents, other._kept = {}, {}
            for agent, roles in self.models().items():
                engine = open_engines.enter_context(sampler_of(settings, agent.engine))
                other.agents |= dict.fromkeys(roles, replace(agent, engine=engine))
            yield other

    def team(self, agent: str) -> Team:
        return self.agents[agent].engine.team

    @property
    def device(self) -> torch.device:
        return self.team(CONVERSATION).device

    def learner(self, agent: str, learning: Learning, lr: float) -> Learner:
        return Learner(
            self.team(agent),
            agent,
            lr=lr,
            max_grad_norm=learning.max_grad_norm,
            micro_tokens=learning.micro_tokens,
            masks=self.masks(agent),
        )

    def example(self, agent: str) -> dict[str, Any]:
        return self.team(agent).example(agent)

    def take(self, agent: str, state: Mapping[str, Any]) -> None:
        self.team(agent).load_state_dict(agent, state)

    def policies(self) -> dict[str, Policy]:
        return {role: Policy(agent.chat, agent.engine.team, agent.name) for role, agent in self.agents.items()}

    def untrained(self) -> Pair:
        """The pair as it began, on the same models; it sees nothing of what this one learns."""
        return self._answering_as({})

    def warm(self) -> Pair:
        """The pair as it was after its warm start and before RL: its conversation agent is the base."""
        return self._answering_as({FEEDBACK: START})

    def _answering_as(self, policies: Mapping[str, str]) -> Pair:
        other = copy(self)
        other.agents = {}
        for agent, roles in self.models().items():
            own = agent.engine
            kept = self._kept.setdefault(own.team, {})
            sampler = None if own.exact else own
            engine = Untrained(
                own.team, policies=policies, kept=kept, sampler=sampler, pad_id=own.pad_id, end_id=own.end_id
            )
            other.agents |= dict.fromkeys(roles, replace(agent, engine=engine))
        return other

    def reference(self, agent: str) -> str | None:
        """The policy that is π_ref of the agent's KL: what it was after its warm start, else the base (None).

        Most codes take the SFT model, and have to: the base gives a review no probability worth its name, so a KL from
        it would pay the agent for forgetting how to write one.
        """
        return START if agent == FEEDBACK and self.warms_up else None

    def start_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the warm start: nothing, or the feedback agent as it was after it."""
        return {"start": self.team(FEEDBACK).state_dict(START)} if self.warms_up else {}

    def load_start(self, where: str | Path, saved: Mapping[str, Any]) -> None:
        """Takes from a checkpoint what `start_state` gave. Raises BadInput where it has none."""
        if self.warms_up:
            team = self.team(FEEDBACK)
            checkpoint.check(where, saved, {"start": team.example(START)})
            team.load_state_dict(START, saved["start"])


def _grammar(chat: Chat, protocol: Protocol, base: str) -> ReviewGrammar | None:
    """What the recipe holds reviews to. Raises BadInput where `feedback_tokens` is too few for any review."""
    if not protocol.constrained:
        return None
    try:
        grammar = ReviewGrammar.of(chat, protocol.reasoning_tokens)
    except BadInput as error:
        raise BadInput(f"{base}: {error}") from None
    if grammar.need > protocol.feedback_tokens:
        raise BadInput(
            f"protocol.feedback_tokens = {protocol.feedback_tokens}: a constrained review by {base} takes at least "
            f"{grammar.need} tokens"
        )
    return grammar
