"""A chat model behind an OpenAI-compatible server, as an agent: the state becomes messages, the reply is the turn."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from choreo.agents.base import Key, State, state_of, turn_key
from choreo.clients.asker import Asker
from choreo.clients.cache import key_of
from choreo.clients.http import Endpoint
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
        self._asker = Asker(endpoint, cache, "agent")
        self._numbers: Counter[str] = Counter()
        self._replied: set[str] = set()  # roles in which the server has replied, now or earlier
        self._missing = 0  # turns in a row, in the order they ended, that got no reply

    @property
    def name(self) -> str:
        return f"{self.endpoint.model} at {self.endpoint.url}"

    @property
    def counts(self) -> Counter[str]:
        """What was done since the agent was made: calls, retries, tokens and `unmetered` as `Asker` counts them, cached
        replies, and failures by kind."""
        found = Counter(self._numbers)
        found.update(self._asker.counts)  # a sum would leave out what is 0
        return found

    def turns(
        self, games: Sequence[Episode[Any]], role: str, limits: Limits, *, key: Key, temperature: float | None
    ) -> list[TextTurn]:
        """See `Agent.turns`. A turn that gets no reply after every retry fails alone; `endpoint.patience` of them in a
        row, as they end, or a server that never answered in this role, stop the work.

        temperature: None is that of the server."""
        turn_keys = [turn_key(game, role, key) for game in games]
        bodies = [
            self._body(state_of(game, role), own, limits.tokens(role), temperature)
            for game, own in zip(games, turn_keys, strict=True)
        ]
        keys = [
            key_of([self.endpoint.address(body), body, list(own)]) for body, own in zip(bodies, turn_keys, strict=True)
        ]
        found: dict[str, Reply | Failure] = {**self._asker.kept(keys)}
        self._numbers["cached"] += len(found)
        if found:
            self._replied.add(role)
        asked = {key: body for key, body in zip(keys, bodies, strict=True) if key not in found}
        self._missing = 0
        outcomes = self._asker.ask(asked, partial(self._check, role))
        failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Failure)]
        if failures and role not in self._replied:  # fewer turns than patience, and not one reply
            raise self._down(role, failures[-1])
        found |= outcomes
        return [self._turn(role, len(game.reviews), found[key]) for game, key in zip(games, keys, strict=True)]

    def _body(self, state: State[Any], key: Key, max_tokens: int, temperature: float | None) -> dict[str, Any]:
        question: dict[str, Any] = {"messages": messages(state, self.wording), "seed": request_seed(key)}
        if state.role == FEEDBACK and self.schema:
            question["response_format"] = review_format()
        body = self.endpoint.body(question, max_tokens)
        return body if temperature is None else body | {"temperature": float(temperature)}

    def _check(self, role: str, outcome: Reply | Failure) -> None:
        """Raises once going on makes no sense."""
        if isinstance(outcome, Reply):
            self._replied.add(role)
            self._missing = 0
            return
        if outcome.kind == "stopped":
            return  # another turn says why
        self._missing = 0 if outcome.of_row and role in self._replied else self._missing + 1
        never_there = outcome.kind == "unreachable" and not self._replied
        if outcome.kind == "wrong" or never_there or self._missing >= self.endpoint.patience:
            raise self._down(role, outcome)

    def _down(self, role: str, outcome: Failure) -> BadInput | Interrupted:
        failed = f"{self.name}: {outcome.kind}: {outcome.details}"
        if outcome.kind == "wrong":
            return BadInput(f"{failed} (is the address, the model or the key in {self.endpoint.key_variable} wrong?)")
        if outcome.of_row:
            schema = "; json_schema = false is for servers that take no response_format"
            said = schema if role == FEEDBACK and self.schema else ""
            return BadInput(f"{failed}; it takes no request of the {role} agent{said}")
        if not self._replied:
            return BadInput(f"{failed}; is the server running, and is this its address?")
        return Interrupted(f"{failed}; it stopped answering. {len(self._asker.cache)} replies are kept")

    def _turn(self, role: str, round: int, outcome: Reply | Failure) -> TextTurn:
        if isinstance(outcome, Failure):
            self._numbers[f"failed: {outcome.kind}"] += 1
            return TextTurn(role, round, "", False, 0, f"{outcome.kind}: {outcome.details}")
        text, failure = outcome.answer
        if failure:
            self._numbers[f"failed: {failure.split(':')[0]}"] += 1
        return TextTurn(role, round, text, outcome.finish != "length", outcome.completion_tokens, failure)

    def close(self) -> None:
        self._asker.close()


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
