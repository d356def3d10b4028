"""The engine of this process: transformers models on PyTorch, batched, with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from choreo import parallel
from choreo.engine import sample as sampling
from choreo.engine import score as scoring
from choreo.engine.agent import Team
from choreo.engine.requests import Completion, Ids, Request, Scorable
from choreo.errors import BadInput

SLOTS = 65536


class LocalEngine:
    """An `Engine` over a `Team`. It reads the team's weights at every call, so it never uses old ones. Of several ranks
    each samples and scores a share, and all get the whole.

    slots: cache slots held at once while sampling (rows × (context + new tokens)).
    micro_tokens: token slots per forward pass while scoring. Neither changes a result beyond rounding.
    """

    def __init__(self, team: Team, *, pad_id: int, end_id: int, slots: int = SLOTS, micro_tokens: int = 16384):
        if pad_id == end_id:
            raise ValueError("pad_id and end_id must differ: a model that never learns its end token never stops")
        self.team, self.pad_id, self.end_id = team, pad_id, end_id
        self.slots, self.micro_tokens = slots, micro_tokens

    @property
    def exact(self) -> bool:
        """See `Engine`."""
        return True

    @property
    def positions(self) -> int | None:
        """The most tokens of a context and its completion together; None is no limit."""
        return self.team.positions

    def sample(
        self, agent: str | None, requests: Sequence[Request], *, max_new_tokens: int, temperature: float = 1.0
    ) -> list[Completion]:
        """One completion per request, in order. Temperature 0 is greedy; log-probabilities are at temperature 1.

        None is the reference. Raises BadInput for a context that leaves no room for the new tokens in the model's
        positions.
        """
        longest = max((len(request.context) for request in requests), default=0)
        if self.positions is not None and longest + max_new_tokens > self.positions:
            raise BadInput(
                f"a context of {longest} tokens and {max_new_tokens} new ones overflow the model's "
                f"{self.positions} positions"
            )
        draw = partial(
            sampling.sample,
            self.team,
            agent,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            end_id=self.end_id,
            pad_id=self.pad_id,
            slots=self.slots,
        )
        with self.team.whole(agent):
            return parallel.spread(requests, draw)

    def score(
        self, agent: str | None, pairs: Sequence[Scorable], masks: Tensor | None = None
    ) -> list[tuple[float, ...]]:
        """log π(ids | context), float32, per id for every (context, ids). None is the reference; see `Engine.score`."""
        with self.team.whole(agent):
            return parallel.spread(pairs, lambda own: scoring.score(self.team, agent, own, self.micro_tokens, masks))

    def features(self, contexts: Sequence[Ids]) -> Tensor:
        """float32 [len(contexts), d]: the reference's last hidden state at each context's last token."""
        return scoring.last_states(self.team, contexts, self.micro_tokens)


Kept = dict[tuple[Request, int, float], Completion]
"""What the base completed: by request, the most new tokens and the temperature."""


def drawn_once(
    kept: Kept,
    requests: Sequence[Request],
    tokens: int,
    temperature: float,
    draw: Callable[[Sequence[Request]], Sequence[Completion]],
) -> list[Completion]:
    """One completion per request, in order. What `kept` has is not drawn again; what it has not is put there."""
    asked = [(request, tokens, temperature) for request in requests]
    new = [one for one in dict.fromkeys(asked) if one not in kept]
    kept.update(zip(new, draw([request for request, *_ in new]) if new else (), strict=True))
    return [kept[one] for one in asked]


class Untrained(LocalEngine):
    """The agents of a team before training: every agent answers as the base, or as the policy that `policies` names.

    Loading the base a second time would give the same tokens and take the memory of a second model.
    kept: where the base's free completions are kept, so that engines which share it draw each of them once. Systems
    that begin with the same answers are measured one after the other.
    sampler: who samples for it, where that is not this process.
    """

    def __init__(
        self,
        team: Team,
        *,
        policies: Mapping[str, str] | None = None,
        kept: Kept | None = None,
        sampler: LocalEngine | None = None,
        **options: Any,
    ):
        super().__init__(team, **options)
        self.policies, self.kept, self.sampler = dict(policies or {}), kept, sampler

    @property
    def exact(self) -> bool:
        """See `Engine`."""
        return self.sampler is None or self.sampler.exact

    @property
    def positions(self) -> int | None:
        """See `Engine`."""
        return super().positions if self.sampler is None else self.sampler.positions

    def sample(
        self, agent: str | None, requests: Sequence[Request], *, max_new_tokens: int, temperature: float = 1.0
    ) -> list[Completion]:
        policy, kept = self.policies.get(agent) if agent else None, self.kept

        def draw(some: Sequence[Request]) -> list[Completion]:
            sample = super(Untrained, self).sample if self.sampler is None else self.sampler.sample
            return sample(policy, some, max_new_tokens=max_new_tokens, temperature=temperature)

        if kept is None or policy is not None or any(request.constraint for request in requests):
            return draw(requests)
        return drawn_once(kept, requests, max_new_tokens, temperature, draw)

    def score(
        self, agent: str | None, pairs: Sequence[Scorable], masks: Tensor | None = None
    ) -> list[tuple[float, ...]]:
        return super().score(self.policies.get(agent) if agent else None, pairs, masks)
