"""An engine and a learner whose model is a service's (`clients.training_service`): no weight of it is in this process.

The service rounds otherwise than anybody here could check, so `exact` is false: a completion's log-probabilities are
those of π_sampler, and log π_old is what the adapter in training says.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from choreo.clients.training_service import Sampler, Saved, Step, ToDraw, ToLearn, TrainedAdapter, TrainingService
from choreo.config.parts import BACKENDS
from choreo.engine import checkpoint
from choreo.engine.learner import PER_TOKEN, monitored
from choreo.engine.local import Kept, drawn_once
from choreo.engine.losses import Actions, PolicyLoss
from choreo.engine.noise import seed_of
from choreo.engine.requests import Completion, Ids, Request, Scorable
from choreo.errors import BadInput
from choreo.types import Sample

SEEDS = 2**31  # seeds of requests are below it


@dataclass(eq=False, slots=True)
class _Agent:
    """An agent as the service has it. version: counts its updates. adapter: in training, once that has begun. sampler:
    of this version. saved: this version, where it was saved."""

    version: int = 0
    adapter: TrainedAdapter | None = None
    sampler: Sampler | None = None
    saved: Saved | None = None


class RemoteEngine:
    """An `Engine` over one base of a service and the adapters on it. An agent that has learnt nothing is the base.

    positions: the most tokens of a context and its completion together; None is not known. vocabulary: how many ids
    the tokenizer's model has; a service that draws others has another base. rank: of new adapters.
    seed: what these begin from, with the agent's name. Its methods raise what `TrainingService` raises.
    """

    def __init__(
        self,
        service: TrainingService,
        *,
        pad_id: int,
        end_id: int,
        positions: int | None,
        vocabulary: int,
        rank: int,
        seed: int,
    ):
        self.service, self.pad_id, self.end_id, self.positions = service, pad_id, end_id, positions
        self.vocabulary = vocabulary
        self.rank, self.seed = rank, seed
        self._agents: dict[str, _Agent] = {}
        self._base: Sampler | None = None
        self._of_base: Kept = {}  # shared by all engines that this one gives of what it was
        self._kept: Kept | None = None

    @property
    def exact(self) -> bool:
        """See `Engine`."""
        return False

    def sample(
        self, agent: str | None, requests: Sequence[Request], *, max_new_tokens: int, temperature: float = 1.0
    ) -> list[Completion]:
        """One completion per request, in order; None is the base. Requests of one context are asked for together, all
        contexts at once. Log-probabilities are at the temperature that the service says them of: at 1, log π_sampler.

        Raises ValueError for constraints: what a service says of such tokens is not log π.
        """
        if any(request.constraint for request in requests):
            raise ValueError("a service samples freely")

        def draw(some: Sequence[Request]) -> list[Completion]:
            return self._drawn(agent, some, max_new_tokens, temperature)

        if self._kept is None or not requests:
            return draw(requests)
        return drawn_once(self._kept, requests, max_new_tokens, temperature, draw)

    def score(
        self, agent: str | None, pairs: Sequence[Scorable], masks: Tensor | None = None
    ) -> list[tuple[float, ...]]:
        """log π(ids | context) per id for every (context, ids), as the agent's adapter in training has it.

        Raises ValueError for the base, which is in no training, and for constrained turns.
        """
        if agent is None or self._kept is not None or any(len(pair) > 2 and pair[2] for pair in pairs):
            raise ValueError("a service scores what an adapter in training wrote freely")
        return self.adapter(agent).scores([pair[:2] for pair in pairs])

    def adapter(self, agent: str) -> TrainedAdapter:
        """The agent's adapter in training, which begins with its first use."""
        own = self._of(agent)
        if own.adapter is None and own.version:
            raise ValueError(f"agent {agent!r} is only sampled: it was taken from a checkpoint, and trains no more")
        if own.adapter is None:
            own.adapter = self.service.begin(self.rank, seed_of((self.seed, agent, "lora")))
        return own.adapter

    def version(self, agent: str) -> int:
        """How many updates the agent has had."""
        return self._of(agent).version

    def updated(self, agent: str) -> None:
        """What the agent has learnt is sampled from now on."""
        own = self._of(agent)
        own.version, own.sampler, own.saved = own.version + 1, None, None

    def untrained(self) -> RemoteEngine:
        """An engine in which every agent is the base, whose completions are drawn once."""
        other = copy(self)
        other._agents, other._kept = {}, self._of_base
        return other

    def saved(self, agent: str) -> dict[str, Any]:
        """The state of an agent for a checkpoint: where the service keeps it, under names never used again. What has
        not begun is nowhere."""
        own = self._of(agent)
        if own.adapter is not None and own.saved is None:
            own.saved = own.adapter.save(f"choreo-{agent}-{own.version}-{secrets.token_hex(4)}")
        state, weights = own.saved or ("", "")
        return {"agent": {"version": own.version, "weights": weights}, "optimizer": {"state": state}}

    def take(self, agent: str, state: Mapping[str, Any]) -> None:
        """Samples the agent by saved weights, as `saved` gives them under "agent"."""
        own = _Agent(state["version"])
        own.sampler = self.service.kept(state["weights"]) if state["weights"] else None
        self._agents[agent] = own

    def resume(self, agent: str, state: Mapping[str, Any]) -> None:
        """Goes on with what `saved` gave."""
        place = state["optimizer"]["state"]
        own = self._agents[agent] = _Agent(state["agent"]["version"])
        if place:
            own.adapter, own.saved = self.service.resume(place), Saved(place, state["agent"]["weights"])

    def _of(self, agent: str) -> _Agent:
        return self._agents.setdefault(agent, _Agent())

    def _sampler(self, agent: str | None) -> Sampler:
        own = None if agent is None else self._of(agent)
        if own is not None and own.sampler is None and own.adapter is not None:
            own.sampler = own.adapter.sampler()
        if own is not None and own.sampler is not None:
            return own.sampler
        if self._base is None:
            self._base = self.service.base()
        return self._base

    def _drawn(
        self, agent: str | None, requests: Sequence[Request], tokens: int, temperature: float
    ) -> list[Completion]:
        if not requests:
            return []
        places: dict[Ids, list[int]] = {}
        for i, request in enumerate(requests):
            places.setdefault(request.context, []).append(i)
        asked = [
            # With one seed a service may well make several completions of one context equal.
            ToDraw(context, len(own), seed_of(requests[own[0]].key) % SEEDS if len(own) == 1 else None)
            for context, own in places.items()
        ]
        drawn = self._sampler(agent).draw(asked, tokens=tokens, temperature=temperature, end_id=self.end_id)
        version = 0 if agent is None else self.version(agent)
        if (largest := max(token for group in drawn for one in group for token in one.ids)) >= self.vocabulary:
            raise BadInput(
                f"{self.service.url}: drew token {largest}, and the model of the tokenizer has {self.vocabulary}: "
                "model.base is not the base that the service has"
            )
        found = zip(chain.from_iterable(places.values()), chain.from_iterable(drawn), strict=True)
        done = {i: Completion(one.ids, one.logprobs, one.ids[-1] == self.end_id, version) for i, one in found}
        return [done[i] for i in range(len(requests))]


