"""A server that speaks vLLM's protocol, and computes with choreo's engine: what the contract tests of rollouts talk to.

It reads adapters from the folders that it is told, knows them by name, and draws and scores with them. `ails` makes it
one of the servers that must not be learnt from.
"""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from stand_in import StandIn

from choreo.engine.agent import Team
from choreo.engine.layers import layers_of
from choreo.engine.local import LocalEngine
from choreo.engine.policies import LowRank
from choreo.engine.requests import Request

TAKEN = {  # of the fields of vLLM's completion request, those that this one honours
    "model", "prompt", "add_special_tokens", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "logprobs",
    "repetition_penalty", "presence_penalty", "frequency_penalty", "ignore_eos", "stop_token_ids", "return_token_ids",
    "return_tokens_as_token_ids",
}  # fmt: skip
OFF = {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0, "frequency_penalty": 0}


class VllmStandIn(StandIn):
    """Serves on 127.0.0.1 until closed.

    ails: "" or "no lora" (no paths for adapters), "deaf" (loads adapters, and draws by the base), "stale" (draws by the
    weights before, under the new name), "half" (half of α/r), "stops" (has a stop token of its own), "text" (no ids),
    "noisy" (says up to .9 nats less than it drew by).
    lives: completions until it dies. logprobs_mode: as of vLLM. events: what happened, in order.
    """

    def __init__(
        self,
        base: Path | str,
        ails: str = "",
        *,
        lives: int | None = None,
        longest: int = 512,
        logprobs_mode: str = "raw_logprobs",
        port: int = 0,
    ):
        self.base, self.ails, self.lives, self.longest, self.mode = base, ails, lives, longest, logprobs_mode
        self.events: list[tuple[str, str]] = []
        self.loaded: dict[str, LowRank] = {}
        self.teams: dict[float, Team] = {}
        self.lock = threading.RLock()
        self.team(1.0)

        self.listen(port)

    def get(self) -> dict[str, Any]:
        return {"/health": lambda _: (200, {}), "/v1/models": lambda _: self.models()}

    def post(self) -> dict[str, Any]:
        adapters = {"/v1/load_lora_adapter": self.load, "/v1/unload_lora_adapter": self.unload}
        return {"/v1/completions": self.complete} | ({} if self.ails == "no lora" else adapters)

    def named(self, what: str) -> list[str]:
        """The names of what was loaded, unloaded or asked to complete, in order."""
        return [name for kind, name in self.events if kind == what]

    def team(self, temperature: float) -> Team:
        if temperature not in self.teams:
            self.teams[temperature] = Team.load(self.base, (), temperature=temperature)
        return self.teams[temperature]

    def models(self) -> tuple[int, Any]:
        base = {"id": "the-base", "object": "model", "root": str(self.base), "parent": None}
        cards = [base | {"max_model_len": self.longest}]
        cards += [{"id": name, "object": "model", "parent": "the-base"} for name in self.loaded]
        return 200, {"object": "list", "data": cards}

    def load(self, body: dict[str, str]) -> tuple[int, Any]:
        name, folder = body["lora_name"], Path(body["lora_path"])
        with self.lock:
            if name in self.loaded:
                return 400, failure(f"The lora adapter '{name}' has already been loaded.")
            if not folder.is_dir():
                return 404, failure(f"Loading lora {name} failed: No adapter found for {folder}")
            policy = self.read(folder)
            agent, before = name.rsplit("-", 2)[0], list(self.loaded)
            known = [other for other in before if other.rsplit("-", 2)[0] == agent]
            self.loaded[name] = self.loaded[known[-1]] if self.ails == "stale" and known else policy
            self.events.append(("load", name))
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    def read(self, folder: Path) -> LowRank:
        config = json.loads((folder / "adapter_config.json").read_text())
        model = self.team(1.0).decoder.model
        layers = [layer for layer in layers_of(model) if layer.name in config["target_modules"]]
        alpha = config["lora_alpha"] * (0.5 if self.ails == "half" else 1)
        policy = LowRank(model, layers, config["r"], alpha, seed=0)
        for name, value in load_file(folder / "adapter_model.safetensors").items():
            own = name.removeprefix("base_model.model.").removesuffix(".weight")
            policy.parameters[own].data.copy_(value)
        return policy

    def unload(self, body: dict[str, str]) -> tuple[int, Any]:
        with self.lock:
            if body["lora_name"] not in self.loaded:
                return 404, failure(f"The lora adapter '{body['lora_name']}' cannot be found.")
            if self.ails != "stale":
                del self.loaded[body["lora_name"]]
            self.events.append(("unload", body["lora_name"]))
        return 200, "Success"

    def complete(self, body: dict[str, Any]) -> tuple[int, Any]:
        if strange := [name for name in body if name not in TAKEN or body[name] != OFF.get(name, body[name])]:
            return 400, failure(f"fields {strange}")
        if body["model"] != "the-base" and body["model"] not in self.loaded:
            return 404, failure(f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) + body["max_tokens"] > self.longest:
            return 400, failure(f"This model's maximum context length is {self.longest} tokens.")
        with self.lock:
            self.events.append(("complete", body["model"]))
            if self.lives is not None and len(self.named("complete")) > self.lives:
                threading.Thread(target=self.close, daemon=True).start()
                raise ConnectionAbortedError
            ids, logprobs = self.draw(body)
        if self.ails == "text":
            return 200, {"choices": [{"text": "Hello.", "logprobs": None, "finish_reason": "stop"}]}
        if self.ails == "stops":
            ids, logprobs = ids[:2], logprobs[:2]
        if self.ails == "noisy":
            noise = random.Random(body["seed"])
            logprobs = [value - 0.9 * noise.random() for value in logprobs]
        told = {"tokens": [f"token_id:{token}" for token in ids], "token_logprobs": logprobs}
        choice = {"text": "", "logprobs": told, "token_ids": ids, "prompt_token_ids": body["prompt"]}
        return 200, {"choices": [choice | {"index": 0, "finish_reason": "stop"}]}

    def draw(self, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        temperature = body["temperature"]
        processed = self.mode == "processed_logprobs"
        team = self.team(temperature if processed else 1.0)
        policy = None if self.ails == "deaf" else self.loaded.get(body["model"])
        if policy is not None:
            team.agents["asked"], team.version["asked"] = policy, 0
        [end] = body["stop_token_ids"] or [-1]
        [done] = LocalEngine(team, pad_id=0, end_id=end).sample(
            None if policy is None else "asked",
            [Request(tuple(body["prompt"]), (body["seed"],))],
            max_new_tokens=body["max_tokens"],
            temperature=1.0 if processed else temperature,
        )
        return list(done.ids), list(done.logprobs)


def failure(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "code": 400}}
