"""llama.cpp's server, by its own protocol: token ids in, token ids and log-probabilities out, adapters by number.

The paths are those of llama-server: /v1/models, /lora-adapters and /completion. Adapters are loaded when it starts and
at no other time; a request says the scale of each.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import PurePath
from typing import Any, NamedTuple

from choreo.clients.drawn import Drawn
from choreo.clients.token_server import TokenServer
from choreo.errors import BadInput, first_line

SEEDS = 2**32 - 1  # the largest 32-bit seed means another one each time

# Said outright: else the server takes the defaults that it was started with.
ALONE: dict[str, Any] = {
    "samplers": ["temperature"],
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "repeat_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "grammar": "",
    "n_probs": 1,
    "post_sampling_probs": False,  # log-probabilities of the model, at temperature 1, whatever is sampled
    "return_tokens": True,
    # It finds the keys and values of earlier prompts by their tokens alone, so one adapter would read another's
    # (seen: tests/test_interop_llama.py).
    "cache_prompt": False,
    "stream": False,
    "response_fields": ["tokens", "completion_probabilities", "stop_type", "truncated"],
}


class LlamaBase(NamedTuple):
    """What a server says of its base. ids: how many its vocabulary has. positions: the most tokens of a context and its
    completion."""

    name: str
    ids: int
    positions: int


class LlamaServer(TokenServer):
    """One server; what its methods raise, see `TokenServer`."""

    kind, key = "llama.cpp", "LLAMA_API_KEY"

    def base(self) -> LlamaBase:
        told = self._json(self._send("GET", "/v1/models"))
        try:
            card = told["data"][0]
            return LlamaBase(str(card["id"]), int(card["meta"]["n_vocab"]), int(card["meta"]["n_ctx"]))
        except (KeyError, TypeError, IndexError, ValueError):
            raise BadInput(f"{self.url}: /v1/models tells of no base: is it a {self.kind} server?") from None

    def adapters(self) -> dict[str, int]:
        """The numbers of the adapters that it was started with, by the names of their files without the ending."""
        told = self._json(self._send("GET", "/lora-adapters"))
        try:
            return {PurePath(str(one["path"])).stem: int(one["id"]) for one in told}
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"{self.url}: /lora-adapters lists none: is it a {self.kind} server?") from None

    def complete(
        self,
        scales: Mapping[int, float],
        context: Sequence[int],
        *,
        tokens: int,
        temperature: float,
        seed: int,
        end_id: int | None,
        never: Collection[int] = (),
        stop: str = "",
        patience: float = math.inf,
    ) -> Drawn:
        """At most `tokens` ids that the base draws after `context`, with every adapter at its scale.

        They end with `end_id` where it was drawn; None draws all of them, whatever comes. temperature: 0 is greedy.
        never: ids that are not drawn; the log-probabilities are those without this. stop: ends them after a token with
        this text, too. scales: of all adapters that the server has; one that is left out would be off.
        patience: the seconds after which it raises Unavailable.
        """
        ids: list[int] = []
        logprobs: list[float] = []
        while len(ids) < tokens:
            asked = ALONE | {
                "prompt": [*context, *ids],
                "n_predict": tokens - len(ids),
                "temperature": temperature,
                "seed": (seed + len(ids)) % SEEDS,
                "lora": [{"id": number, "scale": scale} for number, scale in scales.items()],
                "logit_bias": [[token, False] for token in never],
                "stop": [stop] if stop else [],
            }
            told = self._json(self._patiently("/completion", asked, patience))
            try:
                drawn, said, why = _drawn(told, tokens - len(ids))
            except (KeyError, TypeError, ValueError) as error:
                raise BadInput(f"{self.url}: no completion in token ids: {first_line(error)}") from None
            if end_id in drawn:  # where it does not take that token for the end of a turn
                drawn, why = drawn[: drawn.index(end_id) + 1], "end"
            logprobs += said[: len(drawn)] if len(logprobs) == len(ids) else []
            ids += drawn
            if why != "eos":
                break
            # One of the model's own end tokens, which are not the agents': it goes on behind it.
        return Drawn(tuple(ids), tuple(logprobs))


def _drawn(told: Mapping[str, Any], tokens: int) -> tuple[list[int], list[float], str]:
    """The ids of a completion, what is said of each, as in `Drawn`, and why it ended. Raises ValueError where it is not
    what was asked for.

    The server says nothing of tokens that end in the middle of a letter, and leaves no gap for them.
    """
    ids, why = [int(token) for token in told["tokens"]], str(told["stop_type"])
    said = [(int(one["id"]), float(one["logprob"])) for one in told.get("completion_probabilities", ())]
    if told["truncated"]:
        raise ValueError("the context and the completion are longer than the server's context")
    if not ids or len(ids) > tokens or (why == "limit" and len(ids) < tokens):
        raise ValueError(f"{len(ids)} ids of {tokens}, ended by {why}")
    same = takewhile(lambda pair: pair[0] == pair[1][0], zip(ids, said, strict=False))
    return ids, [value for _, (_, value) in same], why
