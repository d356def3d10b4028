"""LiteLLM's generic guardrail: the feedback agent reviews the answers of any model behind a LiteLLM proxy.

LiteLLM (1.108) asks twice about one call: first with the conversation (input_type "request"), later with the texts of
the answer alone ("response"). A review reads both, so the conversation is kept in memory, by LiteLLM's id of the call,
until its answer comes (`conversations`).
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from choreo.errors import BadInput
from choreo.server.api_error import ApiError
from choreo.server.apis import Strict
from choreo.server.events import ClientLeft, while_there
from choreo.server.keys import Key
from choreo.server.openai_responses import Action
from choreo.server.reading import json_object, validated
from choreo.server.session import Guard, Outcome, SessionOptions, TooLong, play_session
from choreo.server.state import Server
from choreo.server.structured import (
    ApiMessage,
    Speaker,
    as_trained,
    called_tools,
    readable_answer,
    readable_conversation,
)
from choreo.types import CONVERSATION, FEEDBACK, Episode, Prompt, Turn

PATH = "/beta/litellm_basic_guardrail_api"
MOST = 8  # the most texts of one answer, as `n` of a chat

# What LiteLLM tells its client about a blocked answer. The review is not quoted: it may quote the answer.
UNSAFE = "The answer was called unsafe by its review and is withheld."
UNREVIEWED = "The answer could not be reviewed and is withheld."


class _Read(BaseModel):
    """The fields that are read are checked strictly. Others are ignored: LiteLLM may add some."""

    model_config = ConfigDict(strict=True, frozen=True)


class GuardedMessage(_Read):
    """A message of the conversation. Its text is read, and calls of functions with what came of them, not pictures."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[Any] | None = None
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            texts = [part.get("text") for part in self.content if part.get("type") == "text"]
            return "".join(text for text in texts if isinstance(text, str))
        return self.content or ""

    @property
    def partial(self) -> bool:
        """Whether it holds more than text, such as a picture."""
        return isinstance(self.content, list) and any(part.get("type") != "text" for part in self.content)

    def at(self, role: Speaker) -> ApiMessage:
        """Raises ValueError where it calls anything but functions. In a conversation ids join calls to results."""
        calls = called_tools(self.tool_calls) if self.tool_calls else ()
        named = zip(self.tool_calls or (), calls, strict=True)
        calls = tuple(call._replace(id=str(given.get("id", ""))) for given, call in named)
        return ApiMessage(role, self.text, "", calls, self.tool_call_id or "")


class Params(Strict):
    """The `additional_provider_specific_params` of LiteLLM's configuration.

    repair: an answer that is flagged is revised by the pair's conversation agent, instead of blocked.
    """

    repair: bool = False


class RequestData(_Read):
    """What LiteLLM says of its client's request. user_api_key_end_user_id: of the client's `user`, for one."""

    user_api_key_end_user_id: str | None = None


class GuardrailRequest(_Read):
    input_type: Literal["request", "response"]
    texts: list[str] | None = None
    structured_messages: list[GuardedMessage] | None = None
    images: list[Any] | None = None
    tool_calls: list[Any] | None = None
    request_data: RequestData | None = None
    litellm_call_id: Annotated[str, Field(max_length=256)] | None = None
    additional_provider_specific_params: Params | None = None


class Decision(NamedTuple):
    """What is decided on one text. text: what passes of it; None where it is blocked, for `reason`."""

    outcome: Outcome
    text: str | None
    reason: str = ""


def conversation(messages: Sequence[GuardedMessage], texts: Sequence[str], system: bool) -> Prompt | None:
    """What a user asked last, with the conversation before it; None where no user has asked, or asked by something
    other than text.

    texts: the user's, where an API has no messages. system: whether system messages are read. One that comes after what
    the user asked is read before it: it asks for the answer too. None, too, where tools were called in another form.
    """
    roles: dict[str, Speaker] = {"user": "user", "assistant": "assistant", "tool": "tool"}
    if system:
        roles |= {"system": "system", "developer": "system"}
    read = [m for m in messages if m.role in roles and (m.text or m.partial or m.tool_calls)]
    if not messages and any(texts):
        read = [GuardedMessage(role="user", content="\n\n".join(texts))]
    asked = [i for i, m in enumerate(read) if m.role == "user"]
    if not asked or read[last := asked[-1]].partial:
        return None
    since = [m for m in read[last + 1 :] if roles[m.role] == "tool" or m.tool_calls]
    before = [*read[:last], *(m for m in read[last:] if roles[m.role] == "system")]
    try:
        said = [m.at(roles[m.role]) for m in [*before, read[last], *since] if m.text or m.tool_calls]
    except ValueError:
        return None
    earlier, text = readable_conversation(said)
    return Prompt("", text, "general", "guardrail", earlier=earlier)


