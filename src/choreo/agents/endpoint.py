"""Who speaks in `spoken`: a model behind an OpenAI-compatible server, or one that is loaded here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo.agents.base import Asked
from choreo.clients.cache import Cache, key_of
from choreo.clients.http import Client, Endpoint
from choreo.clients.reply import Failure, Reply
from choreo.errors import BadInput, Interrupted
from choreo.text.feedback import SCHEMA
from choreo.text.prompts import EARLIER, REVIEW, REVISE, SYSTEM
from choreo.types import CONVERSATION, FEEDBACK, Spoken

if TYPE_CHECKING:
    pass


class EndpointSpeaker:
    """A chat model at `endpoint`. `cache` keeps what it said, so that a killed evaluation pays for no turn twice.

    schema: hold reviews to their JSON schema (`response_format`). An untrained model mostly writes around its JSON, and
        a review that does not parse is not applied.
    counts: calls, cached, tokens of what was asked now, and failures by kind.
    """

    def __init__(self, endpoint: Endpoint, cache: Path | None = None, *, schema: bool = True):
        self.endpoint, self.schema = endpoint, schema
        self.counts: Counter[str] = Counter()
        self._client = Client(endpoint)
        self._cache = Cache(cache)
        self._heard: set[str] = set()  # agents that the server has replied to, now or earlier

    @property
    def name(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.url}"

    def say(self, agent: str, asked: Sequence[Asked], *, max_tokens: int, temperature: float) -> list[Spoken]:
        """See `Speaker.say`. A turn that gets no reply after every retry fails alone; `endpoint.patience` of them in a
        row, or a server that never answered as this agent, stop the work."""
        bodies = [self._body(agent, one, max_tokens, temperature) for one in asked]
        keys = [
            key_of([self.endpoint.address(body), body, list(one.key)]) for body, one in zip(bodies, asked, strict=True)
        ]
        found: dict[str, Reply | Failure] = {key: Reply(**reply) for key, reply in self._cache.find(keys).items()}
        self.counts["cached"] += len(found)
        if found:
            self._heard.add(agent)
        wanted = {key: body for key, body in zip(keys, bodies, strict=True) if key not in found}
        missing, last = 0, None
        self._client.stopping.clear()
        with ThreadPoolExecutor(self.endpoint.concurrency, thread_name_prefix="agent") as pool:
            try:
                asking = pool.map(self._one, wanted, wanted.values())
                for key, (calls, outcome) in zip(wanted, asking, strict=True):
                    found[key] = outcome
                    self._count(calls, outcome)
                    if isinstance(outcome, Reply):
                        self._heard.add(agent)
                        missing = 0
                    else:
                        last, missing = outcome, 0 if outcome.of_row and agent in self._heard else missing + 1
                        self._check(agent, outcome, missing)
            except BaseException:
                self._client.stopping.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        if last and agent not in self._heard:  # fewer turns than patience, and not one reply
            self._check(agent, last, self.endpoint.patience)
        return [self._turn(agent, one, found[key]) for one, key in zip(asked, keys, strict=True)]

    def _body(self, agent: str, one: Asked, max_tokens: int, temperature: float) -> dict[str, Any]:
        question: dict[str, Any] = {"messages": messages(agent, one), "seed": seed_of(one)}
        if agent == FEEDBACK and self.schema:
            question["response_format"] = form()
        return self.endpoint.body(question, max_tokens) | {"temperature": float(temperature)}

    def _one(self, key: str, body: dict[str, Any]) -> tuple[int, Reply | Failure]:
        """How many requests it took, and the outcome; a reply is kept at once. Runs in threads: it counts nothing."""
        asked = self._client.ask(body)
        if isinstance(asked.outcome, Failure):
            return asked.calls, asked.outcome
        return asked.calls, Reply(**self._cache.keep(key, asdict(asked.outcome)))

    def _count(self, calls: int, outcome: Reply | Failure) -> None:
        self.counts["calls"] += calls
        if isinstance(outcome, Reply):
            self.counts["prompt_tokens"] += outcome.prompt_tokens or 0
            self.counts["completion_tokens"] += outcome.completion_tokens or 0

    def _check(self, agent: str, outcome: Failure, missing: int) -> None:
        """Raises once going on makes no sense; missing: turns in a row without a reply."""
        told = f"{self.name}: {outcome.kind}: {outcome.details}"
        if outcome.kind == "wrong":
            raise BadInput(f"{told} (is the address, the model or the key in {self.endpoint.key_variable} wrong?)")
        if not self._heard and outcome.kind == "unreachable":
            raise BadInput(f"{told}; is the server running, and is this its address?")
        if missing < self.endpoint.patience:
            return
        if outcome.of_row:
            schema = "; json_schema = false is for servers that take no response_format"
            raise BadInput(
                f"{told}; it takes no request of the {agent} agent{schema if agent == FEEDBACK and self.schema else ''}"
            )
        if not self._heard:
            raise BadInput(f"{told}; is the server running, and is this its address?")
        raise Interrupted(f"{told}; it stopped answering. {len(self._cache)} replies are kept")

    def _turn(self, agent: str, one: Asked, outcome: Reply | Failure) -> Spoken:
        round = int(one.key[-1])
        if isinstance(outcome, Failure):
            self.counts[f"failed: {outcome.kind}"] += 1
            return Spoken(agent, round, "", False, 0, f"{outcome.kind}: {outcome.details}")
        text, failure = outcome.answer
        if failure:
            self.counts[f"failed: {failure.split(':')[0]}"] += 1
        return Spoken(agent, round, text, outcome.finish != "length", outcome.completion_tokens, failure)

    def close(self) -> None:
        self._client.close()
        self._cache.close()


def messages(agent: str, one: Asked) -> list[dict[str, str]]:
    """What a chat model is sent, in the words of `text.prompts`."""
    if agent == FEEDBACK:
        before = "".join(f"{role}: {text}\n\n" for role, text in one.earlier)
        told = (f"{EARLIER}{before}=====\n\n" if before else "") + filled(REVIEW, one.prompt, one.answer)
        return [_message("system", SYSTEM[FEEDBACK]), _message("user", told)]
    said = [_message("system", SYSTEM[CONVERSATION])] if SYSTEM[CONVERSATION] else []
    said += [_message(role, text) for role, text in (*one.earlier, ("user", one.prompt))]
    for answer, words in one.history:
        said += [_message("assistant", answer), _message("user", filled(REVISE, words))]
    return said


def form() -> dict[str, Any]:
    """The `response_format` that holds a review to its schema."""
    return {"type": "json_schema", "json_schema": {"name": "feedback", "strict": True, "schema": SCHEMA}}


def seed_of(one: Asked) -> int:
    """31 bits by the turn's key, for servers that take a seed."""
    return int.from_bytes(blake2b(repr(one.key).encode(), digest_size=4).digest(), "big") >> 1


def filled(template: str, *parts: str) -> str:
    """`template` with {0}, {1}, … replaced in one pass, so that braces inside a part mean nothing."""
    return re.sub(r"\{(\d)\}", lambda found: parts[int(found[1])], template)


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
