"""An engine whose samples come from llama.cpp's server, to measure and to serve a pair that is trained.

Nothing can be learnt from it: it loads adapters when it starts and at no other time. Each request says which of them it
wants. As with vLLM nothing counts before the weights are proven: when it is connected, its base has our base's
log-probabilities, and the adapter of every agent changes them as ours does. For that the adapter's scale is raised
until the change is large, so that an adapter which is nearly the right one shows too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat

from torch import Tensor

from choreo import parallel
from choreo.clients.drawn import Drawn
from choreo.clients.llama import LlamaServer
from choreo.config.rollouts import Rollouts
from choreo.engine.agent import Learnable
from choreo.engine.constraint import ENDS, FORCED, Choices, Constraint, Given
from choreo.engine.local import LocalEngine
from choreo.engine.noise import seed_of
from choreo.engine.policies import LowRank
from choreo.engine.requests import Completion, Ids, Request
from choreo.engine.served import PROBES, ServedEngine
from choreo.errors import BadInput

# A raised adapter changes log-probabilities by so many nats on average. At a much larger scale each token is certain,
# whatever the scale.
CHANGED = 1.0
RAISED = 12  # an adapter's scale is doubled so many times at most
OFF = 0.125  # the effect of an adapter may differ from ours by this share, beyond three standard errors
PIECE = 64  # ids of a constrained turn that are drawn at once; those behind a change of the rules are drawn again
FEW = 8  # a row of the masks with so few ids is a label, after which the rules change
QUOTE = '"'  # ends what may be free in a constrained turn, a string of JSON

Scales = dict[int, float]
"""The scale of every adapter that a server has."""


class LlamaEngine(ServedEngine[LlamaServer, Scales]):
    """A `LocalEngine` that asks llama.cpp servers for samples. A request's key says which of them is asked.

    The first rank asks for all ranks. What its methods raise, see `ServedEngine`. An agent plays by the adapter of its
    name; one that has learnt nothing needs none.
    """

    def __init__(self, own: LocalEngine, settings: Rollouts):
        super().__init__(own, settings, [LlamaServer(url) for url in settings.url])
        self._numbers: list[dict[str, int]] = []
        self._learnt: frozenset[str] = frozenset()  # by an adapter play those agents alone that have learnt something
        self._ids, self._patience = 0, math.inf
        self._probed: dict[tuple[int, str], tuple[float, list[tuple[Ids, Drawn]]]] = {}  # the scale, and what was drawn

    def ready(self) -> None:
        """Connects to the servers, and proves that they have our base and the adapters of all agents."""
        if not all(isinstance(policy, LowRank) for policy in self.team.agents.values()):
            raise BadInput('model.train = "full": a server takes adapters, not whole models (engine.rollouts)')
        if self.team.temperature != 1:
            raise BadInput(
                f"model.temperature = {self.team.temperature:g}: llama.cpp says log-probabilities at temperature 1 "
                "alone, so its weights cannot be proven"
            )
        self._learnt = frozenset(agent for agent in self.team.agents if self._lora(agent).learnt)
        self._longest, self._ids, self._numbers = parallel.first(self._connect)

    def prove_change(self, before: Mapping[str, Learnable]) -> None:
        """Raises BadInput where a server has the adapters of `before`, which differ from ours by little."""
        parallel.first(lambda: self._prove_change(before))

    def wait_at_most(self, seconds: float) -> None:
        """From now on a completion that is not of a proof raises Unavailable where it takes longer."""
        self._patience = seconds

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
    ) -> Iterator[tuple[Ids, Choices]]:
        """At most `tokens` ids after the context, and how each was chosen: after every piece those that are there, at
        last all. The first are those of `given`, what the constraint asked for last.

        The server draws under one row of the masks. What it drew behind an id that changes the rules is drawn again.
        """
        place = self._place(request)
        ids, choices = [*given.ids], [FORCED] * len(given.ids)
        while True:
            yield tuple(ids[:tokens]), tuple(choices[:tokens])
            if given.row == ENDS or len(ids) >= tokens:
                return
            row, allowed = given.row, constraint.masks[given.row]
            drawn = self._servers[place].complete(
                self._scales(place, agent),
                (*request.context, *ids),
                tokens=1 if int(allowed.sum()) <= FEW else min(PIECE, tokens - len(ids)),
                temperature=temperature,
                seed=seed_of((*request.key, len(ids))),
                end_id=self.end_id,
                never=_others(allowed, self._ids),
                stop=QUOTE,
                patience=self._patience,
            )
            for token in drawn.ids:
                if token >= len(allowed) or not allowed[token]:
                    raise BadInput(f"{self._servers[place].url}: drew token {token}, which was banned (logit_bias)")
                given = constraint.after(given.state, token)
                ids += (token, *given.ids)
                choices += (row, *repeat(FORCED, len(given.ids)))
                if given.ids or given.row != row:
                    break

    def _sample(
        self, agent: str | None, requests: Sequence[Request], tokens: int, temperature: float
    ) -> list[Completion]:
        version = self.team.version[agent] if agent else 0

        def turn(request: Request) -> Completion:
            if request.constraint is not None:
                first = request.constraint.start(tokens)
                pieces = self.goes_on(str(agent), request, request.constraint, first, tokens, temperature)
                *_, (ids, choices) = pieces
                return Completion(ids, (), ids[-1] == self.end_id, version, choices)
            place = self._place(request)
            one = self._servers[place].complete(
                self._scales(place, agent),
                request.context,
                tokens=tokens,
                temperature=temperature,
                seed=seed_of(request.key),
                end_id=self.end_id,
                patience=self._patience,
            )
            known = one.logprobs if len(one.logprobs) == len(one.ids) else ()
            return Completion(one.ids, known, one.ids[-1] == self.end_id, version)

        return self._at_once(turn, requests)

    def _place(self, request: Request) -> int:
        """The number of the server that is asked."""
        return seed_of(request.key) % len(self._servers)

    def _connect(self) -> tuple[int, int, list[dict[str, int]]]:
        bases = [server.base() for server in self._servers]
        self._longest = min(base.positions for base in bases)
        self._numbers = [server.adapters() for server in self._servers]
        for place, server in enumerate(self._servers):
            self._check_names(server.url, self._numbers[place])
            texts = self._probe_far(place, self._scales(place, None))
            self._compare(place, texts, {}, {})
            for agent in self.team.agents:
                if agent in self._learnt:
                    self._prove(place, agent, texts)
        return self._longest, max(base.ids for base in bases), self._numbers

    def _check_names(self, url: str, numbers: dict[str, int]) -> None:
        """Raises BadInput where an agent that has learnt something has no adapter of its name."""
        for agent in self.team.agents:
            if agent in self._learnt and agent not in numbers:
                has = ", ".join(numbers) or "none"
                raise BadInput(
                    f"{url}: has no adapter called {agent} (it has {has}); write them with choreo export --gguf, and "
                    f"start it with --lora {agent}.gguf"
                )

    def _prove(self, place: int, agent: str, texts: Sequence[tuple[Ids, Drawn]]) -> None:
        """Raises BadInput where the server's adapter of the agent does not change log-probabilities as ours does."""
        scale = self._scale(agent, texts)
        raised = _raised(self._lora(agent), scale)
        by_agent = self._probe(place, self._scales(place, agent, scale))
        self._probed[place, agent] = scale, by_agent
        where = f"its adapter {agent}, at {scale:g} times its scale"
        try:
            found = self._compare(place, by_agent, raised.weights(), {})
        except BadInput as error:
            raise type(error)(f"{error} ({where})") from None
        if not abs(found.share - 1) + 3 * found.error <= OFF:
            raise BadInput(
                f"{self._servers[place].url}: {where}, changes its log-probabilities by {found.share:.0%} of what it "
                f"should (± {3 * found.error:.0%})"
            )

    def _prove_change(self, before: Mapping[str, Learnable]) -> None:
        for (place, agent), (scale, texts) in self._probed.items():
            if isinstance(earlier := before.get(agent), LowRank):
                now, then = (_raised(policy, scale).weights() for policy in (self._lora(agent), earlier))
                if self._told(place, texts, now, then).stale:
                    url = self._servers[place].url
                    raise BadInput(f"{url}: its adapter {agent} is the one of the checkpoint before")

    def _scale(self, agent: str, texts: Sequence[tuple[Ids, Drawn]]) -> float:
        """How far the agent's adapter has to be raised until it changes our log-probabilities of the texts by much.
        Raises BadInput where it cannot be raised so far."""
        texts = texts[: PROBES // 2]  # the short ones: this is done many times
        policy, before = self._lora(agent), self._scores(texts, {})
        for scale in (2.0**power for power in range(RAISED + 1)):
            if self._change(texts, _raised(policy, scale).weights(), before) >= CHANGED:
                return scale
        raise BadInput(
            f"agent {agent}: at {scale:g} times its scale its adapter changes log-probabilities by less than "
            f"{CHANGED:g} nats, so no server can be seen to have it"
        )

    def _scales(self, place: int, agent: str | None, scale: float = 1.0) -> Scales:
        numbers = self._numbers[place]
        return {number: scale if name == agent and name in self._learnt else 0.0 for name, number in numbers.items()}

    def _complete(
        self, place: int, model: Scales, request: Request, tokens: int, end_id: int | None, temperature: float
    ) -> Drawn:
        return self._servers[place].complete(
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
