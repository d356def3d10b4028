"""One request to an OpenAI-compatible server, with time limits, bounded retries and failures in plain words."""

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

from choreo.clients.reply import Failure, Reply, parse_reply
from choreo.errors import BadInput
from choreo.text.replies import shortened

try:
    import httpx2
except ImportError:
    raise BadInput("models behind a server need httpx2: pip install 'choreo-rl[endpoint]'") from None

# HTTP statuses for a wrong key, address or model: every other row and every retry would fail too.
WRONG = {401, 403, 404, 405}
AGAIN = {408, 409, 425, 429}  # HTTP statuses after which a retry may help, as after every 5xx
LARGEST = 4 * 2**20  # the most bytes of a reply; a verdict has a few hundred


def check_address(url: str, model: str, key_variable: str) -> None:
    """Raises BadInput where `url` is no address of a server that has `model`, or holds a password, which no message
    shows. key_variable: the environment variable for the key."""
    try:
        address = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError):
        raise BadInput(f"{url!r}: is no address") from None
    if address.userinfo:
        raise BadInput(f"the address of {model}: holds a user or a password; put the key into {key_variable}")
    if address.scheme not in ("http", "https") or not address.host:
        raise BadInput(f"{url!r}: must look like http://localhost:8000/v1")


@dataclass(frozen=True)
class Endpoint:
    """A model behind a server, a judge or an agent, and how to send requests to it.

    Raises BadInput, naming the field, for a wrong value.

    url: the base to which paths are added, such as http://localhost:8000/v1.
    model: the server's name for the model.
    key_variable: the environment variable that holds the API key; unset means no key. The key itself is never stored.
    temperature: None leaves it to the server (some models accept no other than their own).
    max_tokens: the limit of a reply; None is what the judge's format needs.
    tokens_field: the name of that limit in a request.
    timeout: seconds for one try, from the first byte sent to the last received.
    retries: how often a request is sent again after a failure that may pass.
    backoff, longest_wait: seconds. A retry waits a random time up to backoff·2ⁿ, or what Retry-After says, at most
        longest_wait.
    concurrency: how many requests run at a time.
    patience: how many rows in succession may have no reply before the server counts as down and the work stops.
        Training sets 1, so that it never learns from missing verdicts.
    prompt_price, completion_price: per million tokens, in any currency, for the sum of costs.
    extra: further fields of the request body, such as {"reasoning_effort": "low"}.
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
        check_address(self.url, self.model, self.key_variable)
        if not self.model:
            raise BadInput(f"{self.url}: its model must be named")
        for name in ("timeout", "concurrency", "patience"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{self.model}: {name} {getattr(self, name)}: must be more than 0")
        for name in ("retries", "backoff", "longest_wait", "prompt_price", "completion_price"):
            if not getattr(self, name) >= 0:
                raise BadInput(f"{self.model}: {name} {getattr(self, name)}: must not be less than 0")

    def body(self, question: Mapping[str, Any], tokens: int) -> dict[str, Any]:
        """The body of a request: the question and every setting that can change the reply."""
        body = {"model": self.model, **question, self.tokens_field: self.max_tokens or tokens}
        if self.temperature is not None:
            body["temperature"] = float(self.temperature)  # 0 and 0.0 get the same key in the cache
        return body | dict(self.extra)

    def address(self, body: Mapping[str, Any]) -> str:
        """The address for a body: /completions for a plain text, /chat/completions for messages."""
        return self.url.rstrip("/") + ("/completions" if "prompt" in body else "/chat/completions")


@dataclass(frozen=True)
class Exchange:
    """The outcome of one question, and how many requests were sent for it (`calls`)."""

    outcome: Reply | Failure
    calls: int


class Client:
    """Sends requests to one server, from any number of threads. Raises BadInput for a key that cannot be sent."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        self._key = key_in(endpoint.key_variable)
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=endpoint.concurrency)
        self._http = httpx2.Client(headers=headers, timeout=endpoint.timeout, limits=limits)
        self._random = random.Random()  # for waits; Python's global generator is not used
        self._lock = threading.Lock()
        self._not_before = 0.0  # monotonic seconds; a Retry-After counts for every thread
        self.stopping = threading.Event()

    def ask(self, body: Mapping[str, Any]) -> Exchange:
        """Tries until there is a reply, a failure that no retry can help, or no retry left. Never raises for what the
        server does."""
        calls = 0
        while True:
            if self.stopping.wait(max(0.0, self._not_before - time.monotonic())):
                return Exchange(Failure("stopped", "the work was stopped"), calls)
            calls += 1
            outcome, wait = self._try(body)
            if isinstance(outcome, Failure) and outcome.kind == "wrong":
                self.stopping.set()  # all other rows would fail in the same way
            if isinstance(outcome, Reply) or outcome.kind in ("rejected", "wrong") or calls > self.endpoint.retries:
                return Exchange(outcome, calls)
            if wait is None:
                wait = self._random.uniform(0, self.endpoint.backoff * 2 ** (calls - 1))
            else:
                with self._lock:
                    self._not_before = time.monotonic() + min(wait, self.endpoint.longest_wait)
            if self.stopping.wait(min(wait, self.endpoint.longest_wait)):
                return Exchange(Failure("stopped", "the work was stopped"), calls)

    def _try(self, body: Mapping[str, Any]) -> tuple[Reply | Failure, float | None]:
        """Sends one request. Returns the outcome, and the seconds to wait if the server names any."""
        try:
            response, content = self._post(body)
        except httpx2.TimeoutException:
            return Failure("timed out", f"no whole reply in {self.endpoint.timeout:g} s"), None
        except httpx2.DecodingError as error:
            return Failure("malformed", self._quoted(str(error))), None
        except httpx2.TransportError as error:
            return Failure("unreachable", self._quoted(str(error) or type(error).__name__)), None
        status = response.status_code
        if status == 200:
            return parse_reply(content), None
        details = f"HTTP {status} {self._quoted(content.decode('utf-8', 'replace'))}"
        if status in WRONG:
            return Failure("wrong", details), None
        if status in AGAIN or status >= 500:
            kind = "rate limited" if status == 429 else "server error"
            return Failure(kind, details), seconds(response.headers.get("retry-after"))
        return Failure("rejected", details), None

    def _post(self, body: Mapping[str, Any]) -> tuple[httpx2.Response, bytes]:
        deadline = time.monotonic() + self.endpoint.timeout
        content = json.dumps(body).encode()  # ASCII, so that half of a surrogate pair in an answer can be sent
        with self._http.stream("POST", self.endpoint.address(body), content=content) as response:
            received = b""
            for part in response.iter_bytes():
                received += part
                # httpx2 limits the wait for each part only: a server that sends slowly would never end.
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout("the reply came too slowly")
                if len(received) > LARGEST:
                    raise httpx2.DecodingError(f"a reply of more than {LARGEST} bytes")
            return response, received

    def _quoted(self, text: str) -> str:
        """A server's text for a message: shortened, and without the key where the server repeats it."""
        return shortened(text.replace(self._key, "…") if self._key else text, 200)

    def close(self) -> None:
        self._http.close()


def key_in(variable: str) -> str:
    """The API key in this environment variable, or "".

    Raises BadInput for a key that no HTTP header can hold: sending it would raise an error that quotes the key.
    """
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise BadInput(f"{variable}: holds no key that can be sent (a line break, or no ASCII)")
    return key


def seconds(after: str | None) -> float | None:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3), which is a number or a date; None for anything else."""
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
