"""What engines have in common whose samples come from servers: asking them, and comparing them with what we have.

A server rounds otherwise than this process does, so `exact` is false, and nothing that it sampled counts before its
weights are proven (`engine.sync`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from random import Random
from typing import Generic, TypeVar

from choreo.clients.drawn import Drawn
from choreo.clients.token_server import CONCURRENCY, TokenServer
from choreo.config.rollouts import Rollouts
from choreo.engine.local import LocalEngine
from choreo.engine.policies import LowRank, Weights
from choreo.engine.requests import Ids, Request
from choreo.engine.score import score_under
from choreo.engine.sync import Sync, compared
from choreo.errors import BadInput

PROBES = 16  # completions of a server whose log-probabilities are compared
PROBE_TOKENS = 16  # of those that are drawn for that alone
FAR = 250  # tokens of the contexts of half of those, or what the model has room for: there positions show

Asked = TypeVar("Asked")
Found = TypeVar("Found")
Model = TypeVar("Model")  # what a server knows a policy by
Host = TypeVar("Host", bound=TokenServer)


class ServedEngine(LocalEngine, ABC, Generic[Host, Model]):
    """A `LocalEngine` that asks servers for samples. Scores and features stay in this process.

    Its methods raise what `TokenServer` raises, and BadInput where a server is not in sync. `ready` comes before the
    first sample, `close` after the last.
    """

    def __init__(self, own: LocalEngine, settings: Rollouts, servers: Sequence[Host]):
        super().__init__(own.team, pad_id=own.pad_id, end_id=own.end_id, slots=own.slots, micro_tokens=own.micro_tokens)
        self.settings, self._servers = settings, servers
        self._longest: int | None = None

    @property
    def exact(self) -> bool:
        """See `Engine`."""
        return False

    @property
    def positions(self) -> int | None:
        """The most tokens of a context and its completion together, here and on every server."""
        return min((most for most in (super().positions, self._longest) if most is not None), default=None)

    @abstractmethod
    def ready(self) -> None:
        """Connects to the servers, and proves what has to be true before they are asked."""

    def close(self) -> None:
        for server in self._servers:
            server.close()

    @abstractmethod
    def _complete(
        self, place: int, model: Model, request: Request, tokens: int, end_id: int | None, temperature: float
    ) -> Drawn:
        """What server `place` draws after a context, of a policy at `temperature` times the temperature of its own."""

    def _draw(
        self, asked: Sequence[tuple[int, Model, Request]], tokens: int, end_id: int | None, temperature: float = 1.0
    ) -> list[Drawn]:
        """What the servers draw for each (server, model, request), in order."""

        def draw(one: tuple[int, Model, Request]) -> Drawn:
            place, model, request = one
            return self._complete(place, model, request, tokens, end_id, temperature)

        return self._at_once(draw, asked)

    def _at_once(self, ask: Callable[[Asked], Found], asked: Sequence[Asked]) -> list[Found]:
        """What `ask` finds for each, in order, as many at a time as the servers take. The first failure ends all."""
        pool = ThreadPoolExecutor(CONCURRENCY * len(self._servers), thread_name_prefix="ask")
        try:
            return list(pool.map(ask, asked))
        finally:
            pool.shutdown(cancel_futures=True)

    def _probe(self, place: int, model: Model, contexts: Sequence[Ids] = ()) -> list[tuple[Ids, Drawn]]:
        """Contexts, and what a server draws after them. By default they are a token."""
        contexts = contexts or [(self.end_id,)] * PROBES
        asked = [(place, model, Request(context, ("probe", i))) for i, context in enumerate(contexts)]
        return list(zip(contexts, self._draw(asked, PROBE_TOKENS, None), strict=True))

    def _probe_far(self, place: int, model: Model) -> list[tuple[Ids, Drawn]]:
        """As `_probe`; half of the contexts are long, of ids that the server drew after the others."""
        near = self._probe(place, model, [(self.end_id,)] * (PROBES // 2))
        seen = [token for _, one in near for token in one.ids]
        room = FAR if self.positions is None else max(1, min(FAR, self.positions - PROBE_TOKENS))
        return near + self._probe(place, model, [tuple(Random(i).choices(seen, k=room)) for i in range(PROBES // 2)])

    def _change(self, texts: Sequence[tuple[Ids, Drawn]], weights: Weights, before: Sequence[float]) -> float:
        """By how many nats our log-probabilities of a token of the texts under `weights` differ from `before`."""
        change = [abs(a - b) for a, b in zip(self._scores(texts, weights), before, strict=True)]
        return sum(change) / len(change)

    def _compare(self, place: int, texts: Sequence[tuple[Ids, Drawn]], now: Weights, before: Weights) -> Sync:
        """As `_told`. Raises BadInput where the server's log-probabilities are not ours, within the tolerance."""
        found, most = self._told(place, texts, now, before), self.settings.tolerance
        if not found.gap <= most:
            raise BadInput(
                f"{self._servers[place].url}: its log-probabilities differ from ours by {found.gap:.3g} nats a token, "
                f"and engine.tolerance is {most:g}: it has another base, other weights or another dtype{self._hint()}"
            )
        return found

    def _told(self, place: int, texts: Sequence[tuple[Ids, Drawn]], now: Weights, before: Weights) -> Sync:
        """How what the server drew agrees with our weights. Raises BadInput where they cannot be compared."""
        url = self._servers[place].url
        vocabulary = self.team.decoder.model.get_output_embeddings().weight.shape[0]
        if (largest := max(token for _, one in texts for token in one.ids)) >= vocabulary:
            raise BadInput(f"{url}: drew token {largest}, and the base has {vocabulary}: it serves another base")
        if not (server := list(chain.from_iterable(one.logprobs for _, one in texts))):
            raise BadInput(f"{url}: says no log-probability of what it draws")
        return compared(server, self._scores(texts, now), self._scores(texts, before))

    def _hint(self) -> str:
        """What else may be wrong where log-probabilities differ."""
        return ""

    def _scores(self, texts: Sequence[tuple[Ids, Drawn]], weights: Weights) -> list[float]:
        pairs = [(context, one.ids[: len(one.logprobs)]) for context, one in texts if one.logprobs]
        return list(chain.from_iterable(score_under(self.team, weights, pairs, self.micro_tokens)))

    def _lora(self, agent: str) -> LowRank:
        policy = self.team.agents[agent]
        if not isinstance(policy, LowRank):
            raise ValueError(f"agent {agent!r} has whole weights, and a server takes adapters")
        return policy
