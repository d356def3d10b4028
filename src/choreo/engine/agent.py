"""Many policies on one base model.

The base module is built once and never changes. A policy is a set of weights laid over it for the
length of one call (torch.func.functional_call): W + (α/r)·BA for a LoRA adapter, a whole copy for
full training, nothing at all for the reference. So no adapter is ever "active", none can be left
switched on, and updating one policy cannot touch another.

Why not PEFT at run time: on a 1M-parameter model and one CPU core its three small products per
layer make an update 1.4 times and sampling 1.2 times as slow as laying W + (α/r)·BA over the base,
whose gradient is the same. Adapters are written in PEFT's format (export.py). The price is
memory, one extra copy of the adapted weights while a call runs, and the gradient of a whole W, a third
of an update's arithmetic. So on a base of some width A and B stay beside W (policies.py). Over a
bfloat16 base they always do: the sum would round.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import functional_call

from choreo import parallel
from choreo.engine.decoder import Decoder
from choreo.engine.head import Head, tempered
from choreo.engine.layers import chosen
from choreo.engine.noise import seed_of
from choreo.engine.policies import Full, LowRank, Weights, make_adaptable
from choreo.engine.recompute import recompute_layers
from choreo.engine.requests import Scorable
from choreo.engine.sharded import Sharded, check_shardable, fill
from choreo.errors import BadInput, Unsupported
from choreo.models import model_folder

Device = Literal["auto", "cpu", "cuda", "mps", "meta"]
"""meta: shapes without weights, for what is checked before anything is loaded. Such a team computes nothing."""
Learnable = LowRank | Full | Sharded
BESIDE = 256  # width of a wide model: in float32 too, A and B stay beside W, and rows share a beginning (prefill)


class Team:
    """One base and its agents. `agents[name].parameters` are trained; `version[name]` counts their updates.

    temperature: τ of every policy, π = softmax(logits / τ), the reference's too. It is part of what is sampled, scored
    and trained, so ratios and gradients are exact. A temperature of sampling comes on top of it.
    """

    def __init__(self, model: Any, agents: Mapping[str, Learnable], temperature: float = 1.0):
        self.decoder = Decoder(model).eval().requires_grad_(False)
        self.agents = dict(agents)
        self.version = dict.fromkeys(agents, 0)
        self.temperature = temperature
        self.layers: int = model.config.get_text_config().num_hidden_layers
        self.positions: int | None = _positions(model.config.get_text_config())
        self.full_attention = full_attention(model)
        # Of the layers that have one, the smallest; None where every layer sees everything.
        self.window: int | None = None if self.full_attention else _window(model)
        self._lock = threading.RLock()  # functional_call swaps weights in the shared module
        _check_head(self.decoder)
        self.decoder.scale, self.decoder.cap = tempered(self.decoder.scale, self.decoder.cap, temperature)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        agents: Sequence[str] = ("conversation", "feedback"),
        *,
        train: Literal["lora", "full"] = "lora",
        rank: int = 16,
        alpha: float = 32.0,
        targets: Sequence[str] = (),
        seed: int = 0,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: Device = "cpu",
        recompute: bool = False,
        shard: bool = False,
        temperature: float = 1.0,
    ) -> Team:
        """Agents on the base in `folder` (Hugging Face format). All start equal to the base.

        The initial A of an adapter depends on (seed, agent) alone. targets: see `layers.chosen`.
        dtype: of the base and of activations; trained weights are float32. recompute: gradient checkpointing.
        shard: of several ranks, each keeps a share of every agent that has full weights (`engine.sharded`).
        temperature: of the policies themselves, see `Team`.
        Raises Unsupported for a model whose layers are not all attention, or that changes its logits in a way that
        `Head` does not know, or that cannot be sharded; BadInput for a device that is not there, and for a folder
        without a whole model.
        """
        place = device_of(device)
        if place.type == "meta":
            model: Any = model_folder.blank(folder, model_folder.configuration(folder))
        else:
            model = model_folder.load(folder, getattr(torch, dtype), place)
        model.requires_grad_(False)
        policies: dict[str, Learnable] = {}
        if shard:
            check_shardable(model)  # refused in one process too, where a recipe is checked
        if train == "full" and shard and parallel.ranks() > 1:
            policies = {name: Sharded(model, recompute=recompute) for name in agents}
        elif train == "full":
            policies = {name: Full(model) for name in agents}
        else:
            layers = chosen(model, targets)
            if dtype != "float32" or model.config.get_text_config().hidden_size >= BESIDE:
                make_adaptable(model, layers)
            for name in agents:
                policies[name] = LowRank(model, layers, rank, alpha, seed_of((seed, name, "lora")))
        team = cls(model, policies, temperature)
        if recompute:
            recompute_layers(model, team._lock)
        return team

    @classmethod
    def open(cls, folder: str | Path, *args: Any, **options: Any) -> Team:
        """`load` for a folder that a user named: raises BadInput, in one line, for any model that cannot be used."""
        try:
            return cls.load(folder, *args, **options)
        except Unsupported as error:
            raise BadInput(f"{folder}: {error}") from None

    @property
    def device(self) -> torch.device:
        """The device of the base."""
        return next(self.decoder.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the base."""
        return next(self.decoder.parameters()).dtype

    def alias(self, agent: str, of: str) -> None:
        """Makes `agent` a second name of the policy `of`: what is learnt under one name is learnt under both."""
        self.agents[agent] = self.agents[of]
        self.version[agent] = self.version[of]

    def count_update(self, agent: str) -> None:
        """Counts an update of the policy of `agent`, under all of its names."""
        for name, policy in self.agents.items():
            self.version[name] += policy is self.agents[agent]

    def weights(self, agent: str | None) -> Weights:
        """The weights to lay over the base for `agent`. None is the reference, which is the base itself."""
        return {} if agent is None else self.agents[agent].weights()

    def whole(self, agent: str | None) -> AbstractContextManager[None]:
        """Within it the weights of `agent` are there, in every rank. Ranks enter it together."""
        policy = None if agent is None else self.agents[agent]
        return policy.whole() if isinstance(policy, Sharded) else nullcontext()

    def learning(self, agent: str) -> Weights | Sharded:
        """What `run` takes where `agent` learns: its weights, with gradient, or itself where it is sharded."""
        policy = self.agents[agent]
        return policy if isinstance(policy, Sharded) else policy.weights()

    def run(
        self, weights: Weights | Sharded, inputs: Mapping[str, Any], where: Tensor | None = None
    ) -> tuple[Tensor, Head]:
        """`Decoder.forward` under `weights`. Safe to call from several threads, but for an agent that is sharded."""
        if isinstance(mask := inputs.get("attention_mask"), Tensor):
            inputs = {**inputs, "attention_mask": mask.to(self.dtype)}
        if isinstance(weights, Sharded):
            hidden = weights.module(inputs, where)  # before `head`: it gathers the output layer
            return hidden, weights.module.head()._replace(scale=self.decoder.scale, cap=self.decoder.cap)
        overlay = {f"model.{name}": value for name, value in weights.items()}
        with self._lock:
            return functional_call(self.decoder, overlay, (inputs, where))

    def shares(self, units: Sequence[Sequence[Scorable]]) -> bool:
        """Whether sequences like these may share their beginnings in one pass: no window hides anything in them."""
        longest = max((len(one[0]) + len(one[1]) for unit in units for one in unit), default=0)
        return self.full_attention or (self.window is not None and longest <= self.window)

    def state_dict(self, agent: str) -> dict[str, Any]:
        """{"version": int, "weights": {name: tensor}} of one agent, copied."""
        weights = {name: value.detach().clone() for name, value in self.agents[agent].parameters.items()}
        return {"version": self.version[agent], "weights": weights}

    def example(self, agent: str) -> dict[str, Any]:
        """An example of a saved state of `agent` (`checkpoint.check`). Nothing is copied."""
        return {"version": 0, "weights": self.agents[agent].parameters}

    def load_state_dict(self, agent: str, state: Mapping[str, Any]) -> None:
        """Raises ValueError for a state of another base, rank or kind of training."""
        parameters = self.agents[agent].parameters
        shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        if shapes != {name: tuple(value.shape) for name, value in state["weights"].items()}:
            raise ValueError(f"the saved weights do not fit agent {agent!r}: other base, rank or kind of training")
        for name, value in state["weights"].items():
            fill(parameters[name], value)
        self.version[agent] = state["version"]


