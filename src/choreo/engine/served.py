"""What engines have in common whose samples come from servers: asking them, and comparing them with what we have.

A server rounds otherwise than this process does, so `exact` is false, and nothing that it sampled counts before its
weights are proven (`engine.sync`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Generic, TypeVar

from choreo.clients.token_server import CONCURRENCY, Drawn, TokenServer
from choreo.config.rollouts import Rollouts
from choreo.engine.local import LocalEngine
from choreo.engine.policies import LowRank, Weights
from choreo.engine.requests import Ids, Request
from choreo.engine.score import score_under
from choreo.engine.sync import Sync, compared
from choreo.errors import BadInput

PROBES = 16  # completions of a server whose log-probabilities are compared
PROBE_TOKENS = 16  # of those that are drawn for that alone

Model = TypeVar("Model")
"""What a server knows a policy by."""


class ServedEngine(LocalEngine, Generic[Model]):
    """A `LocalEngine` that asks servers for samples. Scores and features stay in this process.

    Its methods raise what `TokenServer` raises, and BadInput where a server is not in sync. `ready` comes before the
    first sample, `close` after the last.
    """

    def __init__(self, own: LocalEngine, settings: Rollouts, servers: Sequence[TokenServer]):
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

    def ready(self) -> None:
        """Connects to the servers, and proves what has to be true before they are asked."""
        raise NotImplementedError

    def close(self) -> None:
        for server in self._servers:
            server.close()

    def _complete(
        self, place: int, model: Model, request: Request, tokens: int, end_id: int | None, temperature: float
    ) -> Drawn:
        """What server `place` draws after a context, of a policy at `temperature` times the temperature of its own."""
        raise NotImplementedError

    def _draw(
        self, asked: Sequence[tuple[int, Model, Request]], tokens: int, end_id: int | None, temperature: float = 1.0
    ) -> list[Drawn]:
        """What the servers draw for each (server, model, request), in order."""

        def draw(one: tuple[int, Model, Request]) -> Drawn:
            place, model, request = one
            return self._complete(place, model, request, tokens, end_id, temperature)

        pool = ThreadPoolExecutor(CONCURRENCY * len(self._servers), thread_name_prefix="ask")
        try:
            return list(pool.map(draw, asked))
        finally:
            pool.shutdown(cancel_futures=True)

    def _probe(self, place: int, model: Model) -> list[tuple[Ids, Drawn]]:
        asked = [(place, model, Request((self.end_id,), ("probe", i))) for i in range(PROBES)]
        return [((self.end_id,), one) for one in self._draw(asked, PROBE_TOKENS, None)]

    def _change(self, texts: Sequence[tuple[Ids, Drawn]], weights: Weights) -> float:
        """By how many nats a token `weights` move our log-probabilities of the texts from the base's, on average."""
        pairs = zip(self._scores(texts, weights), self._scores(texts, {}), strict=True)
        change = [abs(a - b) for a, b in pairs]
        return sum(change) / len(change)

    def _compare(self, place: int, texts: Sequence[tuple[Ids, Drawn]], now: Weights, before: Weights) -> Sync:
        """Raises BadInput where the server's log-probabilities are not ours, within the tolerance."""
        url, most = self._servers[place].url, self.settings.tolerance
        vocabulary = self.team.decoder.model.get_output_embeddings().weight.shape[0]
        if (largest := max(token for _, one in texts for token in one.ids)) >= vocabulary:
            raise BadInput(f"{url}: drew token {largest}, and the base has {vocabulary}: it serves another base")
        if not (server := list(chain.from_iterable(one.logprobs for _, one in texts))):
            raise BadInput(f"{url}: says no log-probability of what it draws")
        found = compared(server, self._scores(texts, now), self._scores(texts, before))
        if not found.gap <= most:
            raise BadInput(
                f"{url}: its log-probabilities differ from ours by {found.gap:.3g} nats a token, and engine.tolerance "
                f"is {most:g}: it has another base, other weights or another dtype{self._hint()}"
            )
        return found

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
