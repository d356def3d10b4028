"""An engine whose samples come from vLLM servers. Scores, features and learning stay in this process.

A server rounds otherwise than the learner does, so `exact` is false: a completion's log-probabilities are those of
π_sampler, and log π_old is what `score` says. Nothing that a server sampled counts before its weights are proven:

- when it is connected: its base has our base's log-probabilities, and an adapter with disturbed weights changes them
  as it changes ours;
- for every version: what it drew has our log-probabilities of this version, not those of the version before
  (`engine.sync`).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import chain

from choreo import parallel
from choreo.clients.vllm import CONCURRENCY, Drawn, VllmServer
from choreo.config.rollouts import Rollouts
from choreo.engine.adapters import Adapters
from choreo.engine.local import LocalEngine
from choreo.engine.noise import seed_of
from choreo.engine.policies import LowRank, Weights
from choreo.engine.requests import Completion, Ids, Request
from choreo.engine.score import score_under
from choreo.engine.sync import Sync, compared
from choreo.errors import BadInput

PROBES = 16  # completions of a server whose log-probabilities are compared
PROBE_TOKENS = 16  # of those that are drawn for that alone
DISTURBED = 4.0  # the first adapter changes log-probabilities by this many tolerances at least


@dataclass(eq=False, slots=True)
class _Loaded:
    """The adapter of an agent, as it is on the servers. proven: the servers that were seen to have its weights."""

    version: int
    name: str
    policy: LowRank
    proven: set[int] = field(default_factory=set)


class VllmEngine(LocalEngine):
    """A `LocalEngine` that asks vLLM servers for samples. Request i goes to server i modulo their number.

    The first rank asks for all ranks. Its methods raise what `VllmServer` raises, and BadInput where a server is not in
    sync. `ready` comes before the first sample, `close` after the last.
    """

    def __init__(self, own: LocalEngine, settings: Rollouts):
        super().__init__(own.team, pad_id=own.pad_id, end_id=own.end_id, slots=own.slots, micro_tokens=own.micro_tokens)
        self.settings = settings
        self._servers = [VllmServer(url) for url in settings.url]
        self._adapters = Adapters(self._servers, settings.folder)
        self._bases: list[str] = []
        self._loaded: dict[str, _Loaded] = {}
        self._told: dict[tuple[str, int], LowRank] = {}  # the last weights of an agent that a server was seen to have
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
        """Connects to the servers, and proves that they have our base and apply the adapters that they are given."""
        self._longest = parallel.first(self._connect)

    def sample(
        self, agent: str | None, requests: Sequence[Request], *, max_new_tokens: int, temperature: float = 1.0
    ) -> list[Completion]:
        """One completion per request, in order, by the agent's weights of now. None is the reference.

        Raises ValueError for another temperature than 1 and for constraints: what a server says of such tokens is not
        log π.
        """
        if temperature != 1 or any(request.constraint for request in requests):
            raise ValueError("a server samples what is learnt from alone: at temperature 1, and free")
        return parallel.first(lambda: self._sample(agent, requests, max_new_tokens))

    def close(self) -> None:
        """Unloads what was loaded."""
        for loaded in self._loaded.values():
            self._adapters.retire(loaded.name)
        self._loaded.clear()
        self._adapters.close()
        for server in self._servers:
            server.close()

    def _sample(self, agent: str | None, requests: Sequence[Request], tokens: int) -> list[Completion]:
        loaded = None if agent is None else self._of_now(agent)
        places = [i % len(self._servers) for i in range(len(requests))]
        with self._adapters.using(loaded.name) if loaded else nullcontext():
            asked = [
                (place, loaded.name if loaded else self._bases[place], request)
                for place, request in zip(places, requests, strict=True)
            ]
            drawn = self._draw(asked, tokens, self.end_id)
        if agent is not None and loaded is not None:
            for place in {*places} - loaded.proven:
                own = [i for i, used in enumerate(places) if used == place][:PROBES]
                texts = [(requests[i].context, drawn[i]) for i in own]
                self._prove(agent, loaded, place, texts)
        version = loaded.version if loaded else 0
        return [Completion(one.ids, one.logprobs, one.ids[-1] == self.end_id, version) for one in drawn]

    def _of_now(self, agent: str) -> _Loaded:
        """The agent's weights of now on every server. Those before are unloaded only then."""
        before, version = self._loaded.get(agent), self.team.version[agent]
        if before and before.version == version:
            return before
        policy = self._lora(agent).copied()
        name = self._adapters.load(policy, self.team.decoder.model, f"{agent}-{version}")
        self._loaded[agent] = _Loaded(version, name, policy)
        if before:
            self._adapters.retire(before.name)
        return self._loaded[agent]

    def _prove(self, agent: str, loaded: _Loaded, place: int, texts: Sequence[tuple[Ids, Drawn]]) -> None:
        """Raises BadInput where a server did not draw the texts by the weights that it was given."""
        told = self._told.get((agent, place))
        found = self._compare(place, texts, loaded.policy.weights(), told.weights() if told else {})
        if found.stale:
            raise BadInput(
                f"{self._servers[place].url}: samples of {loaded.name} are not by the weights that it was given "
                f"({found.share:.0%} of what has changed shows in their log-probabilities)"
            )
        if found.told:
            self._told[agent, place] = loaded.policy
        loaded.proven.add(place)

    def _connect(self) -> int | None:
        found = [server.base() for server in self._servers]
        self._bases = [name for name, _ in found]
        texts = [self._probe(place, name) for place, name in enumerate(self._bases)]
        for place, own in enumerate(texts):
            self._compare(place, own, {}, {})
        policy = self._disturbed(texts[0])
        name = self._adapters.load(policy, self.team.decoder.model, "probe")
        try:
            for place, server in enumerate(self._servers):
                met = self._compare(place, self._probe(place, name), policy.weights(), {})
                if not met.told:
                    raise BadInput(
                        f"{server.url}: an adapter with other weights changes its log-probabilities by "
                        f"{met.share:.0%} of what it should"
                    )
        finally:
            self._adapters.retire(name)
        return min((most for _, most in found if most is not None), default=None)

    def _probe(self, place: int, model: str) -> list[tuple[Ids, Drawn]]:
        asked = [(place, model, Request((self.end_id,), ("probe", i))) for i in range(PROBES)]
        return [((self.end_id,), one) for one in self._draw(asked, PROBE_TOKENS, None)]

    def _disturbed(self, texts: Sequence[tuple[Ids, Drawn]]) -> LowRank:
        """An adapter with noise on its weights, which changes our log-probabilities of the texts by enough to see."""
        policy, base = self._lora(next(iter(self.team.agents))), self._scores(texts, {})
        found = policy.copied()
        for power in range(-12, 8):
            found = policy.copied(disturbed=2.0**power)
            change = [abs(a - b) for a, b in zip(self._scores(texts, found.weights()), base, strict=True)]
            if sum(change) / len(change) >= DISTURBED * self.settings.tolerance:
                break
        return found

    def _compare(self, place: int, texts: Sequence[tuple[Ids, Drawn]], now: Weights, before: Weights) -> Sync:
        """Raises BadInput where the server's log-probabilities are not ours, within the tolerance."""
        url, most = self._servers[place].url, self.settings.tolerance
        vocabulary = self.team.decoder.model.get_output_embeddings().weight.shape[0]
        if (largest := max(token for _, one in texts for token in one.ids)) >= vocabulary:
            raise BadInput(f"{url}: drew token {largest}, and the base has {vocabulary}: it serves another base")
        server = list(chain.from_iterable(one.logprobs for _, one in texts))
        found = compared(server, self._scores(texts, now), self._scores(texts, before))
        if not found.gap <= most:
            tempered = "" if self.team.temperature == 1 else ", or lacks --logprobs-mode processed_logprobs"
            raise BadInput(
                f"{url}: its log-probabilities differ from ours by {found.gap:.3g} nats a token, and engine.tolerance "
                f"is {most:g}: it has another base, other weights or another dtype{tempered}"
            )
        return found

    def _scores(self, texts: Sequence[tuple[Ids, Drawn]], weights: Weights) -> list[float]:
        pairs = [(context, one.ids) for context, one in texts]
        return list(chain.from_iterable(score_under(self.team, weights, pairs, self.micro_tokens)))

    def _draw(self, asked: Sequence[tuple[int, str, Request]], tokens: int, end_id: int | None) -> list[Drawn]:
        """What the servers draw for each (server, model, request), in order."""

        def draw(one: tuple[int, str, Request]) -> Drawn:
            place, model, request = one
            seed = seed_of(request.key) % 2**63
            temperature = self.team.temperature
            return self._servers[place].complete(
                model, request.context, tokens=tokens, temperature=temperature, seed=seed, end_id=end_id
            )

        pool = ThreadPoolExecutor(CONCURRENCY * len(self._servers), thread_name_prefix="vllm")
        try:
            return list(pool.map(draw, asked))
        finally:
            pool.shutdown(cancel_futures=True)

    def _lora(self, agent: str) -> LowRank:
        policy = self.team.agents[agent]
        if not isinstance(policy, LowRank):
            raise ValueError(f"agent {agent!r} has whole weights, and a server takes adapters")
        return policy
