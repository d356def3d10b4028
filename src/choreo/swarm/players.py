"""Trained agents as SWARM agents: one interaction is one prompt answered. Imports SWARM, as `simulate` does.

An answering agent offers, step by step, its answer to the next prompt of the next counterparty; the counterparty
accepts or rejects it. Nothing is generated here: answers were written before, and p is what their judge said.
Prompts, their order and every draw follow from (seed, name), so that arms of one seed meet the same ones.
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
from choreo.swarm.parts import ANY, Parts
from choreo.swarm.scenario import Scenario
from choreo.swarm.simulate import Cast

ANSWER = "answer"  # where an interaction's metadata has the key of what was offered


class Asking(BaseAgent):
    """A counterparty: brings prompts, and accepts or rejects what is offered. `serves`: answers by initiator."""

    def __init__(self, name: str, kind: AgentType, index: int, parts: Parts, prompts: Sequence[str], seed: int):
        super().__init__(name, kind, rng=random.Random(f"{seed}/{name}"))
        self._index, self._accepts, self._seed = index, parts.accepts, seed
        self.prompts: Iterator[str] = cycle(self._rng.sample(prompts, len(prompts)))
        self.serves: Mapping[str, Mapping[str, Answer]] = {}

    def act(self, observation: Any) -> Action:
        return self.create_noop_action()  # what is offered is decided on at the end of the step

    def propose_interaction(self, observation: Any, counterparty_id: str) -> None:
        return None

    def accept_interaction(self, proposal: Any, observation: Any) -> bool:
        answer = self.serves[proposal.initiator_id][proposal.content]
        if self._accepts == "helped":
            return not answer.refuses
        drawn = [self._draw(proposal.initiator_id, answer, k) for k in range(len(answer.scores))]
        return drawn[self._index] if self._accepts == "scores" else 2 * sum(drawn) > len(drawn)

    def _draw(self, initiator: str, answer: Answer, k: int) -> bool:
        rng = random.Random(f"{self._seed}/{initiator}/{answer.key}/{k}")
        score = max(-500.0, min(500.0, answer.scores[k]))
        return rng.random() < 1 / (1 + math.exp(-score))


class Answering(BaseAgent):
    """An initiator: offers its answer to the next prompt of every counterparty in turn."""

    def __init__(self, name: str, kind: AgentType, asking: Sequence[Asking], seed: int):
        super().__init__(name, kind, rng=random.Random(f"{seed}/{name}"))
        self._turns = cycle(self._rng.sample(list(asking), len(asking)))

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


class Judged(ProxyObservables):
    """Observables that carry the judge's p, which SWARM's own five signals have no room for."""

    p: float


class Observed:
    """SWARM's ObservableGenerator: looks up what was offered, and leaves its ground truth beside it."""

    def __init__(self, serves: Mapping[str, Mapping[str, Answer]]):
        self._serves = serves

    def generate(self, proposal: Any, accepted: bool, state: Any) -> Judged:
        answer = self._serves[proposal.initiator_id][proposal.metadata[ANSWER]]
        if answer.sign is not None:
            proposal.metadata["ground_truth"] = answer.sign
        return Judged(p=answer.p, task_progress_delta=v_hat_of(answer.p)[0], rework_count=answer.revisions)


class Direct(ProxyComputer):
    """p as the judge gave it, v̂ = logit(p)/k cut to [−1, 1]; with a weight, SWARM's rework signal is mixed in first."""

    def __init__(self, rework: float):
        super().__init__()
        self._rework = rework

    def compute_labels(self, observables: Any) -> tuple[float, float]:
        score = math.log(observables.p / (1 - observables.p)) / SHARPNESS
        mixed = (1 - self._rework) * score + self._rework * (2 * REWORK**observables.rework_count - 1)
        return max(-1.0, min(1.0, mixed)), p_of(mixed)


def cast(parts: Parts, scenario: Scenario, seed: int) -> Cast:
    """The players of one run: of every group of the scenario whose role is in `parts`, as many as it counts."""
    some = next(iter(parts.answers.values()))
    seats = [
        (group.role, f"{group.role.replace(' ', '-')}-{k}", AgentType(group.type))
        for group in scenario.agents
        for k in range(1, group.count + 1)
    ]
    asking = [
        Asking(name, kind, index, parts, [a.key for a in some if parts.brings[role] in (ANY, a.suite)], seed)
        for index, (role, name, kind) in enumerate(seat for seat in seats if seat[0] in parts.brings)
    ]
    answering = [(role, Answering(name, kind, asking, seed)) for role, name, kind in seats if role in parts.answers]
    serves = {agent.agent_id: {a.key: a for a in parts.answers[role]} for role, agent in answering}
    for agent in asking:
        agent.serves = serves
    return Cast([*(agent for _, agent in answering), *asking], Observed(serves), Direct(parts.rework))