async def guardrail(server: Server, request: Request) -> Response:
    """POST: whether the answer in LiteLLM's request passes. LiteLLM sends its key as x-api-key."""
    began = time.monotonic()
    key = server.key(request, x_api_key=True)
    asked = validated(GuardrailRequest, json_object(await server.body(request)))
    if server.settings.limits.rounds < 1:
        raise ApiError(400, "this pair was trained without feedback (T_max 0); it reviews nothing")
    prompt = conversation(
        asked.structured_messages or (),
        (asked.texts or ()) if asked.input_type == "request" else (),
        system=server.settings.system != "refuse",
    )
    if prompt is not None and server.settings.system == "train":
        prompt = as_trained(prompt)
    if asked.input_type == "request":
        if asked.litellm_call_id:
            server.conversations[key.name].keep(asked.litellm_call_id, prompt)
        return JSONResponse({"action": "NONE"})
    if prompt is None and asked.litellm_call_id:
        prompt = server.conversations[key.name].find(asked.litellm_call_id)
    texts, called, unread = list(asked.texts or ()), "", "an answer that is no text" if asked.images else ""
    try:
        called = readable_answer("", called_tools(asked.tool_calls or []))
    except ValueError:
        unread = "an answer that calls no function"
    if not texts and not called and not unread:
        return JSONResponse({"action": "NONE"})
    if (games := len(texts) + bool(called or not texts)) > MOST:
        raise ApiError(400, f"at most {MOST} texts of an answer", param="texts", code="invalid_value")
    server.limit(key.quota)
    leave = server.admit(key, (asked.request_data or RequestData()).user_api_key_end_user_id or "", games)
    mode: Guard = "repair" if (asked.additional_provider_specific_params or Params()).repair else "guard"
    try:
        modes: list[Guard] = [mode] * len(texts)
        if called or not texts:  # the calls of an answer are one more text; LiteLLM takes no other calls for them
            texts, modes = [*texts, called], [*modes, "guard"]
        decisions = _decisions(server, key, None if unread else prompt, texts, modes, began)
        return JSONResponse(_answer(texts, await while_there(request.receive, decisions), len(asked.texts or ())))
    except ClientLeft:
        server.figures.disconnected.labels(key.name).inc()
        return Response(status_code=499)
    finally:
        leave()


async def _decisions(
    server: Server, key: Key, prompt: Prompt | None, texts: Sequence[str], modes: Sequence[Guard], began: float
) -> list[Decision]:
    """The decision on each text, already counted and logged. prompt: None where there is no text to review."""
    why = "no conversation, or no text" if prompt is None else _unreadable(server, prompt, texts)
    if prompt is None or why:
        decisions = [_without_review(server, mode, text, why) for text, mode in zip(texts, modes, strict=True)]
    else:
        games = [Episode(prompt, i, (_answer_turn(text, server.encode(text)),)) for i, text in enumerate(texts)]
        reviews = (_with_review(server, game, mode, began) for game, mode in zip(games, modes, strict=True))
        decisions = list(await asyncio.gather(*reviews))
    ms = round(1000 * (time.monotonic() - began))
    for decision in decisions:
        blocked, failed = decision.text is None, decision.outcome.failed
        if blocked and not failed:
            server.figures.blocked.labels(key.name, "unsafe").inc()
        server.counted(key.name, decision.outcome, "guardrail", blocked=blocked, ms=ms)
    return decisions


def _answer(texts: Sequence[str], decisions: Sequence[Decision], own: int) -> Action:
    """What LiteLLM is told. It passes all texts of an answer, or none. own: how many of `texts` it has."""
    passed = [decision.text for decision in decisions if decision.text is not None]
    if len(passed) < len(decisions):
        reasons = {decision.reason for decision in decisions}
        return {"action": "BLOCKED", "blocked_reason": UNSAFE if UNSAFE in reasons else UNREVIEWED}
    passes = passed == list(texts)
    return {"action": "NONE"} if passes else {"action": "GUARDRAIL_INTERVENED", "texts": passed[:own]}


def _without_review(server: Server, mode: Guard, text: str, why: str) -> Decision:
    """The decision where no review can be made: as where a review failed."""
    opened = "feedback" in server.settings.opened
    game = Episode(Prompt("", "", "general", "guardrail"), 0, (_answer_turn(text),))
    return Decision(Outcome(mode, game, (), "feedback", opened, why), text if opened else None, UNREVIEWED)


def _unreadable(server: Server, prompt: Prompt, texts: Sequence[str]) -> str:
    """Why the feedback agent cannot read the conversation and the longest text; "" where it can.

    A text that is far too long is not encoded for this check: that would delay all other requests. A revision that has
    no room fails by itself.
    """
    limits = server.settings.limits
    options = SessionOptions(limits.answer_tokens, 0.0, (), 0, 0.0)
    try:
        server.agents[FEEDBACK].room(Episode(prompt, 0, (_answer_turn(max(texts, key=len)),)), options, limits.rounds)
    except (TooLong, BadInput) as error:
        return str(error)
    return ""


async def _with_review(server: Server, game: Episode, mode: Guard, began: float) -> Decision:
    settings = server.settings
    limits, seed = settings.limits, secrets.randbits(63)
    options = SessionOptions(limits.answer_tokens, settings.temperature, (), seed, began + settings.deadline)
    outcome = await play_session(
        game, server.agents, options, mode=mode, rounds=settings.limits.rounds, opened=settings.opened
    )
    first = outcome.game.feedback[0] if outcome.game.feedback else None
    unsafe = first is not None and first.unsafe  # the answer, whatever its revision was called
    if outcome.answer is None or (mode == "guard" and unsafe):
        return Decision(outcome, None, UNSAFE if unsafe else UNREVIEWED)
    return Decision(outcome, outcome.answer.text)


def _answer_turn(text: str, ids: tuple[int, ...] = ()) -> Turn:
    return Turn(CONVERSATION, 0, (), ids, (), 0, text, True)
