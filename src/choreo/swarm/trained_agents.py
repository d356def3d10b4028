"""Trained agents as SWARM agents: one interaction is one answered prompt. Imports SWARM, as `simulate` does.

In every step an initiator offers its answer to the next prompt of the next counterparty, which accepts or rejects it.
Nothing is generated here: the answers were written before, and p is what their judge gave. Prompts, their order and
every random draw follow from (seed, name), so that arms of one seed meet the same ones.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from typing import Any

from swarm.agents.base import Action, ActionType, BaseAgent
from swarm.core.proxy import ProxyComputer, ProxyObservables
from swarm.models.agent import AgentType
from swarm.models.interaction import InteractionType

from choreo.swarm.answers import Answer
from choreo.swarm.metrics import REWORK, SHARPNESS, p_of, v_hat_of
from choreo.swarm.scenario import Scenario
from choreo.swarm.simulate import SwarmAgents
from choreo.swarm.trained_roles import ANY, TrainedRoles

ANSWER = "answer"  # the key of the offered answer, in the metadata of an interaction


class Counterparty(BaseAgent):
    """Brings prompts, and accepts or rejects what is offered. `offers`: the answers by initiator and prompt."""

    def __init__(self, name: str, kind: AgentType, index: int, roles: TrainedRoles, prompts: Sequence[str], seed: int):
        super().__init__(name, kind, rng=random.Random(f"{seed}/{name}"))
        self._index, self._accepts, self._seed = index, roles.accepts, seed
        self.prompts: Iterator[str] = cycle(self._rng.sample(prompts, len(prompts)))
        self.offers: Mapping[str, Mapping[str, Answer]] = {}

    def act(self, observation: Any) -> Action:
        return self.create_noop_action()  # offers are accepted or rejected at the end of the step

    def propose_interaction(self, observation: Any, counterparty_id: str) -> None:
        return None

    def accept_interaction(self, proposal: Any, observation: Any) -> bool:
        answer = self.offers[proposal.initiator_id][proposal.content]
        if self._accepts == "helped":
            return not answer.refuses
        drawn = [self._draw(proposal.initiator_id, answer, k) for k in range(len(answer.scores))]
        return drawn[self._index] if self._accepts == "scores" else 2 * sum(drawn) > len(drawn)

    def _draw(self, initiator: str, answer: Answer, k: int) -> bool:
        rng = random.Random(f"{self._seed}/{initiator}/{answer.key}/{k}")
        score = max(-500.0, min(500.0, answer.scores[k]))
        return rng.random() < 1 / (1 + math.exp(-score))


class Initiator(BaseAgent):
    """Offers each counterparty in turn its answer to the next prompt of that counterparty."""

    def __init__(self, name: str, kind: AgentType, counterparties: Sequence[Counterparty], seed: int):
        super().__init__(name, kind, rng=random.Random(f"{seed}/{name}"))
        self._turns = cycle(self._rng.sample(list(counterparties), len(counterparties)))

    def act(self, observation: Any) -> Action:
        if not observation.can_interact:
            return self.create_noop_action()
        to = next(self._turns)
        key = next(to.prompts)
        return Action(
            action_type=ActionType.PROPOSE_INTERACTION,
            agent_id=self.agent_id,
            counterparty_id=to.agent_id,
            interaction_type=InteractionType.REPLY,
            content=key,
            metadata={ANSWER: key},
        )

    def accept_interaction(self, proposal: Any, observation: Any) -> bool:
        return False

    def propose_interaction(self, observation: Any, counterparty_id: str) -> None:
        return None


class JudgedObservables(ProxyObservables):
    """Observables with the judge's p, for which SWARM's own five signals have no place."""

    p: float


class AnswerObservables:
    """SWARM's ObservableGenerator: the observables of the offered answer, and its ground truth in the metadata."""

    def __init__(self, offers: Mapping[str, Mapping[str, Answer]]):
        self._offers = offers

    def generate(self, proposal: Any, accepted: bool, state: Any) -> JudgedObservables:
        answer = self._offers[proposal.initiator_id][proposal.metadata[ANSWER]]
        if answer.sign is not None:
            proposal.metadata["ground_truth"] = answer.sign
        return JudgedObservables(p=answer.p, task_progress_delta=v_hat_of(answer.p)[0], rework_count=answer.revisions)


class JudgedProxy(ProxyComputer):
    """p as the judge gave it, and v̂ = logit(p)/k cut to [−1, 1]. With `rework` > 0, v̂ is first mixed with SWARM's
    rework signal by that weight, and p follows from it."""

    def __init__(self, rework: float):
        super().__init__()
        self._rework = rework

    def compute_labels(self, observables: Any) -> tuple[float, float]:
        score = math.log(observables.p / (1 - observables.p)) / SHARPNESS
        mixed = (1 - self._rework) * score + self._rework * (2 * REWORK**observables.rework_count - 1)
        return max(-1.0, min(1.0, mixed)), p_of(mixed)


def make_agents(roles: TrainedRoles, scenario: Scenario, seed: int) -> SwarmAgents:
    """The agents of one run: of every group of the scenario whose role is in `roles`, as many as the group counts."""
    answers = next(iter(roles.answers.values()))
    named = [
        (group.role, f"{group.role.replace(' ', '-')}-{k}", AgentType(group.type))
        for group in scenario.agents
        for k in range(1, group.count + 1)
    ]
    counterparties = [
        Counterparty(name, kind, index, roles, [a.key for a in answers if roles.brings[role] in (ANY, a.suite)], seed)
        for index, (role, name, kind) in enumerate(one for one in named if one[0] in roles.brings)
    ]
    initiators = [
        (role, Initiator(name, kind, counterparties, seed)) for role, name, kind in named if role in roles.answers
    ]
    offers = {agent.agent_id: {a.key: a for a in roles.answers[role]} for role, agent in initiators}
    for agent in counterparties:
        agent.offers = offers
    return SwarmAgents(
        [*(agent for _, agent in initiators), *counterparties], AnswerObservables(offers), JudgedProxy(roles.rework)
    )
