"""A vLLM server, by its own protocol: token ids in, token ids and log-probabilities out, adapters loaded by name.

The paths are those of vLLM's OpenAI-compatible server: /health, /v1/models, /v1/completions, /v1/load_lora_adapter and
/v1/unload_lora_adapter. The last two are there where it was started with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choreo.clients.drawn import Drawn
from choreo.clients.token_server import TokenServer, message_of
from choreo.errors import BadInput, Unavailable, first_line

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


class VllmServer(TokenServer):
    """One server; what its methods raise, see `TokenServer`."""

    kind, key = "vLLM", "VLLM_API_KEY"

    def answers(self) -> bool:
        """Whether the server is there, with its model loaded."""
        try:
            return self._send("GET", "/health").status_code == 200
        except Unavailable:
            return False

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
            raise BadInput(f"{self.url}: did not load the adapter {folder}: {message_of(reply)}{hint}")

    def unload(self, name: str) -> None:
        """Takes an adapter away. That the server does not have it is no error."""
        reply = self._send("POST", "/v1/unload_lora_adapter", {"lora_name": name})
        if reply.status_code not in (200, 404):
            raise BadInput(f"{self.url}: did not unload the adapter {name}: {message_of(reply)}")

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
        told = self._json(self._patiently("/v1/completions", asked))
        try:
            return _drawn(told["choices"][0], context, end_id, tokens)
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise BadInput(f"{self.url}: no completion in token ids: {first_line(error)}") from None


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
