"""A chat model behind an OpenAI-compatible server, as an agent: the state becomes messages, the reply is the turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

from choreo.agents.base import Key, State, state_of, turn_key
from choreo.clients.cache import Cache, key_of
from choreo.clients.http import Client, Endpoint
from choreo.clients.reply import Failure, Reply
from choreo.config.wording import Wording, filled
from choreo.errors import BadInput, Interrupted
from choreo.models.chat import message
from choreo.text.feedback import SCHEMA
from choreo.text.prompts import EARLIER, PARAGRAPH, WORDING, split_system
from choreo.types import FEEDBACK, Episode, Limits, TextTurn


class EndpointAgent:
    """The model at `endpoint`. It was never trained to review.

    cache: a file that keeps every reply, so that an evaluation that was killed pays for no turn twice.
    wording: what it is told, where that is not `text.prompts.WORDING`.
    schema: hold reviews to their JSON schema (`response_format`). An untrained model mostly writes words around its
        JSON, and a review that does not parse is not applied.
    counts: calls, cached replies, tokens of the calls, and failures by kind.
    """

    trained = False

    def __init__(
        self,
        endpoint: Endpoint,
        cache: Path | None = None,
        *,
        schema: bool = True,
        wording: Wording = WORDING,
    ):
        self.endpoint, self.schema, self.wording = endpoint, schema, wording
        self.counts: Counter[str] = Counter()
        self._client = Client(endpoint)
        self._cache = Cache(cache)
        self._replied: set[str] = set()  # roles in which the server has replied, now or earlier

    @property
    def name(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.url}"

    def turns(
        self, games: Sequence[Episode[Any]], role: str, limits: Limits, *, key: Key, temperature: float | None
    ) -> list[TextTurn]:
        """See `Agent.turns`. A turn that gets no reply after every retry fails alone; `endpoint.patience` of them in a
        row, or a server that never answered in this role, stop the work. temperature: None is that of the server."""
        turn_keys = [turn_key(game, role, key) for game in games]
        bodies = [
            self._body(state_of(game, role), own, limits.tokens(role), temperature)
            for game, own in zip(games, turn_keys, strict=True)
        ]
        keys = [
            key_of([self.endpoint.address(body), body, list(own)]) for body, own in zip(bodies, turn_keys, strict=True)
        ]
        found: dict[str, Reply | Failure] = {key: Reply(**reply) for key, reply in self._cache.find(keys).items()}
        self.counts["cached"] += len(found)
        if found:
            self._replied.add(role)
        self._ask_all(role, {key: body for key, body in zip(keys, bodies, strict=True) if key not in found}, found)
        return [self._turn(role, len(game.reviews), found[key]) for game, key in zip(games, keys, strict=True)]

    def _ask_all(self, role: str, bodies: dict[str, dict[str, Any]], found: dict[str, Reply | Failure]) -> None:
        """Puts the outcome of every body into `found`, by its key, asking several at a time."""
        missing, last = 0, None
        self._client.stopping.clear()
        with ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix="agent") as pool:
            try:
                asking = pool.map(self._ask, bodies, bodies.values())
                for key, (calls, outcome) in zip(bodies, asking, strict=True):
                    found[key] = outcome
                    self._count(calls, outcome)
                    if isinstance(outcome, Reply):
                        self._replied.add(role)
                        missing = 0
                    else:
                        last, missing = outcome, 0 if outcome.of_row and role in self._replied else missing + 1
                        self._check(role, outcome, missing)
            except BaseException:
                self._client.stopping.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if last and role not in self._replied:  # fewer turns than patience, and not one reply
            self._check(role, last, self.endpoint.patience)

    def _body(self, state: State[Any], key: Key, max_tokens: int, temperature: float | None) -> dict[str, Any]:
        question: dict[str, Any] = {"messages": messages(state, self.wording), "seed": request_seed(key)}
        if state.role == FEEDBACK and self.schema:
            question["response_format"] = review_format()
        body = self.endpoint.body(question, max_tokens)
        return body if temperature is None else body | {"temperature": float(temperature)}

    def _ask(self, key: str, body: dict[str, Any]) -> tuple[int, Reply | Failure]:
        """The number of requests it took, and the outcome. A reply is kept at once. Runs in threads, so nothing is
        counted here."""
        asked = self._client.ask(body)
        if isinstance(asked.outcome, Failure):
            return asked.calls, asked.outcome
        return asked.calls, Reply(**self._cache.keep(key, asdict(asked.outcome)))

    def _count(self, calls: int, outcome: Reply | Failure) -> None:
        self.counts["calls"] += calls
        if isinstance(outcome, Reply):
            self.counts["prompt_tokens"] += outcome.prompt_tokens or 0
            self.counts["completion_tokens"] += outcome.completion_tokens or 0

    def _check(self, role: str, outcome: Failure, missing: int) -> None:
        """Raises once going on makes no sense. missing: turns in a row without a reply."""
        failed = f"{self.name}: {outcome.kind}: {outcome.details}"
        if outcome.kind == "wrong":
            raise BadInput(f"{failed} (is the address, the model or the key in {self.endpoint.key_variable} wrong?)")
        if not self._replied and outcome.kind == "unreachable":
            raise BadInput(f"{failed}; is the server running, and is this its address?")
        if missing < self.endpoint.patience:
            return
        if outcome.of_row:
            schema = "; json_schema = false is for servers that take no response_format"
            raise BadInput(
                f"{failed}; it takes no request of the {role} agent{schema if role == FEEDBACK and self.schema else ''}"
            )
        if not self._replied:
            raise BadInput(f"{failed}; is the server running, and is this its address?")
        raise Interrupted(f"{failed}; it stopped answering. {len(self._cache)} replies are kept")

    def _turn(self, role: str, round: int, outcome: Reply | Failure) -> TextTurn:
        if isinstance(outcome, Failure):
            self.counts[f"failed: {outcome.kind}"] += 1
            return TextTurn(role, round, "", False, 0, f"{outcome.kind}: {outcome.details}")
        text, failure = outcome.answer
        if failure:
            self.counts[f"failed: {failure.split(':')[0]}"] += 1
        return TextTurn(role, round, text, outcome.finish != "length", outcome.completion_tokens, failure)

    def close(self) -> None:
        self._client.close()
        self._cache.close()


def messages(state: State[Any], wording: Wording = WORDING) -> list[dict[str, str]]:
    """What a chat model is sent for its turn: it was never trained for its role, so it is told.

    wording: in place of that of `text.prompts`, which holds where it has none.
    """
    prompt, words = state.prompt, wording.over(WORDING)
    if state.answer is not None:
        before = "".join(f"{role}: {text}\n\n" for role, text in prompt.earlier)
        question = filled(words.review, prompt=prompt.text, answer=state.answer.text)
        return [
            message("system", words.feedback),
            message("user", (f"{EARLIER}{before}=====\n\n" if before else "") + question),
        ]
    told, after = split_system(prompt.turns)
    system = PARAGRAPH.join(text for text in (words.conversation, *told) if text)
    written = [message("system", system)] if system else []
    written += [message(role, text) for role, text in after]
    for answer, said in state.history:
        written += [message("assistant", answer.text), message("user", filled(words.revise, feedback=said))]
    return written


def review_format() -> dict[str, Any]:
    """The `response_format` that holds a review to its schema."""
    return {"type": "json_schema", "json_schema": {"name": "feedback", "strict": True, "schema": SCHEMA}}


def request_seed(key: Key) -> int:
    """31 bits by the key of a turn (`turn_key`), for servers that take a seed."""
    return int.from_bytes(blake2b(repr(key).encode(), digest_size=4).digest(), "big") >> 1
