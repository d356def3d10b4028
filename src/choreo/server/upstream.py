"""An agent behind any OpenAI-compatible server (vLLM, llama.cpp, Ollama, a hosted API), which never saw our training.

So it is told its role, in the words of `choreo eval` (`agents.endpoint`): the reviewer by a system prompt and a schema,
the conversation agent by a sentence around each feedback.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from choreo.agents.base import state_of, turn_key
from choreo.agents.endpoint import messages, request_seed, review_format
from choreo.clients.http import LARGEST, key_in
from choreo.clients.reply import Failure, Reply, parse_reply
from choreo.config.wording import Wording
from choreo.errors import BadInput
from choreo.server.session import Down, Refused, SampledTurn, SessionOptions
from choreo.text.prompts import WORDING
from choreo.text.thinking import FILTERED
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
        model, at, url = named.rpartition("@http")
        if not (model and at):
            raise BadInput(f"{named!r}: must be MODEL@URL, as in qwen3:8b@http://localhost:11434/v1")
        return cls(f"http{url}", model, key_variable)

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError):
            raise BadInput(f"{self.url!r}: is no address") from None
        if url.userinfo:
            raise BadInput(f"the address of {self.model}: holds a user or a password; use {self.key_variable}")
        if url.scheme not in ("http", "https") or not url.host:
            raise BadInput(f"{self.url!r}: must look like http://localhost:8000/v1")

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
        reply = await self._ask(body)
        text, failure = reply.answer
        if failure == FILTERED:
            raise Refused(f"the {self.agent} server withholds its turn")
        if failure:
            raise Down(f"the {self.agent} server gave no turn: {failure}")
        turn = Turn(self.agent, len(game.reviews), (), self.encode(text), (), 0, text, reply.finish != "length")
        return SampledTurn(turn, reply.completion_tokens or 0, reply.prompt_tokens or 0)

    async def _ask(self, body: dict[str, Any]) -> Reply:
        attempt = 0
        while True:
            outcome, may_pass = await self._try(body)
            if isinstance(outcome, Reply):
                return outcome
            if outcome.kind in REFUSALS:
                raise Refused(f"the {self.agent} server refuses it: {outcome.kind}")
            if not may_pass or attempt == RETRIES:
                raise Down(f"the {self.agent} server failed: {outcome.kind}")
            await asyncio.sleep(BACKOFF * 2**attempt)
            attempt += 1

    async def _try(self, body: dict[str, Any]) -> tuple[Reply | Failure, bool]:
        """A reply, or what failed and whether a retry may help. The server's own message is left out: it may quote the
        user."""
        url = self.address.url.rstrip("/") + "/chat/completions"
        try:
            async with self._http.stream("POST", url, json=body) as response:
                content = b""
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > LARGEST:
                        return Failure("malformed", ""), False
        except httpx2.HTTPError:
            return Failure("unreachable", ""), True
        if response.status_code == 200:
            outcome = parse_reply(content)
            return outcome, isinstance(outcome, Failure)
        return Failure(f"HTTP {response.status_code}", ""), response.status_code in (408, 409, 429) or (
            response.status_code >= 500
        )


def question(game: Episode, agent: str, options: SessionOptions, wording: Wording = WORDING) -> dict[str, Any]:
    """What a server is asked for `agent`'s turn: the messages that `choreo eval` sends, so that what is measured there
    is what is served. A review takes no options and no seed: it is greedy."""
    written = messages(state_of(game, agent), wording)
    if agent == FEEDBACK:
        return {"messages": written, "temperature": 0.0, "response_format": review_format()}
    body: dict[str, Any] = {
        "messages": written,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": request_seed(turn_key(game, agent, ("serve", options.seed))),
    }
    return body | ({"stop": list(options.stop)} if options.stop else {})


VARIABLES = {CONVERSATION: "CHOREO_CONVERSATION_KEY", FEEDBACK: "CHOREO_FEEDBACK_KEY"}
