"""One question to an OpenAI-compatible server: time limits, bounded retries, what went wrong in plain words."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal

from choreo.clients.reply import Failure, Reply, parse
from choreo.errors import BadInput
from choreo.text.replies import shortened

try:
    import httpx2
except ImportError:
    raise BadInput("judges over an endpoint need httpx2: pip install 'choreo-rl[endpoint]'") from None

WRONG = {401, 403, 404, 405}  # key, address or model: no row will fare better, and no retry
AGAIN = {408, 409, 425, 429}  # and every 5xx
LARGEST = 4 * 2**20  # bytes of a reply; a verdict takes a few hundred


@dataclass(frozen=True)
class Endpoint:
    """Where a judge lives and how it is asked. Raises BadInput, naming the field, for values that cannot be.

    url: the base that paths are put behind, as in http://localhost:8000/v1.
    model: as the server names it.
    key_variable: the environment variable that holds the API key; unset means no key. The key itself is kept nowhere.
    temperature: None leaves it to the server (some models take no other than their own).
    max_tokens: of a reply; None takes what the judge's format needs.
    tokens_field: what the server calls that limit.
    timeout: seconds for one try, from the first byte sent to the last received.
    retries: further tries after one that failed in a way that may pass.
    backoff, longest_wait: seconds. A retry waits a random time up to backoff·2ⁿ, or what Retry-After says, at most
        longest_wait.
    concurrency: requests at a time.
    patience: how many rows in a row may stay without a reply before the judge counts as down and the work stops.
        Training takes 1, so that it never learns from missing verdicts.
    prompt_price, completion_price: per million tokens, in any currency; for the count of costs.
    extra: further fields of the request body, as {"reasoning_effort": "low"}.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float | None = 0.0
    max_tokens: int | None = None
    tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    timeout: float = 60.0
    retries: int = 4
    backoff: float = 0.5
    longest_wait: float = 60.0
    concurrency: int = 8
    patience: int = 16
    prompt_price: float = 0.0
    completion_price: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            url = httpx2.URL(self.url)
        except (httpx2.InvalidURL, TypeError):
            raise BadInput(f"judge url {self.url!r}: is no address") from None
        if url.userinfo:
            raise BadInput(f"judge url: holds a user or a password; put the key into {self.key_variable}")
        if url.scheme not in ("http", "https") or not url.host:
            raise BadInput(f"judge url {self.url!r}: must look like http://localhost:8000/v1")
        if not self.model:
            raise BadInput("judge model: must be named")
        for name in ("timeout", "concurrency", "patience"):
            if not getattr(self, name) > 0:
                raise BadInput(f"judge {name} {getattr(self, name)}: must be more than 0")
        for name in ("retries", "backoff", "longest_wait", "prompt_price", "completion_price"):
            if not getattr(self, name) >= 0:
                raise BadInput(f"judge {name} {getattr(self, name)}: must not be less than 0")

    def body(self, question: Mapping[str, Any], tokens: int) -> dict[str, Any]:
        """What is sent: the question and everything else that bears on the reply."""
        body = {"model": self.model, **question, self.tokens_field: self.max_tokens or tokens}
        if self.temperature is not None:
            body["temperature"] = float(self.temperature)  # 0 and 0.0 are one key of the cache
        return body | dict(self.extra)

    def address(self, body: Mapping[str, Any]) -> str:
        """Where it is sent: plain text is completed, messages are chatted on."""
        return self.url.rstrip("/") + ("/completions" if "prompt" in body else "/chat/completions")


@dataclass(frozen=True)
class Asked:
    """The outcome of one question, and how many requests it took."""

    outcome: Reply | Failure
    calls: int


class Client:
    """Asks one server, from any number of threads. Raises BadInput for a key that cannot be sent."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self._key = key_in(endpoint.key_variable)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=endpoint.concurrency)
        self._http = httpx2.Client(headers=headers, timeout=endpoint.timeout, limits=limits)
        self._random = random.Random()  # waits only; Python's global generator is left alone
        self._lock = threading.Lock()
        self._not_before = 0.0  # Retry-After holds for every thread
        self.stopping = threading.Event()

    def ask(self, body: Mapping[str, Any]) -> Asked:
        """Tries until there is a reply, a failure that will not pass, or no retry left. Never raises for the server's
        sake."""
        calls = 0
        while True:
            if self.stopping.wait(max(0.0, self._not_before - time.monotonic())):
                return Asked(Failure("stopped", "the work was stopped"), calls)
            calls += 1
            outcome, wait = self._try(body)
            if isinstance(outcome, Failure) and outcome.kind == "wrong":
                self.stopping.set()  # the next rows need not find out for themselves
            if isinstance(outcome, Reply) or outcome.kind in ("rejected", "wrong") or calls > self.endpoint.retries:
                return Asked(outcome, calls)
            if wait is None:
                wait = self._random.uniform(0, self.endpoint.backoff * 2 ** (calls - 1))
            else:
                with self._lock:
                    self._not_before = time.monotonic() + min(wait, self.endpoint.longest_wait)
            if self.stopping.wait(min(wait, self.endpoint.longest_wait)):
                return Asked(Failure("stopped", "the work was stopped"), calls)

    def _try(self, body: Mapping[str, Any]) -> tuple[Reply | Failure, float | None]:
        """One request, and the seconds to wait that the server asks for (None: it does not say)."""
        try:
            response, content = self._post(body)
        except httpx2.TimeoutException:
            return Failure("timed out", f"no whole reply in {self.endpoint.timeout:g} s"), None
        except httpx2.DecodingError as error:
            return Failure("malformed", self._told(str(error))), None
        except httpx2.TransportError as error:
            return Failure("unreachable", self._told(str(error) or type(error).__name__)), None
        status = response.status_code
        if status == 200:
            return parse(content), None
        details = f"HTTP {status} {self._told(content.decode('utf-8', 'replace'))}"
        if status in WRONG:
            return Failure("wrong", details), None
        if status in AGAIN or status >= 500:
            kind = "rate limited" if status == 429 else "server error"
            return Failure(kind, details), seconds(response.headers.get("retry-after"))
        return Failure("rejected", details), None

    def _post(self, body: Mapping[str, Any]) -> tuple[httpx2.Response, bytes]:
        deadline = time.monotonic() + self.endpoint.timeout
        content = json.dumps(body).encode()  # ASCII, so that half a surrogate pair in an answer is no error of ours
        with self._http.stream("POST", self.endpoint.address(body), content=content) as response:
            received = b""
            for part in response.iter_bytes():
                received += part
                # httpx2 limits the wait for each part; a server that drips would never end.
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the reply came too slowly")
                if len(received) > LARGEST:
                    raise httpx2.DecodingError(f"a reply of more than {LARGEST} bytes")
            return response, received

    def _told(self, text: str) -> str:
        """The server's words, short, and without the key if it echoes that."""
        return shortened(text.replace(self._key, "…") if self._key else text, 200)

    def close(self) -> None:
        self._http.close()


def key_in(variable: str) -> str:
    """The API key that this environment variable holds; "" where it holds none. Raises BadInput for one that no header
    can carry: sent, it would be an error that quotes the key."""
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadInput(f"{variable}: holds no key that can be sent (a line break, or no ASCII)")
    return key


def seconds(after: str | None) -> float | None:
    """Retry-After (RFC 9110, 10.2.3): seconds or a date; None where there is neither."""
    if not after:
        return None
    try:
        return max(0.0, float(after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(after).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
