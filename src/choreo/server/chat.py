"""A request for an answer, in any API: allowed and read; its games; what is sent, counted and logged of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import dropwhile

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from choreo.errors import BadInput
from choreo.game.moves import answered
from choreo.server.api_error import ApiError
from choreo.server.apis import Api, ApiRequest, Event, Writer
from choreo.server.events import ClientLeft, EventStream, Push, while_there
from choreo.server.figures import log
from choreo.server.keys import Key
from choreo.server.release import play_released
from choreo.server.session import (
    Down,
    Mode,
    Move,
    Outcome,
    Refused,
    SampledTurn,
    SessionOptions,
    SystemPolicy,
    TooLong,
    play_session,
    settled,
    traced_move,
    until_stop,
)
from choreo.server.state import Server
from choreo.server.structured import ApiMessage, Form, as_trained, readable_conversation
from choreo.types import CONVERSATION, Episode, Prompt, Turn


async def chat(api: Api, server: Server, request: Request) -> Response:
    """A reviewed answer, as `api` gives one: whole, or as events."""
    began = time.monotonic()
    key = server.key(request, api.x_api_key)
    server.limit(key.quota)
    asked = api.read(await server.body(request))
    leave = server.admit(key, asked.user, asked.n)  # first, so that what is refused counts for the end user too
    try:
        _allow(server, key, asked)
        reply = api.writer(asked, secrets.token_hex(12), int(time.time()), server.fingerprint)
        call = ChatCall(server, key, asked, reply, began)
    except BaseException:
        leave()
        raise
    if asked.stream:
        return EventStream(call.stream, reply, leave, server.figures.disconnected.labels(key.name).inc)
    try:
        return JSONResponse(await while_there(request.receive, call.whole()))
    except ClientLeft:
        server.figures.disconnected.labels(key.name).inc()
        return Response(status_code=499)
    finally:
        leave()


def _allow(server: Server, key: Key, asked: ApiRequest) -> None:
    """Raises 404 for another model, 403 for what the key does not allow, 400 for a review by a pair that was trained
    without one."""
    wanted, settings = asked.choreo, server.settings
    if asked.model != settings.model:
        message = f"no model {asked.model!r} here; there is {settings.model!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    for name, wants, may in (
        ("trace", wanted.trace, key.trace),
        ("mode", wanted.mode not in (None, settings.mode), key.modes),
        ("stream", wanted.stream == "unchecked", key.unchecked),
    ):
        if wants and not may:
            message = f"this key does not allow choreo.{name}"
            raise ApiError(403, message, type="permission_error", param=f"choreo.{name}", code="permission_denied")
    if settings.limits.rounds < 1 and (wanted.stream == "unchecked" or (wanted.mode or settings.mode) != "off"):
        name = "stream" if wanted.stream == "unchecked" else "mode"
        message = "this pair was trained without feedback (T_max 0); there is mode off alone"
        raise ApiError(400, message, param=f"choreo.{name}", code="unsupported_value")


def _form(server: Server, asked: ApiRequest) -> Form | None:
    """What is asked of an answer's form, with the conversation where tools have been called in it.

    Raises ApiError where the conversation agent cannot be asked for any.
    """
    called = next((one.place for one in asked.messages if one.of_tools), None)
    if asked.form is None and called is None:
        return None
    form, place = asked.form or (Form(), called)
    if not server.agents[CONVERSATION].takes_forms:
        message = f"{place}: tools and JSON are for a conversation agent behind a server (choreo serve --conversation)"
        raise ApiError(400, message, param=place, code="unsupported_parameter")
    if called is None:
        return form
    told = [one for one in asked.messages if one.role != "system" or one.text.strip()]
    return replace(form, turns=tuple(dropwhile(lambda one: one.role == "system", told)))


def conversation(messages: Sequence[ApiMessage], policy: SystemPolicy) -> Prompt:
    """The messages as the prompt of a game. A system message without a word is left out.

    Raises ApiError for a system message where the policy is to refuse it, and for one that does not stand at the
    beginning where the pair was trained with none there.
    """
    turns = [one for one in messages if one.role != "system" or one.text.strip()]
    told = next((one for one in turns if one.role == "system"), None)
    if told and policy == "refuse":
        raise ApiError(
            400,
            "the pair was trained with system prompts of its own; it takes no other (choreo serve --system)",
            param=told.place,
            code="unsupported_value",
        )
    late = next((one for one in dropwhile(lambda one: one.role == "system", turns) if one.role == "system"), None)
    if late and policy == "train":
        raise ApiError(
            400,
            "the pair was trained with system messages at the beginning of a conversation alone "
            "(choreo serve --system prepend takes others)",
            param=late.place,
            code="unsupported_value",
        )
    earlier, text = readable_conversation(turns)
    prompt = Prompt("", text, "general", "serve", earlier=earlier)
    return as_trained(prompt) if policy == "train" else prompt


class ChatCall:
    """The games of one request. Raises ApiError for a conversation that the agents do not take."""

    def __init__(self, server: Server, key: Key, asked: ApiRequest, reply: Writer, began: float):
        settings = server.settings
        self.server, self.key, self.asked, self.reply, self.began = server, key, asked, reply, began
        self.unchecked = asked.choreo.stream == "unchecked"
        self.mode: Mode = "shadow" if self.unchecked else asked.choreo.mode or settings.mode
        self.rounds = settings.limits.rounds
        self.released = settings.release == "segment" and self.mode == "adaptive"
        limit = settings.limits.answer_tokens
        self.options = SessionOptions(
            max_tokens=limit if asked.limit is None else min(asked.limit, limit),
            temperature=settings.temperature if asked.temperature is None else asked.temperature,
            stop=asked.stop,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            deadline=began + settings.deadline,
            form=_form(server, asked),
        )
        prompt = conversation(asked.messages, settings.system)
        self.games = [Episode(prompt, sample, ()) for sample in range(asked.n)]
        try:
            server.agents[CONVERSATION].room(self.games[0], self.options, 0 if self.mode == "off" else self.rounds)
        except TooLong as error:
            raise ApiError(400, str(error), param=asked.conversation, code="context_length_exceeded") from None
        except BadInput as error:
            raise self._unsuited(error) from None

    async def whole(self) -> Event:
        return self.reply.whole(await self.play())

    async def stream(self, push: Push) -> None:
        """Checked: each answer in one piece, once its game is over, or by segments, where the operator wants that.
        Unchecked: the draft, as it is sampled."""
        sent = [""] * len(self.games)
        first = True

        def count_first() -> None:
            nonlocal first
            if first:
                self.server.figures.first.labels(self.mode).observe(time.monotonic() - self.began)
                first = False

        def on_token(index: int, text: str) -> str:
            if self.unchecked:
                text = settled(until_stop(text, self.options.stop), self.options.stop)
            if len(text) > len(sent[index]):
                count_first()
                push(self.reply.text(index, text[len(sent[index]) :], not sent[index]))
                sent[index] = text
            return sent[index]

        def on_move(index: int, move: Move, game: Episode, before: tuple[Move, ...]) -> None:
            if self.asked.choreo.trace:
                push(self.reply.move(index, traced_move(move, game, before)))

        def on_end(index: int, outcome: Outcome) -> None:
            count_first()
            push(self.reply.end(index, outcome, sent[index]))

        push(self.reply.last(await self.play(on_move, on_token if self.unchecked or self.released else None, on_end)))

    async def play(
        self,
        on_move: Callable[[int, Move, Episode, tuple[Move, ...]], None] = lambda *move: None,
        on_token: Callable[[int, str], str] | None = None,
        on_end: Callable[[int, Outcome], None] = lambda index, outcome: None,
    ) -> list[Outcome]:
        """All n games. Each is counted and logged before `on_end` gets its outcome, whatever becomes of the others.
        Raises ApiError where there is no draft.

        on_token: gets an unchecked draft while it is sampled, or one that is released by segments as far as it may
        leave, and returns what of it has been sent.
        """
        tasks = [
            asyncio.create_task(self._play_one(i, game, on_move, on_token, on_end)) for i, game in enumerate(self.games)
        ]
        try:
            outcomes = list(await asyncio.gather(*tasks))
        except (Down, TimeoutError, BadInput) as error:
            raise self._no_draft(error) from None
        finally:
            for task in tasks:
                task.cancel()
        self.server.figures.latency.labels(self.mode).observe(time.monotonic() - self.began)
        return outcomes

    async def _play_one(
        self,
        index: int,
        game: Episode,
        on_move: Callable[[int, Move, Episode, tuple[Move, ...]], None],
        on_token: Callable[[int, str], str] | None,
        on_end: Callable[[int, Outcome], None],
    ) -> Outcome:
        server = self.server
        moves: list[Move] = []
        sent, began, partial_draft = "", time.monotonic(), None  # of an unchecked draft
        ended = False
        mode: Mode = "off" if self.mode == "shadow" else self.mode  # the review in the shadow comes after the reply

        def send(turn: Turn) -> None:
            nonlocal sent, partial_draft
            if ended:
                return  # a token that the decoder had under way
            assert on_token is not None
            before, sent, partial_draft = sent, on_token(index, turn.text), turn
            if sent and not before:
                server.figures.unchecked.labels(self.key.name).inc()

        def release(text: str) -> None:
            assert on_token is not None
            on_token(index, text)

        def left(outcome: Outcome) -> None:
            ms = round(1000 * (time.monotonic() - self.began))
            server.counted(self.key.name, outcome, "left", id=self.reply.id, ms=ms)

        def made(move: Move, game: Episode) -> None:
            on_move(index, move, game, tuple(moves))
            moves.append(move)

        try:
            if self.released and on_token is not None and self.options.form is None:
                outcome = await play_released(
                    game,
                    server.agents,
                    self.options,
                    rounds=self.rounds,
                    opened=server.settings.opened,
                    on_move=made,
                    on_release=release,
                    on_left=left,
                )
            else:
                outcome = await play_session(
                    game,
                    server.agents,
                    self.options,
                    mode=mode,
                    rounds=self.rounds,
                    opened=server.settings.opened,
                    on_move=made,
                    on_token=send if on_token is not None and self.unchecked else None,
                )
        except BaseException:  # cancelled, too: what has been sent stays sent
            if sent and partial_draft is not None:
                sampled = SampledTurn(partial_draft, len(partial_draft.ids), 0)
                draft = Move("draft", sampled, time.monotonic() - began)
                cut_off = Outcome("off", answered(game, partial_draft), (draft,))
                server.shadow(self.key, self.asked.user, cut_off, self.options, event="left")
            raise
        finally:
            ended = True
        if self.mode == "shadow":
            if self.unchecked and not sent:  # an agent that gives no tokens while it samples
                server.figures.unchecked.labels(self.key.name).inc()
            server.shadow(self.key, self.asked.user, outcome, self.options)
            outcome = replace(outcome, mode="shadow")
        else:
            ms = round(1000 * (time.monotonic() - self.began))
            server.counted(self.key.name, outcome, id=self.reply.id, ms=ms)
        on_end(index, outcome)
        return outcome

    def _no_draft(self, error: Exception) -> ApiError:
        """Counts and logs that there is no draft; what the client gets."""
        self.server.figures.failed.labels("draft").inc()
        why, ms = str(error) or "deadline", round(1000 * (time.monotonic() - self.began))
        log("answer", "error", key=self.key.name, mode=self.mode, failed="draft", why=why, ms=ms)
        if isinstance(error, BadInput):
            return self._unsuited(error)
        if isinstance(error, Refused):
            return ApiError(400, str(error), param=self.asked.conversation, code="refused_upstream")
        if isinstance(error, Down):
            return ApiError(503, str(error), type="server_error", code="model_unavailable")
        message = f"no answer within {self.server.settings.deadline:g} s, this server's deadline (--deadline)"
        return ApiError(504, message, type="server_error", code="deadline_exceeded")

    def _unsuited(self, error: BadInput) -> ApiError:
        """The model's chat template does not take the conversation: it may want roles to take turns."""
        message = f"the model does not take such a conversation: {error}"
        return ApiError(400, message, param=self.asked.conversation, code="invalid_value")
