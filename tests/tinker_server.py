"""A server that speaks Tinker's protocol as its client 0.38 does, and computes with choreo's engine: what the contract
tests of the backend talk to.

Requests are answered by a promise, whose result is fetched by its name; those of training and their results are
protocol buffers of the client's own schema. Gradients add up until the optimiser steps.
"""

from __future__ import annotations

import itertools
import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stand_in import StandIn
from tinker.proto import tinker_public_pb2 as wire

from choreo.engine.agent import Team
from choreo.engine.layers import layers_of
from choreo.engine.local import LocalEngine
from choreo.engine.pack import pack
from choreo.engine.policies import LowRank
from choreo.engine.requests import Request
from choreo.engine.score import logprobs

KEY = "tml-of-the-tests"
MODEL = "lab/Micro-1M"
ALPHA = 32.0  # of every adapter: the protocol has no number for it


class Training:
    """One model in training."""

    def __init__(self, base: Any, rank: int, seed: int, state: Any = None):
        self.rank, self.policy = rank, LowRank(base, layers_of(base), rank, ALPHA, seed)
        self.parameters = [*self.policy.parameters.values()]
        self.optimizer = torch.optim.AdamW(self.parameters, weight_decay=0.0)
        self.gradients: list[list[torch.Tensor]] = []  # of each step, before clipping
        if state is not None:
            for own, saved in zip(self.parameters, state[1], strict=True):
                own.data.copy_(saved)
            self.optimizer.load_state_dict(state[2])

    def state(self) -> Any:
        moments = self.optimizer.state_dict()
        kept = {i: {name: value.clone() for name, value in one.items()} for i, one in moments["state"].items()}
        return self.rank, [value.detach().clone() for value in self.parameters], moments | {"state": kept}