def device_of(name: Device) -> torch.device:
    """The device of that name; "auto" is the best one there is. Raises BadInput where this machine lacks it."""
    if name == "meta":
        return torch.device(name)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    found = next(kind for kind, here in there.items() if here) if name == "auto" else name
    if not there[found]:
        raise BadInput(f'device = "{name}": there is none here; "auto" takes the best there is')
    if found != "cuda":
        return torch.device(found)
    if parallel.ranks_here() > (cards := torch.cuda.device_count()):
        raise BadInput(f'device = "{name}": {parallel.ranks_here()} processes are here, and {cards} GPUs')
    return torch.device("cuda", torch.cuda.current_device())


def _positions(config: Any) -> int | None:
    """The most positions of a row, or None.

    With LongRoPE only the length that the model was pretrained on: beyond it transformers changes the frequencies of
    the whole batch, so one long row would change the results of the others.
    """
    most: int | None = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if most is None or rope.get("rope_type") != "longrope":
        return most
    original: int | None = rope.get("original_max_position_embeddings")
    return min(most, original or getattr(config, "original_max_position_embeddings", None) or most)


def full_attention(model: Any) -> bool:
    """Whether every layer attends to everything before it; False with sliding windows."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise Unsupported(f"{type(model).__name__} has layers of kinds {sorted(kinds)}: only attention is supported")
    return kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None


def _window(model: Any) -> int | None:
    window: int | None = getattr(model.config.get_text_config(), "sliding_window", None)
    return window


def _check_head(decoder: Decoder) -> None:
    """Raises Unsupported where the model changes its logits in a way that `Head` does not know. A model without weights
    cannot be asked."""
    device = next(decoder.parameters()).device
    if device.type == "meta":
        return
    ids = torch.arange(4, device=device)[None]
    with torch.inference_mode():
        hidden, head = decoder({"input_ids": ids, "use_cache": False})
        whole = decoder.model(input_ids=ids, use_cache=False).logits[0]
    if not torch.equal(head.logits(hidden), whole):
        raise Unsupported(f"{type(decoder.model).__name__} changes its logits in a way that is not supported")
