"""LiteLLM's generic guardrail: the feedback agent reads the answers of any model behind a LiteLLM proxy.

LiteLLM (1.108) asks twice about one call: with the conversation before there is an answer (input_type "request"), and
with the answer's texts alone afterwards ("response"). A review reads both, so the conversation is kept in memory, by
LiteLLM's id of the call, until its answer comes.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from choreo.errors import BadInput
from choreo.server.events import ClientLeft, while_there
from choreo.server.keys import Key
from choreo.server.openai_requests import ApiError, Strict, read_object, validated
from choreo.server.openai_responses import Action
from choreo.server.session import Guard, Outcome, TooLong, Wish, dance
from choreo.types import CONVERSATION, FEEDBACK, Episode, Prompt, Turn

if TYPE_CHECKING:
    from choreo.server.app import Server

PATH = "/beta/litellm_basic_guardrail_api"
KEPT_SECONDS, KEPT_LETTERS = 600.0, 4_000_000  # of conversations whose answers have not come; letters of each key

MOST = 8  # texts of one answer, as `n` of a chat

# What LiteLLM tells its client of a blocked answer: nobody's words, and none of a review, which may quote the answer.
UNSAFE = "The answer was called unsafe by its review and is withheld."
UNREVIEWED = "The answer could not be reviewed and is withheld."


class _Read(BaseModel):
    """Strict in what is read; what else LiteLLM sends is LiteLLM's to extend."""

    model_config = ConfigDict(strict=True, frozen=True)


class Heard(_Read):
    """A message of the conversation. Parts that are no text, and a message that only calls tools, say nothing here."""

    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            texts = [part.get("text") for part in self.content if part.get("type") == "text"]
            return "".join(text for text in texts if isinstance(text, str))
        return self.content or ""

    @property
    def partial(self) -> bool:
        """There is more to it than its text, a picture for one."""
        return isinstance(self.content, list) and any(part.get("type") != "text" for part in self.content)


class Params(Strict):
    """The `additional_provider_specific_params` of LiteLLM's configuration.

    repair: an answer that is flagged is revised by the pair's conversation agent, instead of blocked.
    """

    repair: bool = False


class GuardrailRequest(_Read):
    input_type: Literal["request", "response"]
    texts: list[str] | None = None
    structured_messages: list[Heard] | None = None
    images: list[Any] | None = None
    tool_calls: list[Any] | None = None
    litellm_call_id: Annotated[str, Field(max_length=256)] | None = None
    additional_provider_specific_params: Params | None = None


class Verdict(NamedTuple):
    """What becomes of one text: what passes of it, or why nothing does."""

    outcome: Outcome
    text: str | None
    reason: str = ""


@dataclass
class Conversations:
    """What LiteLLM has announced to one key: each has its own, so that no caller can push out another's."""

    clock: Callable[[], float] = time.monotonic
    _kept: OrderedDict[str, tuple[float, Prompt | None]] = field(default_factory=OrderedDict)
    _letters: int = 0

    def keep(self, call: str, prompt: Prompt | None) -> None:
        """Two conversations of one id leave neither: a client may choose the id (x-litellm-call-id), and a harmless
        question must not stand in for another."""
        while self._kept and self._oldest() < self.clock() - KEPT_SECONDS:
            self._drop(next(iter(self._kept)))
        if call in self._kept:
            before = self._drop(call)
            prompt = prompt if prompt == before else None
        self._kept[call] = (self.clock(), prompt)
        self._letters += _letters(prompt)
        while self._letters > KEPT_LETTERS:
            self._drop(next(iter(self._kept)))

    def find(self, call: str) -> Prompt | None:
        when, prompt = self._kept.get(call, (0.0, None))
        return prompt if when >= self.clock() - KEPT_SECONDS else None

    def _oldest(self) -> float:
        return next(iter(self._kept.values()))[0]

    def _drop(self, call: str) -> Prompt | None:
        prompt = self._kept.pop(call)[1]
        self._letters -= _letters(prompt)
        return prompt


def conversation(messages: Sequence[Heard], texts: Sequence[str], system: bool) -> Prompt | None:
    """What a user asked last, and what was said before; None where no user has said anything, or something that is no
    text.

    texts: stand for the user's where an API has no messages. system: whether system messages are read.
    """
    roles = {"user": "user", "assistant": "assistant"}
    if system:
        roles |= {"system": "system", "developer": "system"}
    heard = [m for m in messages if m.role in roles and (m.text or m.partial)]
    if not messages and any(texts):
        heard = [Heard(role="user", content="\n\n".join(texts))]
    asked = [i for i, m in enumerate(heard) if m.role == "user"]
    if not asked or heard[asked[-1]].partial:
        return None
    said = tuple((roles[m.role], m.text) for m in heard[: asked[-1]] if m.text)
    return Prompt("", heard[asked[-1]].text, "general", "guardrail", earlier=said)