class TinkerStandIn(StandIn):
    """Serves on 127.0.0.1 until closed.

    lives: completions until it dies. plain: has the client use Python's own sockets, which Python can watch, and not
    those of its HTTP library in Rust. after: another server, whose saved weights it has.
    asked: the paths of all requests, in order. sent: with their bodies, but for the results that were fetched.
    trained: by model id. samplers: by name, their weights. saved: by path. drawn: how many completions.
    """

    def __init__(self, base: Path | str, *, lives: int | None = None, plain: bool = False, after: Any = None):
        self.base, self.lives, self.plain = base, lives, plain
        self.team = Team.load(base, ())
        self.engine = LocalEngine(self.team, pad_id=0, end_id=1)
        self.asked: list[str] = []
        self.sent: list[tuple[str, Any]] = []
        self.trained: dict[str, Training] = {}
        self.samplers: dict[str, LowRank | None] = {}
        self.saved: dict[str, Any] = after.saved if after else {}
        self.promised: dict[str, tuple[int, Any]] = {}
        self.drawn = 0
        self.numbers = after.numbers if after else itertools.count(1)
        self.lock = threading.RLock()
        self.listen()

    def get(self) -> dict[str, Any]:
        told = {"model_name": MODEL, "max_context_length": 512, "trainable": True, "sampleable": True}
        paths = {
            "healthz": {"status": "ok"},
            "get_server_capabilities": {"supported_models": [told, {"model_name": "lab/Other"}]},
        }
        paths |= {f"samplers/{name}": {"sampler_id": name, "base_model": MODEL} for name in [*self.samplers]}
        return {f"/api/v1/{path}": self.watched(path, lambda _, body=body: (200, body)) for path, body in paths.items()}

    def post(self) -> dict[str, Any]:
        paths: dict[str, Any] = {
            "client/config": lambda _: (200, {"use_pyqwest_transport": not self.plain}),
            "client/dynamic_config": lambda _: (200, {}),
            "create_session": lambda _: (200, {"session_id": f"session-{next(self.numbers)}"}),
            "session_heartbeat": lambda _: (200, {}),
            "telemetry": lambda _: (200, {"status": "accepted"}),
            "create_model": self.create,
            "get_info": self.info,
            "load_weights": self.load,
            "save_weights": self.save,
            "save_weights_for_sampler": self.save_for_sampler,
            "create_sampling_session": self.sampling_session,
            "asample": self.sample,
            "forward_backward": self.forward_backward,
            "optim_step": self.optim_step,
            "retrieve_future": self.retrieve,
        }
        paths |= {f"sessions/{one}/finish": lambda _: (200, {}) for one in self.sessions}
        return {f"/api/v1/{path}": self.watched(path, answer) for path, answer in paths.items()}

    @property
    def sessions(self) -> set[str]:
        return {body["session_id"] for _, body in self.sent if isinstance(body, dict) and body.get("session_id")}

    def watched(self, path: str, answer: Any) -> Any:
        def one(body: Any) -> tuple[int, Any]:
            self.asked.append(path)
            if path == "healthz":  # it answers while the others are at work
                return answer(body)
            with self.lock:
                if path != "retrieve_future":
                    self.sent.append((path, body))
                return answer(body)

        return one

    def of(self, path: str) -> list[Any]:
        """The bodies of all requests to `path`, in order."""
        return [body for name, body in self.sent if name == path]

    # ---- promises -----------------------------------------------------------------------------------

    def promise(self, result: Any, **more: Any) -> tuple[int, Any]:
        name = f"request-{next(self.numbers)}"
        self.promised[name] = result if isinstance(result, tuple) else (200, result)
        return 200, {"request_id": name, **more}

    def retrieve(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["request_id"] not in self.promised:
            return 404, {"detail": f"no request {body['request_id']}"}
        return self.promised[body["request_id"]]

    # ---- models -------------------------------------------------------------------------------------

    def create(self, body: dict[str, Any]) -> tuple[int, Any]:
        how = body["lora_config"]
        if body["base_model"] != MODEL or not (how["train_mlp"] and how["train_attn"]) or how["train_unembed"]:
            return 400, {"detail": f"cannot train {body['base_model']} by {how}"}
        name = f"{body['session_id']}:train:{body['model_seq_id']}"
        self.trained[name] = Training(self.team.decoder.model, how["rank"], how["seed"])
        return self.promise({"type": "create_model", "model_id": name})

    def info(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["model_id"] not in self.trained:
            return 404, {"detail": "no such model"}
        rank = self.trained[body["model_id"]].rank
        told = {"model_data": {"model_name": MODEL}, "model_id": body["model_id"], "is_lora": True, "lora_rank": rank}
        return 200, told

    def load(self, body: dict[str, Any]) -> tuple[int, Any]:
        if body["path"] not in self.saved:
            return self.promise({"error": f"no weights {body['path']}", "category": "user"})
        assert body["optimizer"], "goes on with the optimiser's state"
        state = self.saved[body["path"]]
        name = f"{body['session_id']}:train:{body['model_seq_id']}"
        self.trained[name] = Training(self.team.decoder.model, state[0], 0, state)
        return self.promise({"type": "load_weights", "path": body["path"], "model_id": name})

    def save(self, body: dict[str, Any]) -> tuple[int, Any]:
        path = f"tinker://{body['model_id']}/weights/{body['path']}"
        assert path not in self.saved, "a name is used once"
        self.saved[path] = self.trained[body["model_id"]].state()
        return self.promise({"type": "save_weights", "path": path})

    def save_for_sampler(self, body: dict[str, Any]) -> tuple[int, Any]:
        policy = self.trained[body["model_id"]].policy.copied()
        if body.get("path") is not None:
            path = f"tinker://{body['model_id']}/sampler_weights/{body['path']}"
            assert path not in self.saved, "a name is used once"
            self.saved[path] = policy
            return self.promise({"type": "save_weights_for_sampler", "path": path})
        return self.promise({"type": "save_weights_for_sampler", "sampling_session_id": self.sampler(policy)})

    def sampling_session(self, body: dict[str, Any]) -> tuple[int, Any]:
        if path := body.get("model_path"):
            if path not in self.saved:
                return 404, {"detail": f"no weights {path}"}
            return 200, {"sampling_session_id": self.sampler(self.saved[path])}
        if body["base_model"] != MODEL:
            return 404, {"detail": f"no model {body['base_model']}"}
        return 200, {"sampling_session_id": self.sampler(None)}

    def sampler(self, policy: LowRank | None) -> str:
        name = f"sampler-{next(self.numbers)}"
        self.samplers[name] = policy
        return name

    # ---- sampling and learning ----------------------------------------------------------------------

    def sample(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.drawn += body["num_samples"]
        if self.lives is not None and self.drawn > self.lives:
            threading.Thread(target=self.close, daemon=True).start()
            raise ConnectionAbortedError
        how, context = body["sampling_params"], tuple(body["prompt"]["chunks"][0]["tokens"])
        if how["top_p"] != 1 or how["top_k"] != -1 or len(how["stop"]) != 1:
            return 400, {"detail": f"cannot sample by {how}"}
        name = body["sampling_session_id"]
        policy = self.samplers[name]
        self.engine.end_id = how["stop"][0]
        if policy is not None:
            self.team.agents["asked"], self.team.version["asked"] = policy, 0
        keys = [(how.get("seed") or 0, name, body["seq_id"], i) for i in range(body["num_samples"])]
        done = self.engine.sample(
            None if policy is None else "asked",
            [Request(context, key) for key in keys],
            max_new_tokens=how["max_tokens"],
            temperature=how["temperature"],
        )
        sequences = [
            wire.SampledSequence(
                stop_reason=wire.STOP_REASON_STOP if one.finished else wire.STOP_REASON_LENGTH,
                tokens=np.asarray(one.ids, np.int32).tobytes(),
                logprobs=np.asarray(one.logprobs, np.float32).tobytes(),
            )
            for one in done
        ]
        names = [f"{name}:{body['seq_id']}:{i}" for i in range(len(done))]
        return self.promise(wire.SampleResponse(sequences=sequences).SerializeToString(), sample_sequence_ids=names)

    def forward_backward(self, sent: wire.ForwardBackwardRequest) -> tuple[int, Any]:
        own = self.trained[sent.model_id]
        rows, inputs = [], []
        for datum in sent.data:
            [chunk] = datum.model_input
            tokens = np.frombuffer(chunk.encoded_text.tokens, np.int32).tolist()
            given = {name: _array(tensor) for name, tensor in datum.loss_fn_inputs.items()}
            targets = given.pop("target_tokens").tolist()
            assert tokens[1:] == targets[:-1], "each position predicts the next token"
            assert all(len(value) == len(tokens) for value in given.values())
            rows.append((((tokens[0],), tuple(targets)),))
            inputs.append(given)
        # Of one length a batch, so that no row is packed with others of another length.
        values: list[torch.Tensor] = [torch.empty(0)] * len(rows)
        with torch.set_grad_enabled(not sent.forward_only):
            for batch in pack(rows, micro_tokens=2**14):
                parts = logprobs(self.team, own.policy.weights(), batch)
                for i, part in zip(batch.units, parts.split([len(rows[i][0][1]) for i in batch.units]), strict=True):
                    values[i] = part
            losses = [_loss(sent, value, given) for value, given in zip(values, inputs, strict=True)]
            total = torch.stack(losses).sum()
        if not sent.forward_only:
            total.backward()
        flat = np.concatenate([value.detach().numpy() for value in values]).astype(np.float32)
        ends = np.cumsum([0, *(len(value) * 4 for value in values)]).astype(np.int64)
        told = wire.BatchedTensor(data=flat.tobytes(), offsets=ends.tobytes(), dtype=wire.DTYPE_FLOAT32)
        record = wire.ArrayRecord(fields={"logprobs": told}, num_datums=len(rows))
        output = wire.ForwardBackwardOutput(
            loss_fn_output_type="ArrayRecord", loss_fn_outputs=[record], metrics={"loss:sum": float(total.detach())}
        )
        return self.promise(output.SerializeToString())

    def optim_step(self, body: dict[str, Any]) -> tuple[int, Any]:
        own, how = self.trained[body["model_id"]], body["adam_params"]
        own.gradients.append([parameter.grad.clone() for parameter in own.parameters])
        if how["grad_clip_norm"]:
            torch.nn.utils.clip_grad_norm_(own.parameters, how["grad_clip_norm"])
        own.optimizer.param_groups[0] |= {
            "lr": how["learning_rate"],
            "betas": (how["beta1"], how["beta2"]),
            "eps": how["eps"],
            "weight_decay": how["weight_decay"],
        }
        own.optimizer.step()
        own.optimizer.zero_grad()
        return self.promise({"metrics": {}})

    def allows(self, headers: Any) -> bool:
        return headers.get("X-API-Key") == KEY

    def received(self, content: bytes) -> Any:
        if content[:1] in (b"{", b""):
            return json.loads(content or b"{}")
        request = wire.ForwardBackwardRequest()
        request.ParseFromString(content)
        return request


def _array(tensor: wire.Tensor) -> np.ndarray:
    kind = {wire.DTYPE_FLOAT32: np.float32, wire.DTYPE_INT64: np.int64}[tensor.dtype]
    return np.frombuffer(tensor.dense, kind).reshape(tuple(tensor.shape))


def _loss(sent: wire.ForwardBackwardRequest, new: torch.Tensor, given: dict[str, np.ndarray]) -> torch.Tensor:
    """The sum of one datum's loss, as Tinker's documentation spells it out."""
    of = {name: torch.tensor(value) for name, value in given.items()}
    if sent.loss_fn == "cross_entropy":
        return -(new * of["weights"]).sum()
    assert sent.loss_fn == "ppo" and set(of) == {"logprobs", "advantages"}
    low, high = (sent.loss_fn_config_v2[f"clip_{side}_threshold"].number for side in ("low", "high"))
    ratio = (new - of["logprobs"]).exp()
    clipped = ratio.clamp(low, high)
    return -torch.minimum(ratio * of["advantages"], clipped * of["advantages"]).sum()