class RemoteLearner:
    """The `Learner` of an agent whose weights a service has: its update is AdamW on the clipped policy loss, there.

    What divides our loss, by the count of the whole batch, is a positive number for each token, so that it goes into
    the advantage as importance weights do: the sum that the service takes is the divided loss.
    """

    def __init__(self, engine: RemoteEngine, agent: str, *, lr: float, max_grad_norm: float = 1.0):
        self.engine, self.agent, self.lr, self.max_grad_norm = engine, agent, lr, max_grad_norm

    def update(self, samples: Sequence[Sample], loss: PolicyLoss, *, lr: float | None = None) -> dict[str, float]:
        """One step. Returns the figures of `Learner.update` but for grad_norm and kl, all of them from the service's
        log-probabilities before the step, and loss_gap: how far the service's own sum of the loss is from ours, in
        parts of Σ|share · advantage|; where it says that sum.

        Raises ValueError for a loss with KL and for samples of another agent or of constrained turns;
        FloatingPointError where log-probabilities are not finite: the service has made the step all the same.
        """
        if loss.kl or any(sample.choices or sample.agent != self.agent for sample in samples):
            raise ValueError(f"a service learns from free turns of {self.agent!r}, and knows no KL")
        self.lr = self.lr if lr is None else lr
        if not samples:
            return {"tokens": 0.0, "sequences": 0.0}
        lengths = [len(sample.ids) for sample in samples]
        shares = loss.shares(lengths)
        actions = [
            ToLearn(one.context, one.ids, one.logprobs, tuple(share * advantage for advantage in one.advantages))
            for one, share in zip(samples, shares, strict=True)
        ]
        high = loss.clip if loss.clip_high is None else loss.clip_high
        step = Step(1 - loss.clip, 1 + high, self.lr, self.max_grad_norm)
        told = self.engine.adapter(self.agent).update(actions, step)
        self.engine.updated(self.agent)
        figures = _figures(samples, told.logprobs, loss)
        if not math.isfinite(figures["loss"]):
            raise FloatingPointError(f"the loss of agent {self.agent!r} is not finite; its last checkpoint is whole")
        size = sum(abs(advantage) for action in actions for advantage in action.advantages)
        gap = {} if told.loss is None or not size else {"loss_gap": abs(told.loss - figures["loss"]) / size}
        return {**figures, **gap, "tokens": float(sum(lengths)), "sequences": float(len(samples))}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: where the service keeps the adapter and its optimiser's state."""
        return self.engine.saved(self.agent)

    def example(self) -> dict[str, Any]:
        """An example of a saved state (`checkpoint.check`)."""
        return {"agent": {"version": 0, "weights": ""}, "optimizer": {"state": ""}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on with what `state_dict` gave."""
        self.engine.resume(self.agent, state)


def kept_there(backend: str, folder: Path) -> str:
    """In words, where the weights of the checkpoint in `folder` are, and how to get them."""
    places = [state["optimizer"]["state"] for state in checkpoint.load(folder)["agents"].values()]
    commands = [BACKENDS.get(backend).fetch(place) for place in places if place]
    return f"its weights are on {backend}, and none is here: {'; '.join(commands) or 'they are those of the base'}"


def _figures(samples: Sequence[Sample], logprobs: Sequence[Sequence[float]], loss: PolicyLoss) -> dict[str, float]:
    def flat(rows: Sequence[Sequence[float]]) -> Tensor:
        return torch.tensor([*chain.from_iterable(rows)], dtype=torch.float32)

    lengths = [len(sample.ids) for sample in samples]
    sequence = torch.tensor([*chain.from_iterable(repeat(i, length) for i, length in enumerate(lengths))])
    old, advantages = flat([one.logprobs for one in samples]), flat([one.advantages for one in samples])
    actions = Actions(flat(logprobs), sequence, len(samples), old, None, advantages)
    terms = loss(actions)
    sums = {"loss": terms.total, **terms.record, **monitored(actions)}
    return {
        name: float(value) / (sum(lengths) if name in PER_TOKEN else float(terms.over)) for name, value in sums.items()
    }