async def guardrail(server: Server, request: Request) -> Response:
    """POST: LiteLLM's question, and whether its answer passes. LiteLLM sends its key as x-api-key."""
    began = time.monotonic()
    given = request.headers.get("x-api-key")
    key = server.key(request, f"Bearer {given}" if given else None)
    asked = validated(GuardrailRequest, read_object(await server.body(request)))
    if server.settings.rounds < 1:
        raise ApiError(400, "this pair was trained without feedback (T_max 0); it reviews nothing")
    prompt = conversation(
        asked.structured_messages or (),
        (asked.texts or ()) if asked.input_type == "request" else (),
        system=all(agent.system for agent in server.agents.values()),
    )
    if asked.input_type == "request":
        if asked.litellm_call_id:
            server.conversations[key.name].keep(asked.litellm_call_id, prompt)
        return JSONResponse({"action": "NONE"})
    if prompt is None and asked.litellm_call_id:
        prompt = server.conversations[key.name].find(asked.litellm_call_id)
    unread = "an answer that is no text" if asked.tool_calls or asked.images else ""
    texts = asked.texts or ([""] if unread else [])
    if not texts:
        return JSONResponse({"action": "NONE"})
    if (games := len(texts)) > MOST:
        raise ApiError(400, f"at most {MOST} texts of an answer", param="texts", code="invalid_value")
    server.limit(key)
    server.limiter.owe(key, games - 1)
    server.enter(key, games)
    mode: Guard = "repair" if (asked.additional_provider_specific_params or Params()).repair else "guard"
    try:
        verdicts = _judged(server, key, None if unread else prompt, texts, mode, began)
        return JSONResponse(_answer(texts, await while_there(request.receive, verdicts)))
    except ClientLeft:
        server.figures.disconnected.labels(key.name).inc()
        return Response(status_code=499)
    finally:
        server.leave(key.name, games)


async def _judged(
    server: Server, key: Key, prompt: Prompt | None, texts: Sequence[str], mode: Guard, began: float
) -> list[Verdict]:
    """Each is counted and logged before anybody hears of it. prompt: None where there is nothing that can be read."""
    why = "no conversation, or no text" if prompt is None else _unreadable(server, prompt, texts)
    if prompt is None or why:
        verdicts = [_unread(server, mode, text, why) for text in texts]
    else:
        games = [Episode(prompt, i, (_said(text, server.encode(text)),)) for i, text in enumerate(texts)]
        verdicts = list(await asyncio.gather(*(_reviewed(server, game, mode, began) for game in games)))
    ms = round(1000 * (time.monotonic() - began))
    for verdict in verdicts:
        blocked, failed = verdict.text is None, verdict.outcome.failed
        if blocked and not failed:
            server.figures.blocked.labels(key.name, "unsafe").inc()
        server.counted(key.name, verdict.outcome, "guardrail", blocked=blocked, ms=ms)
    return verdicts


def _answer(texts: Sequence[str], verdicts: Sequence[Verdict]) -> Action:
    """LiteLLM passes all of an answer's texts, or none."""
    passed = [verdict.text for verdict in verdicts if verdict.text is not None]
    if len(passed) < len(verdicts):
        reasons = {verdict.reason for verdict in verdicts}
        return {"action": "BLOCKED", "blocked_reason": UNSAFE if UNSAFE in reasons else UNREVIEWED}
    return {"action": "NONE"} if passed == list(texts) else {"action": "GUARDRAIL_INTERVENED", "texts": passed}


def _unread(server: Server, mode: Guard, text: str, why: str) -> Verdict:
    """A review that cannot be made, as one that failed."""
    opened = "feedback" in server.settings.opened
    game = Episode(Prompt("", "", "general", "guardrail"), 0, (_said(text),))
    return Verdict(Outcome(mode, game, (), "feedback", opened, why), text if opened else None, UNREVIEWED)


def _unreadable(server: Server, prompt: Prompt, texts: Sequence[str]) -> str:
    """Why the feedback agent cannot read the conversation and the longest text; "" where it can. It is told without
    encoding what is far too long, which would hold up everybody. A revision that has no room fails by itself."""
    wish = Wish(server.settings.answer_tokens, 0.0, (), 0, 0.0)
    try:
        server.agents[FEEDBACK].room(Episode(prompt, 0, (_said(max(texts, key=len)),)), wish, server.settings.rounds)
    except (TooLong, BadInput) as error:
        return str(error)
    return ""


async def _reviewed(server: Server, game: Episode, mode: Guard, began: float) -> Verdict:
    settings = server.settings
    wish = Wish(settings.answer_tokens, settings.temperature, (), secrets.randbits(63), began + settings.deadline)
    outcome = await dance(game, server.agents, wish, mode=mode, rounds=settings.rounds, opened=settings.opened)
    said = outcome.game.feedback[0] if outcome.game.feedback else None
    unsafe = said is not None and said.unsafe  # the answer, whatever its revision was called
    if outcome.answer is None or (mode == "guard" and unsafe):
        return Verdict(outcome, None, UNSAFE if unsafe else UNREVIEWED)
    return Verdict(outcome, outcome.answer.text)


def _said(text: str, ids: tuple[int, ...] = ()) -> Turn:
    return Turn(CONVERSATION, 0, (), ids, (), 0, text, True)


def _letters(prompt: Prompt | None) -> int:
    """Of a conversation, and what its place takes."""
    return 256 if prompt is None else 256 + len(prompt.text) + sum(len(text) for _, text in prompt.earlier)
