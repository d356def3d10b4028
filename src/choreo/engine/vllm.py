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
from contextlib import nullcontext
from dataclasses import dataclass, field

from choreo import parallel
from choreo.clients.drawn import Drawn
from choreo.clients.vllm import VllmServer
from choreo.config.rollouts import Rollouts
from choreo.engine.adapters import Adapters
from choreo.engine.local import LocalEngine
from choreo.engine.noise import seed_of
from choreo.engine.policies import LowRank
from choreo.engine.requests import Completion, Ids, Request
from choreo.engine.served import PROBES, ServedEngine
from choreo.errors import BadInput

DISTURBED = 4.0  # the first adapter changes log-probabilities by this many tolerances at least


@dataclass(eq=False, slots=True)
class _Loaded:
    """The adapter of an agent, as it is on the servers. proven: the servers that were seen to have its weights."""

    version: int
    name: str
    policy: LowRank
    proven: set[int] = field(default_factory=set)


class VllmEngine(ServedEngine[VllmServer, str]):
    """A `LocalEngine` that asks vLLM servers for samples. Request i goes to server i modulo their number.

    The first rank asks for all ranks. What its methods raise, see `ServedEngine`.
    """

    def __init__(self, own: LocalEngine, settings: Rollouts):
        super().__init__(own, settings, [VllmServer(url) for url in settings.url])
        self._adapters = Adapters(self._servers, settings.folder)
        self._bases: list[str] = []
        self._loaded: dict[str, _Loaded] = {}
        self._seen: dict[tuple[str, int], LowRank] = {}  # the last weights of an agent that a server was seen to have

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
        super().close()

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
        told = self._seen.get((agent, place))
        found = self._compare(place, texts, loaded.policy.weights(), told.weights() if told else {})
        if found.stale:
            raise BadInput(
                f"{self._servers[place].url}: samples of {loaded.name} are not by the weights that it was given "
                f"({found.share:.0%} of what has changed shows in their log-probabilities)"
            )
        if found.told:
            self._seen[agent, place] = loaded.policy
        loaded.proven.add(place)

    def _connect(self) -> int | None:
        found = [server.base() for server in self._servers]
        self._longest = min((most for _, most in found if most is not None), default=None)
        self._bases = [name for name, _ in found]
        texts = [self._probe_far(place, name) for place, name in enumerate(self._bases)]
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
        return self._longest

    def _disturbed(self, texts: Sequence[tuple[Ids, Drawn]]) -> LowRank:
        """An adapter with noise on its weights, which changes our log-probabilities of the texts by enough to see."""
        policy = self._lora(next(iter(self.team.agents)))
        found, texts = policy.copied(), texts[: PROBES // 2]  # the short ones: this is done many times
        before = self._scores(texts, {})
        for power in range(-12, 8):
            found = policy.copied(disturbed=2.0**power)
            if self._change(texts, found.weights(), before) >= DISTURBED * self.settings.tolerance:
                break
        return found

    def _complete(
        self, place: int, model: str, request: Request, tokens: int, end_id: int | None, temperature: float
    ) -> Drawn:
        seed, temperature = seed_of(request.key) % 2**63, self.team.temperature * temperature
        return self._servers[place].complete(
            model, request.context, tokens=tokens, temperature=temperature, seed=seed, end_id=end_id
        )

    def _hint(self) -> str:
        return "" if self.team.temperature == 1 else ", or lacks --logprobs-mode processed_logprobs"
