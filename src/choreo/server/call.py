"""One request, allowed and read: its games, what is sent of them as they go, and what is counted and logged of them."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from choreo.errors import BadInput
from choreo.game.moves import answered
from choreo.server.events import Push
from choreo.server.figures import log
from choreo.server.keys import Key
from choreo.server.openai_requests import ApiError, ChatRequest, Reply, extension, said, usage
from choreo.server.openai_responses import Completion, Delta
from choreo.server.session import Down, Mode, Move, Outcome, Refused, Said, TooLong, Wish, cut, dance, move_record
from choreo.types import CONVERSATION, Episode, Prompt, Turn

if TYPE_CHECKING:
    from choreo.server.app import Server


class Call:
    def __init__(self, server: Server, key: Key, asked: ChatRequest, began: float):
        settings = server.settings
        self.server, self.key, self.asked, self.began = server, key.name, asked, began
        self.unchecked = asked.choreo.stream == "unchecked"
        self.mode: Mode = "shadow" if self.unchecked else asked.choreo.mode or settings.mode
        self.rounds = settings.rounds
        self.reply = Reply(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), settings.model, server.fingerprint)
        limit = settings.answer_tokens if asked.limit is None else min(asked.limit, settings.answer_tokens)
        self.wish = Wish(
            max_tokens=limit,
            temperature=settings.temperature if asked.temperature is None else asked.temperature,
            stop=asked.stops,
            seed=secrets.randbits(63) if asked.seed is None else asked.seed,
            deadline=began + settings.deadline,
        )
        *earlier, last = asked.messages
        if not server.agents[CONVERSATION].system:
            for i, message in enumerate(asked.messages):
                if message.role in ("system", "developer"):
                    raise ApiError(
                        400,
                        "the pair was trained with system prompts of its own; it takes no other",
                        param=f"messages.{i}.role",
                        code="unsupported_value",
                    )
        before = tuple(("system" if m.role == "developer" else m.role, m.text) for m in earlier)
        prompt = Prompt("", last.text, "general", "serve", earlier=before)
        self.games = [Episode(prompt, sample, ()) for sample in range(asked.n or 1)]
        try:
            server.agents[CONVERSATION].room(self.games[0], self.wish, 0 if self.mode == "off" else self.rounds)
        except TooLong as error:
            raise ApiError(400, str(error), param="messages", code="context_length_exceeded") from None
        except BadInput as error:
            raise _unsuited(error) from None

    async def whole(self) -> Completion:
        outcomes = await self.play()
        traced = self.asked.choreo.trace
        return self.reply.completion(outcomes, self.wish.stop, outcomes[0].moves[0].said.read, traced)

    async def stream(self, push: Push) -> None:
        """Checked: each answer in one piece, once its game is over. Unchecked: the draft, as it is sampled."""
        sent = [""] * len(self.games)
        first = True

        def more(index: int, text: str) -> Delta:
            delta: Delta = {"content": text[len(sent[index]) :]}
            return delta if sent[index] else {"role": "assistant", **delta}

        def token(index: int, text: str) -> str:
            nonlocal first
            text = _settled(cut(text, self.wish.stop), self.wish.stop)
            if len(text) > len(sent[index]):
                if first:
                    self.server.figures.first.labels(self.mode).observe(time.monotonic() - self.began)
                    first = False
                push(self.reply.chunk(index, more(index, text)))
                sent[index] = text
            return sent[index]

        def tell(index: int, move: Move, game: Episode, before: tuple[Move, ...]) -> None:
            if self.asked.choreo.trace:
                push(self.reply.note({"choreo": {"index": index, "move": move_record(move, game, before)}}))

        def over(index: int, outcome: Outcome) -> None:
            nonlocal first
            text, finish = said(outcome, self.wish.stop)
            if first:
                self.server.figures.first.labels(self.mode).observe(time.monotonic() - self.began)
                first = False
            push(self.reply.chunk(index, more(index, text)))
            push(self.reply.chunk(index, {}, finish))

        outcomes = await self.play(tell, token if self.unchecked else None, over)
        if self.asked.choreo.trace:
            push(self.reply.note({"choreo": extension(outcomes)}))
        if self.asked.stream_options is not None and self.asked.stream_options.include_usage:
            push(self.reply.note({"usage": usage(outcomes, outcomes[0].moves[0].said.read)}))

    async def play(
        self,
        tell: Callable[[int, Move, Episode, tuple[Move, ...]], None] = lambda *told: None,
        token: Callable[[int, str], str] | None = None,
        over: Callable[[int, Outcome], None] = lambda index, outcome: None,
    ) -> list[Outcome]:
        """All n games. Each is counted and logged before anybody hears how it ended, whatever becomes of the others.
        Raises ApiError where there is no draft.

        token: hears an unchecked draft while it is sampled, and returns what of it has been sent.
        """
        server, settings = self.server, self.server.settings
        mode: Mode = "off" if self.mode == "shadow" else self.mode  # the review in the shadow comes after the reply

        async def one(index: int, game: Episode) -> Outcome:
            moves: list[Move] = []
            sent, began, partial = "", time.monotonic(), None  # of an unchecked draft

            def hear(turn: Turn) -> None:
                nonlocal sent, partial
                if ended:
                    return  # a token that the decoder had under way
                assert token is not None
                before, sent, partial = sent, token(index, turn.text), turn
                if sent and not before:
                    server.figures.unchecked.labels(self.key).inc()

            def made(move: Move, game: Episode) -> None:
                tell(index, move, game, tuple(moves))
                moves.append(move)

            ended = False
            try:
                outcome = await dance(
                    game,
                    server.agents,
                    self.wish,
                    mode=mode,
                    rounds=self.rounds,
                    opened=settings.opened,
                    tell=made,
                    token=None if token is None else hear,
                )
            except BaseException:  # cancelled, too: what has been sent stays sent
                if sent and partial is not None:
                    draft = Move("draft", Said(partial, len(partial.ids), 0), time.monotonic() - began)
                    cut_off = Outcome("off", answered(game, partial), (draft,))
                    server.shadow(self.key, cut_off, self.wish, event="left")
                raise
            finally:
                ended = True
            if self.mode == "shadow":
                if self.unchecked and not sent:  # an agent that is not heard while it speaks
                    server.figures.unchecked.labels(self.key).inc()
                server.shadow(self.key, outcome, self.wish)
                outcome = replace(outcome, mode="shadow")
            else:
                ms = round(1000 * (time.monotonic() - self.began))
                server.counted(self.key, outcome, id=self.reply.head["id"], ms=ms)
            over(index, outcome)
            return outcome

        tasks = [asyncio.create_task(one(i, game)) for i, game in enumerate(self.games)]
        try:
            outcomes = list(await asyncio.gather(*tasks))
        except (Down, TimeoutError, BadInput) as error:
            server.figures.failed.labels("draft").inc()
            why, ms = str(error) or "deadline", round(1000 * (time.monotonic() - self.began))
            log("answer", "error", key=self.key, mode=self.mode, failed="draft", why=why, ms=ms)
            if isinstance(error, BadInput):
                raise _unsuited(error) from None
            if isinstance(error, Refused):
                raise ApiError(400, str(error), param="messages", code="refused_upstream") from None
            if isinstance(error, Down):
                raise ApiError(503, str(error), type="server_error", code="model_unavailable") from None
            message = f"no answer within {settings.deadline:g} s"
            raise ApiError(504, message, type="server_error", code="deadline_exceeded") from None
        finally:
            for task in tasks:
                task.cancel()
        server.figures.latency.labels(self.mode).observe(time.monotonic() - self.began)
        return outcomes


def _unsuited(error: BadInput) -> ApiError:
    """The model's chat template does not take the conversation: it may want roles to take turns."""
    message = f"the model does not take such a conversation: {error}"
    return ApiError(400, message, param="messages", code="invalid_value")


def _settled(text: str, stop: Sequence[str]) -> str:
    """What of an unfinished text may be sent: no half letter, and nothing that may yet become a stop string."""
    text = text.rstrip("\ufffd")
    held = max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
    return text[: len(text) - held]
