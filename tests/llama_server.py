"""A server that speaks llama.cpp's protocol, and computes with choreo's engine: what its contract tests talk to.

`ails` makes it one of the servers that must not be measured by.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from stand_in import StandIn

from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.constraint import ENDS, Given
from choreo.engine.local import LocalEngine
from choreo.engine.policies import LowRank
from choreo.engine.requests import Request
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.folder import Run
from choreo.types import AGENTS, FEEDBACK

FIXED = {  # fields of llama.cpp's completion request that this one honours at these values alone
    "samplers": ["temperature"], "dynatemp_range": 0.0, "mirostat": 0, "repeat_penalty": 1.0, "presence_penalty": 0.0,
    "frequency_penalty": 0.0, "grammar": "", "n_probs": 1, "post_sampling_probs": False, "return_tokens": True,
    "cache_prompt": False, "stream": False,
    "response_fields": ["tokens", "completion_probabilities", "stop_type", "truncated"],
}  # fmt: skip
FREE = {"prompt", "n_predict", "temperature", "seed", "lora", "logit_bias", "stop"}


def disturbed_run(path: Path, recipe: WaltzRecipe, by: float) -> Pair:
    """A run whose checkpoint has agents that differ from their base at random; and they."""
    with Run.create(path, recipe):
        pair = Pair(recipe)
        team = pair.team(FEEDBACK)
        for agent in AGENTS:
            team.agents[agent] = team.agents[agent].copied(disturbed=by, seed=len(agent))
            team.version[agent] = 2
        state = {"base": pair.base, "frames": pair.frames(), "step": 2}
        state["agents"] = {agent: {"agent": team.state_dict(agent)} for agent in AGENTS}
        checkpoint.save(path / "checkpoints" / "step-000002", state)
    return pair


class Allowed:
    """A constraint that allows the same ids everywhere, until `ends`."""

    def __init__(self, masks: torch.Tensor, ends: int):
        self.masks, self.ends = masks, ends

    def start(self, limit: int) -> Given:
        return Given((), 0, limit)

    def after(self, state: Any, token: int) -> Given:
        return Given((), ENDS if token == self.ends or state == 1 else 0, state - 1)


class LlamaStandIn(StandIn):
    """Serves on 127.0.0.1 until closed.

    adapters: by the names of their files. ends: the token that it takes for the end of a turn.
    ails: "" or "deaf" (draws by the base, whatever is asked for), "half" (half of α/r), "swapped" (the adapters of two
    names), "text" (no ids), "letters" (says nothing of tokens below 40, as of halves of letters), "short" (ends before
    the limit), "loading", "unbanned" (draws what logit_bias bans). asked: the bodies of what was asked for.
    """

    def __init__(
        self, base: Path | str, adapters: Mapping[str, LowRank], ails: str = "", *, ends: int = 1, longest: int = 512
    ):
        self.names, policies = [*adapters], [*adapters.values()]
        self.policies = policies[::-1] if ails == "swapped" else policies
        self.ails, self.ends, self.longest = ails, ends, longest
        self.asked: list[dict[str, Any]] = []
        self.lock, self.team = threading.Lock(), Team.load(base, ())
        self.ids = self.team.decoder.model.get_output_embeddings().weight.shape[0]
        self.listen()

    def get(self) -> dict[str, Any]:
        meta = {"n_vocab": self.ids, "n_ctx": self.longest}
        loras = [{"id": i, "path": f"/models/{name}.gguf", "scale": 0.0} for i, name in enumerate(self.names)]
        return {
            "/v1/models": lambda _: (200, {"object": "list", "data": [{"id": "the-base", "meta": meta}]}),
            "/lora-adapters": lambda _: (200, loras),
        }

    def post(self) -> dict[str, Any]:
        return {"/completion": self.complete}

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if strange := [name for name in body if name not in FREE and body[name] != FIXED.get(name)]:
            return 400, failure(f"fields {strange}")
        if len(body["prompt"]) >= self.longest:
            return 400, failure("the request exceeds the available context size")
        if self.ails == "loading":
            return 503, failure("Loading model")
        with self.lock:
            self.asked.append(body)
            ids, logprobs = self.draw(body)
        if self.ails == "text":
            return 200, {"content": "Hello.", "tokens": [], "stop_type": "eos", "truncated": False}
        why = "eos" if ids[-1] == self.ends else "limit"
        if self.ails == "short":
            ids, why = ids[:2], "limit"
        told = [
            {"id": token, "logprob": value, "token": "", "bytes": [], "top_logprobs": []}
            for token, value in zip(ids, logprobs, strict=False)
            if not (self.ails == "letters" and token < 40)
        ]
        return 200, {"tokens": ids, "completion_probabilities": told, "stop_type": why, "truncated": False}

    def draw(self, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        scales = {one["id"]: one["scale"] for one in body["lora"]}
        assert scales.keys() == {*range(len(self.names))}, "an adapter that is not named has whatever scale it had"
        on = [number for number, scale in scales.items() if scale]
        agent = None
        if on and self.ails != "deaf":
            [number] = on
            self.team.agents["asked"] = raised = self.policies[number].copied()
            self.team.version["asked"], agent = 0, "asked"
            for layer in raised.targets:
                raised.factors(layer)[1].mul_(scales[number] * (0.5 if self.ails == "half" else 1))
        allowed = torch.ones(1, self.ids, dtype=torch.bool)
        for token, bias in body["logit_bias"]:
            assert bias is False
            allowed[0, token] = self.ails == "unbanned"
        constraint = None if allowed.all() else Allowed(allowed, self.ends)
        engine = LocalEngine(self.team, pad_id=0 if self.ends else 1, end_id=self.ends)
        asked = [Request(tuple(body["prompt"]), (body["seed"],), constraint)]
        room = min(body["n_predict"], self.longest - len(body["prompt"]))
        [done] = engine.sample(agent, asked, max_new_tokens=room, temperature=body["temperature"])
        ids = done.ids if self.ends not in done.ids else done.ids[: done.ids.index(self.ends) + 1]
        [logprobs] = engine.score(agent, [(tuple(body["prompt"]), ids)])
        return list(ids), list(logprobs)


def failure(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": 400}}
