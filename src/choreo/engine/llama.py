"""An engine whose samples come from llama.cpp's server, to measure and to serve a pair that is trained.

Nothing can be learnt from it: it loads adapters when it starts and at no other time. Each request says which of them it
wants. As with vLLM nothing counts before the weights are proven: when it is connected, its base has our base's
log-probabilities, and the adapter of every agent changes them as ours does. For that the adapter's scale is raised
until the change is many tolerances, so that an adapter which is nearly the right one shows too.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat

from torch import Tensor

from choreo import parallel
from choreo.clients.llama import LlamaServer
from choreo.clients.token_server import CONCURRENCY, Drawn
from choreo.config.rollouts import Rollouts
from choreo.engine.constraint import ENDS, FORCED, Choices, Constraint, Given
from choreo.engine.local import LocalEngine
from choreo.engine.noise import seed_of
from choreo.engine.policies import LowRank
from choreo.engine.requests import Completion, Ids, Request
from choreo.engine.served import ServedEngine
from choreo.errors import BadInput

CHANGED = 16.0  # a raised adapter changes log-probabilities by this many tolerances
RAISED = 12  # an adapter's scale is doubled so many times at most
PIECE = 64  # ids of a constrained turn that are drawn at once; those behind a change of the rules are drawn again
FEW = 8  # a row of the masks with so few ids is a label, after which the rules change
QUOTE = '"'  # ends what may be free in a constrained turn, a string of JSON

Scales = dict[int, float]
"""The scale of every adapter that a server has."""


class LlamaEngine(ServedEngine[Scales]):
    """A `LocalEngine` that asks llama.cpp servers for samples. Request i goes to server i modulo their number.

    The first rank asks for all ranks. What its methods raise, see `ServedEngine`. An agent plays by the adapter of its
    name; one that has learnt nothing needs none.
    """

    def __init__(self, own: LocalEngine, settings: Rollouts):
        self._own = [LlamaServer(url) for url in settings.url]
        super().__init__(own, settings, self._own)
        self._numbers: list[dict[str, int]] = []
        self._ids = 0

    def ready(self) -> None:
        """Connects to the servers, and proves that they have our base and the adapters of all agents."""
        if not all(isinstance(policy, LowRank) for policy in self.team.agents.values()):
            raise BadInput('model.train = "full": a server takes adapters, not whole models (engine.rollouts)')
        if self.team.temperature != 1:
            raise BadInput(
                f"model.temperature = {self.team.temperature:g}: llama.cpp says log-probabilities at temperature 1 "
                "alone, so its weights cannot be proven"
            )
        self._longest, self._ids, self._numbers = parallel.first(self._connect)

    def sample(
        self, agent: str | None, requests: Sequence[Request], *, max_new_tokens: int, temperature: float = 1.0
    ) -> list[Completion]:
        """One completion per request, in order. None is the reference. Constrained completions, and those of which the
        server does not say all log-probabilities, have none."""
        longest = max((len(request.context) for request in requests), default=0)
        if self.positions is not None and longest + max_new_tokens > self.positions:
            raise BadInput(
                f"a context of {longest} tokens and {max_new_tokens} new ones overflow {self.positions} positions, of "
                "the model or of the server (--ctx-size, which its slots share)"
            )
        return parallel.first(lambda: self._sample(agent, requests, max_new_tokens, temperature))

    def goes_on(
        self, agent: str, request: Request, constraint: Constraint, given: Given, tokens: int, temperature: float
    ) -> tuple[Ids, Choices]:
        """At most `tokens` ids after the context, and how each was chosen. The first are those of `given`, what the
        constraint asked for last.

        The server draws under one row of the masks. What it drew behind an id that changes the rules is drawn again.
        """
        place = seed_of(request.key) % len(self._own)
        ids, choices = [*given.ids], [FORCED] * len(given.ids)
        while given.row != ENDS and len(ids) < tokens:
            row, allowed = given.row, constraint.masks[given.row]
            drawn = self._own[place].complete(
                self._scales(place, agent),
                (*request.context, *ids),
                tokens=1 if int(allowed.sum()) <= FEW else min(PIECE, tokens - len(ids)),
                temperature=temperature,
                seed=seed_of((*request.key, len(ids))),
                end_id=self.end_id,
                never=_others(allowed, self._ids),
                stop=QUOTE,
            )
            for token in drawn.ids:
                given = constraint.after(given.state, token)
                ids += (token, *given.ids)
                choices += (row, *repeat(FORCED, len(given.ids)))
                if given.ids or given.row != row:
                    break
        return tuple(ids[:tokens]), tuple(choices[:tokens])

    def _sample(
        self, agent: str | None, requests: Sequence[Request], tokens: int, temperature: float
    ) -> list[Completion]:
        version = self.team.version[agent] if agent else 0
        if any(request.constraint for request in requests):
            with ThreadPoolExecutor(CONCURRENCY) as pool:
                held = [pool.submit(self._held, str(agent), one, tokens, temperature) for one in requests]
            turns = [one.result() for one in held]
            return [Completion(ids, (), ids[-1] == self.end_id, version, choices) for ids, choices in turns]
        places = [i % len(self._own) for i in range(len(requests))]
        asked = [(place, self._scales(place, agent), one) for place, one in zip(places, requests, strict=True)]
        drawn = self._draw(asked, tokens, self.end_id, temperature)
        return [
            Completion(
                one.ids, one.logprobs if len(one.logprobs) == len(one.ids) else (), one.ids[-1] == self.end_id, version
            )
            for one in drawn
        ]

    def _connect(self) -> tuple[int, int, list[dict[str, int]]]:
        bases = [server.base() for server in self._own]
        self._numbers = [server.adapters() for server in self._own]
        for place, server in enumerate(self._own):
            self._check_names(server.url, self._numbers[place])
            texts = self._probe(place, self._scales(place, None))
            self._compare(place, texts, {}, {})
            for agent in self.team.agents:
                if agent in self._numbers[place]:
                    self._prove(place, agent, texts)
        return min(base.positions for base in bases), max(base.ids for base in bases), self._numbers

    def _check_names(self, url: str, numbers: dict[str, int]) -> None:
        """Raises BadInput where an agent that has learnt something has no adapter of its name."""
        for agent in self.team.agents:
            if agent not in numbers and self._lora(agent).learnt:
                has = ", ".join(numbers) or "none"
                raise BadInput(
                    f"{url}: has no adapter called {agent} (it has {has}); write them with choreo export --gguf, and "
                    f"start it with --lora {agent}.gguf"
                )

    def _prove(self, place: int, agent: str, texts: Sequence[tuple[Ids, Drawn]]) -> None:
        """Raises BadInput where the server's adapter of the agent does not change log-probabilities as ours does."""
        policy = self._lora(agent)
        raised, scale = policy, 1.0
        for power in range(RAISED if policy.learnt else 0):
            raised, scale = _raised(policy, 2.0**power), 2.0**power
            if self._change(texts, raised.weights()) >= CHANGED * self.settings.tolerance:
                break
        scales = self._scales(place, agent)
        by_agent = self._probe(place, {number: scale * value for number, value in scales.items()})
        try:
            found = self._compare(place, by_agent, raised.weights(), {})
        except BadInput as error:
            raise BadInput(f"{error} (its adapter {agent}, at {scale:g} times its scale)") from None
        if policy.learnt and not found.told:
            raise BadInput(
                f"{self._own[place].url}: its adapter {agent} changes its log-probabilities by {found.share:.0%} of "
                "what it should"
            )

    def _scales(self, place: int, agent: str | None) -> Scales:
        numbers = self._numbers[place]
        return {number: 1.0 if name == agent else 0.0 for name, number in numbers.items()}

    def _held(self, agent: str, request: Request, tokens: int, temperature: float) -> tuple[Ids, Choices]:
        assert request.constraint is not None
        first = request.constraint.start(tokens)
        return self.goes_on(agent, request, request.constraint, first, tokens, temperature)

    def _complete(
        self, place: int, model: Scales, request: Request, tokens: int, end_id: int | None, temperature: float
    ) -> Drawn:
        return self._own[place].complete(
            model,
            request.context,
            tokens=tokens,
            temperature=temperature,
            seed=seed_of(request.key),
            end_id=end_id,
        )


def _raised(policy: LowRank, scale: float) -> LowRank:
    """The adapter at so many times its scale."""
    other = policy.copied()
    for layer in other.targets:
        other.factors(layer)[1].mul_(scale)
    return other


def _others(allowed: Tensor, ids: int) -> list[int]:
    """The ids of a vocabulary of so many that a row of masks does not allow."""
    inside = (~allowed[:ids]).nonzero().flatten().tolist()
    return [*inside, *range(len(allowed), ids)]
