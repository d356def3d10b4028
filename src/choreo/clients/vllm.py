"""A vLLM server, by its own protocol: token ids in, token ids and log-probabilities out, adapters loaded by name.

The paths are those of vLLM's OpenAI-compatible server: /v1/models, /v1/completions, /v1/load_lora_adapter and
/v1/unload_lora_adapter. The last two are there where it was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from choreo.clients.http import AGAIN, key_in
from choreo.errors import BadInput, Unavailable, first_line
from choreo.text.replies import shortened

try:
    import httpx2
except ImportError:
    raise BadInput('rollouts = "vllm" needs httpx2: pip install "choreo-rl[endpoint]"') from None

KEY = "VLLM_API_KEY"  # the variable from which vLLM itself takes its key
WAITS = (0.25, 0.5, 1.0)  # seconds before a request for a completion, which changes nothing, is sent again
TIMEOUT = httpx2.Timeout(600.0, connect=10.0)  # seconds: a busy server may let a completion wait
CONCURRENCY = 64  # requests at a time; the server makes batches of them
START = "start it with --enable-lora, and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 in its environment"

# Said outright: else the server takes defaults from the model's generation_config.json.
PLAIN = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}


@dataclass(frozen=True, slots=True)
class Drawn:
    """ids: the tokens that a server drew, with the one that ended the turn. logprobs: what it says of each."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]


class VllmServer:
    """One server. Every method raises Unavailable where it does not answer, BadInput where it refuses or makes no
    sense; both name its url. Methods may be called from several threads."""

    def __init__(self, url: str):
        self.url = url.rstrip("/").removesuffix("/v1")
        key = key_in(KEY)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=CONCURRENCY)
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=TIMEOUT, limits=limits)

    def base(self) -> tuple[str, int | None]:
        """The server's name for its base, and the most tokens of a context and its completion, where it says so."""
        told = self._json(self._send("GET", "/v1/models"))
        try:
            card = next(card for card in told["data"] if not card.get("parent"))
            return str(card["id"]), card.get("max_model_len")
        except (KeyError, TypeError, AttributeError, StopIteration):
            raise BadInput(f"{self.url}: /v1/models names no base: is it a vLLM server?") from None

    def load(self, name: str, folder: str) -> None:
        """Loads the adapter in `folder`, a path that the server can read, under a name that it does not have yet."""
        reply = self._send("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder})
        if reply.status_code in (404, 405) and "adapter" not in reply.text.lower():
            raise BadInput(f"{self.url}: cannot load adapters at run time; {START}")
        if reply.status_code != 200:
            hint = "; does it see this path (engine.folder)?" if reply.status_code == 404 else ""
            raise BadInput(f"{self.url}: did not load the adapter {folder}: {_message(reply)}{hint}")

    def unload(self, name: str) -> None:
        """Takes an adapter away. That the server does not have it is no error."""
        reply = self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if reply.status_code not in (200, 404):
            raise BadInput(f"{self.url}: did not unload the adapter {name}: {_message(reply)}")

    def complete(
        self, model: str, context: tuple[int, ...], *, tokens: int, temperature: float, seed: int, end_id: int | None
    ) -> Drawn:
        """At most `tokens` ids that the model, the base or an adapter by its name, draws after `context`.

        They end with `end_id` where it was drawn; None draws all of them, whatever comes. No other token ends them.
        """
        asked = PLAIN | {
            "model": model,
            "prompt": list(context),
            "add_special_tokens": False,
            "max_tokens": tokens,
            "temperature": temperature,
            "seed": seed,
            "ignore_eos": True,  # the model's own end tokens are not the agents'
            "stop_token_ids": [] if end_id is None else [end_id],
            "logprobs": 0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
        }
        told = self._json(self._patiently(asked))
        try:
            return _drawn(told["choices"][0], context, end_id, tokens)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise BadInput(f"{self.url}: no completion in token ids: {first_line(error)}") from None

    def close(self) -> None:
        self._http.close()

    def _patiently(self, body: Mapping[str, Any]) -> httpx2.Response:
        for wait in WAITS:
            try:
                reply = self._send("POST", "/v1/completions", body)
            except Unavailable:
                pass
            else:
                if reply.status_code not in AGAIN and reply.status_code < 500:
                    return reply
            time.sleep(wait)
        return self._send("POST", "/v1/completions", body)

    def _send(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> httpx2.Response:
        try:
            return self._http.request(method, path, json=body)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            raise Unavailable(f"{self.url}: does not answer: {first_line(error)}") from None

    def _json(self, reply: httpx2.Response) -> Any:
        if reply.status_code >= 500:
            raise Unavailable(f"{self.url}: {_message(reply)}")
        if reply.status_code != 200:
            raise BadInput(f"{self.url}: {_message(reply)}")
        try:
            return reply.json()
        except ValueError:
            raise BadInput(f"{self.url}: answers no JSON: is it a vLLM server?") from None


def _drawn(choice: Mapping[str, Any], context: tuple[int, ...], end_id: int | None, tokens: int) -> Drawn:
    """Reads one choice. Raises ValueError where it is not what was asked for."""
    told = choice["logprobs"]
    ids = tuple(int(name.removeprefix("token_id:")) for name in told["tokens"])
    logprobs = tuple(map(float, told["token_logprobs"]))
    if not ids or len(ids) != len(logprobs) or list(ids) != (choice.get("token_ids") or list(ids)):
        raise ValueError(f"{len(ids)} ids and {len(logprobs)} log-probabilities")
    if list(context) != (choice.get("prompt_token_ids") or list(context)):
        raise ValueError("the server changed the context")
    if end_id in ids[:-1] or (ids[-1] != end_id and len(ids) != tokens):
        raise ValueError(f"a turn of {len(ids)} tokens that ends with token {ids[-1]}")
    return Drawn(ids, logprobs)


def _message(reply: httpx2.Response) -> str:
    try:
        text = str(reply.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = reply.text
    return f"HTTP {reply.status_code} {shortened(text, 200)}"
