"""An agent behind any OpenAI-compatible server (vLLM, llama.cpp, Ollama, a hosted API), which never saw our training.

So it is told its role, in the words of `choreo eval` (`agents.endpoint`): the reviewer by a system prompt and a schema,
the conversation agent by a sentence around each feedback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import httpx2

from choreo.agents.base import state_of, turn_key
from choreo.agents.endpoint import messages, request_seed, review_format
from choreo.clients.http import AGAIN, LARGEST, check_address, key_in
from choreo.clients.reply import Failure, Reply, parse_reply
from choreo.clients.streamed import StreamedReply
from choreo.config.addresses import model_at_url
from choreo.config.wording import Wording, filled
from choreo.errors import BadInput
from choreo.files import utf8
from choreo.server.session import Down, Refused, SampledTurn, SessionOptions
from choreo.server.structured import (
    DEPTH,
    NOT_CALLED,
    Form,
    FormedTurn,
    TooDeep,
    ToolCall,
    called_tools,
    openai_message,
    readable_answer,
)
from choreo.text.prompts import WORDING
from choreo.text.thinking import FILTERED, begun_answer, ended_badly
from choreo.types import CONVERSATION, FEEDBACK, Episode, Turn

RETRIES = 2  # after failures that may pass, within the request's deadline
REFUSALS = ("HTTP 400", "HTTP 413", "HTTP 422")  # the server refuses what was sent; 401 and 404 blame the set-up
BACKOFF = 0.1  # seconds before the first retry, twice as many before each further one


@dataclass(frozen=True)
class Address:
    """The server and the model of an agent.

    key_variable: the environment variable that holds the API key; unset means no key.

    Raises BadInput, naming the field, for what is no address.
    """

    url: str
    model: str
    key_variable: str

    @classmethod
    def read(cls, named: str, key_variable: str) -> Address:
        """From MODEL@URL, as `choreo eval` takes it."""
        model, url = model_at_url(named) or ("", "")
        if not model:
            raise BadInput(f"{named!r}: must be MODEL@URL, as in qwen3:8b@http://localhost:11434/v1")
        return cls(url, model, key_variable)

    def __post_init__(self) -> None:
        check_address(self.url, self.model, self.key_variable)

    @property
    def headers(self) -> dict[str, str]:
        key = key_in(self.key_variable)
        return {"Authorization": f"Bearer {key}"} if key else {}


@dataclass
class Upstream:
    """`agent`, played by the model at `address` (`SessionAgent`).

    feedback_tokens: most tokens of a review. encode: ids of a text for an agent in this process that has to read it.
    wording: what the model is told.
    """

    agent: str
    address: Address
    feedback_tokens: int
    encode: Callable[[str], tuple[int, ...]] = lambda text: ()
    wording: Wording = WORDING
    trained: bool = False
    takes_forms: bool = True
    _http: httpx2.AsyncClient = field(init=False)

    def __post_init__(self) -> None:
        limits = httpx2.Limits(max_connections=None)  # the server's own queue bounds them
        self._http = httpx2.AsyncClient(headers=self.address.headers, timeout=None, limits=limits)

    def room(self, game: Episode, options: SessionOptions, rounds: int) -> None:
        """Checks nothing: only the server knows what its model can read."""

    async def next_turn(
        self, game: Episode, options: SessionOptions, on_token: Callable[[Turn], None] | None = None
    ) -> SampledTurn:
        body = {"model": self.address.model, **question(game, self.agent, options, self.wording)}
        if self.agent == FEEDBACK:
            body["max_tokens"] = self.feedback_tokens
        form = options.form if self.agent == CONVERSATION else None
        round, passed = len(game.reviews), [""]

        def on_text(written: str) -> None:
            assert on_token is not None
            shown = begun_answer(written)
            if shown != passed[-1] and shown.startswith(passed[-1]):
                passed.append(shown)  # a server's pieces stand for tokens, which it does not show
                ids = self.encode(shown) or (0,) * (len(passed) - 1)
                on_token(Turn(self.agent, round, (), ids, (), 0, shown, False))

        if streams := on_token is not None and form is None:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        reply, content = await self._ask(body, on_text if streams else None)
        text, failure = reply.answer
        if not failure and not text.startswith(passed[-1]):
            failure = "its answer is not what it began with: reasoning, it seems, that its server does not set apart"
        calls: tuple[ToolCall, ...] = ()
        try:
            if form and form.has_tools and reply.called and not reply.refused:
                calls = called_tools(_calls(content), form.offered)
        except ValueError as error:
            raise Down(f"the {self.agent} server gave no turn: {error}") from None
        if calls and not ended_badly(reply.finish):
            failure = ""  # there need be no text beside them
        if failure == FILTERED:
            raise Refused(f"the {self.agent} server withholds its turn")
        if failure:
            raise Down(f"the {self.agent} server gave no turn: {failure}")
        finished = reply.finish != "length"
        if form is None:
            turn = Turn(self.agent, round, (), self.encode(text), (), 0, text, finished)
        else:
            refused = bool(reply.refused)
            try:
                read = readable_answer(text, calls, form.is_json and not refused)
            except TooDeep:
                raise Down(f"the {self.agent} server gave no turn: JSON of more than {DEPTH} levels") from None
            ids = self.encode(read)
            turn = FormedTurn(self.agent, round, (), ids, (), 0, read, finished, "", (), text, calls, refused)
        return SampledTurn(turn, reply.completion_tokens or 0, reply.prompt_tokens or 0)

    async def _ask(self, body: dict[str, Any], on_text: Callable[[str], None] | None) -> tuple[Reply, bytes]:
        """The reply, and the bytes that it was read from. on_text: gets the text so far, of a reply that is streamed;
        what has begun so is not asked for again."""
        attempt = 0
        while True:
            outcome, may_pass, content = await self._try(body, on_text)
            if isinstance(outcome, Reply):
                return outcome, content
            if outcome.kind in REFUSALS:
                raise Refused(f"the {self.agent} server refuses it: {outcome.kind}")
            if not may_pass or attempt == RETRIES:
                raise Down(f"the {self.agent} server failed: {outcome.kind}")
            await asyncio.sleep(BACKOFF * 2**attempt)
            attempt += 1

    async def _try(
        self, body: dict[str, Any], on_text: Callable[[str], None] | None
    ) -> tuple[Reply | Failure, bool, bytes]:
        """A reply, or what failed; whether a retry may help; and what was read. The server's own message is left out
        of a failure: it may quote the user."""
        url = self.address.url.rstrip("/") + "/chat/completions"
        content, streamed = b"", StreamedReply()
        try:
            async with self._http.stream("POST", url, json=body) as response:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > LARGEST:
                        return Failure("malformed", ""), False, b""
                    if on_text is not None and response.status_code == 200:
                        streamed.add(part)
                        on_text(streamed.text)
        except httpx2.HTTPError:
            return Failure("unreachable", ""), not streamed.text, b""
        except ValueError:
            return Failure("malformed", ""), not streamed.text, b""
        if response.status_code == 200:
            content = content if on_text is None else streamed.completion(content)
            outcome = parse_reply(content)
            return outcome, isinstance(outcome, Failure) and not streamed.text, content
        may_pass = response.status_code in AGAIN or response.status_code >= 500
        return Failure(f"HTTP {response.status_code}", ""), may_pass, b""


def _calls(content: bytes) -> object:
    """The tool calls of a reply that has been parsed."""
    return utf8.loads(content)["choices"][0]["message"].get("tool_calls")


def question(game: Episode, agent: str, options: SessionOptions, wording: Wording = WORDING) -> dict[str, Any]:
    """What a server is asked for `agent`'s turn: the messages that `choreo eval` sends, so that what is measured there
    is what is served. A review takes no options and no seed: it is greedy."""
    written = messages(state_of(game, agent), wording)
    form = options.form
    if agent == CONVERSATION and form is not None:
        written = _formed_messages(game, form, wording)
    if agent == FEEDBACK:
        return {"messages": written, "temperature": 0.0, "response_format": review_format()}
    body: dict[str, Any] = {
        "messages": written,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": request_seed(turn_key(game, agent, ("serve", options.seed))),
    }
    asked = form.asked(bool(game.answers)) if form is not None else {}
    return body | ({"stop": list(options.stop)} if options.stop else {}) | asked


def _formed_messages(game: Episode, form: Form, wording: Wording) -> list[dict[str, Any]]:
    """`messages` for the conversation agent, with each turn in its own form: an earlier call of a tool as such, its
    result as a tool's. A call in a draft is followed by the result that it was not called, because APIs want one."""
    state = state_of(game, CONVERSATION)
    written: list[dict[str, Any]] = [*messages(replace(state, history=()), wording)]
    if form.turns:
        told = [one for one in written[:1] if one["role"] == "system"]
        written = [*told, *(turn.as_openai for turn in form.turns)]
    for answer, said in state.history:
        text, calls = (answer.content, answer.calls) if isinstance(answer, FormedTurn) else (answer.text, ())
        written.append(openai_message("assistant", text, calls))
        written += [{"role": "tool", "tool_call_id": call.id, "content": NOT_CALLED} for call in calls]
        written.append({"role": "user", "content": filled(wording.over(WORDING).revise, feedback=said)})
    return written


VARIABLES = {CONVERSATION: "CHOREO_CONVERSATION_KEY", FEEDBACK: "CHOREO_FEEDBACK_KEY"}
