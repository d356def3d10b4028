"""Many policies on one base model.

The base module is built once and never changes. A policy is a set of weights laid over it for the
length of one call (torch.func.functional_call): W + (α/r)·BA for a LoRA adapter, a whole copy for
full training, nothing at all for the reference. So no adapter is ever "active", none can be left
switched on, and updating one policy cannot touch another.

Why not PEFT at run time: on a 1M-parameter model and one CPU core its three small products per
layer make an update 1.4 times and sampling 1.2 times as slow as laying W + (α/r)·BA over the base,
whose gradient is the same. Adapters are written in PEFT's format (`Team.export`). The price is
memory: one extra copy of the adapted weights while a call runs.
"""

from __future__ import annotations

import copy
import json
import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from choreo.engine.noise import seed_of
from choreo.errors import BadInput

Weights = Mapping[str, Tensor]


class LowRank:
    """A LoRA adapter (arXiv 2106.09685) on every linear layer of the backbone. Starts equal to the base: B = 0."""

    def __init__(self, base: nn.Module, targets: Sequence[str], rank: int, alpha: float, seed: int):
        self.base, self.rank, self.alpha = base, rank, alpha
        self.targets = tuple(targets)
        generator = torch.Generator().manual_seed(seed % 2**63)
        self.parameters: dict[str, nn.Parameter] = {}
        for name in self.targets:
            weight = base.get_parameter(f"{name}.weight")
            out_features, in_features = weight.shape
            down = torch.empty(rank, in_features)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5), generator=generator)
            self.parameters[f"{name}.lora_A"] = nn.Parameter(down.to(weight))
            self.parameters[f"{name}.lora_B"] = nn.Parameter(weight.new_zeros(out_features, rank))

    def weights(self) -> Weights:
        """The adapted weights, differentiable in A and B."""
        merged = {}
        for name in self.targets:
            down, up = self.parameters[f"{name}.lora_A"], self.parameters[f"{name}.lora_B"]
            key = f"{name}.weight"
            merged[key] = torch.addmm(self.base.get_parameter(key), up, down, alpha=self.alpha / self.rank)
        return merged


class Full:
    """Every weight, copied. Starts equal to the base."""

    def __init__(self, base: nn.Module):
        self.parameters = {name: nn.Parameter(value.detach().clone()) for name, value in base.named_parameters()}

    def weights(self) -> Weights:
        return self.parameters


class Decoder(nn.Module):
    """A causal language model split where its memory is decided: hidden states first, logits only where wanted."""

    def __init__(self, model: Any):
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Any], where: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hidden states [batch·length, d] (or their rows `where` [n]), and the output layer's weight and bias."""
        hidden = self.model.base_model(**inputs).last_hidden_state.flatten(0, 1)
        head = self.model.get_output_embeddings()
        return hidden if where is None else hidden[where], head.weight, head.bias


class Team:
    """One base and its agents. `agents[name].parameters` are trained; `version[name]` counts their updates."""

    def __init__(self, model: Any, agents: Mapping[str, LowRank | Full]):
        self.decoder = Decoder(model).eval().requires_grad_(False)
        self.agents = dict(agents)
        self.version = dict.fromkeys(agents, 0)
        self.layers: int = model.config.get_text_config().num_hidden_layers
        self.full_attention = _full_attention(model)
        self._lock = threading.Lock()  # functional_call swaps weights in the shared module
        _check_head(model)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        agents: Sequence[str] = ("conversation", "feedback"),
        *,
        train: Literal["lora", "full"] = "lora",
        rank: int = 16,
        alpha: float = 32.0,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> Team:
        """Agents on the float32 base in `folder` (Hugging Face format). All start equal to the base.

        The initial A of an adapter depends on (seed, agent) alone. Raises ValueError for a model
        whose layers are not all attention, or whose logits are not one linear map of its last hidden state.
        """
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, attn_implementation="sdpa")
        model = model.to(device).eval().requires_grad_(False)
        if train == "full":
            return cls(model, {name: Full(model) for name in agents})
        targets = _linear_layers(model)
        return cls(
            model, {name: LowRank(model, targets, rank, alpha, seed_of((seed, name, "lora"))) for name in agents}
        )

    @classmethod
    def open(cls, folder: str | Path, *args: Any, **options: Any) -> Team:
        """`load` for a folder that a user named. Raises BadInput, in one line, for whatever it cannot load."""
        try:
            return cls.load(folder, *args, **options)
        except (OSError, ValueError) as error:
            raise BadInput(f"{folder}: {str(error).splitlines()[0]}") from None

    @property
    def device(self) -> torch.device:
        return next(self.decoder.parameters()).device

    def weights(self, agent: str | None) -> Weights:
        """What to lay over the base for `agent`; None is the reference, the base itself."""
        return {} if agent is None else self.agents[agent].weights()

    def run(self, weights: Weights, inputs: Mapping[str, Any], where: Tensor | None = None):
        """`Decoder.forward` under `weights`. Safe to call from several threads."""
        overlay = {f"model.{name}": value for name, value in weights.items()}
        with self._lock:
            return functional_call(self.decoder, overlay, (inputs, where))

    def state_dict(self, agent: str) -> dict[str, Any]:
        """{"version": int, "weights": {name: tensor}} of one agent, copied."""
        weights = {name: value.detach().clone() for name, value in self.agents[agent].parameters.items()}
        return {"version": self.version[agent], "weights": weights}

    def load_state_dict(self, agent: str, state: Mapping[str, Any]) -> None:
        """Raises ValueError when the state is of another model, rank or kind of training."""
        parameters = self.agents[agent].parameters
        shapes = {name: tuple(value.shape) for name, value in parameters.items()}
        if shapes != {name: tuple(value.shape) for name, value in state["weights"].items()}:
            raise ValueError(f"the saved weights do not fit agent {agent!r}: other base, rank or kind of training")
        with torch.no_grad():
            for name, value in state["weights"].items():
                parameters[name].copy_(value)
        self.version[agent] = state["version"]

    def export(self, agent: str, folder: str | Path) -> None:
        """Writes the agent for other tools: a PEFT adapter (needs the base to load), or a whole Hugging Face model."""
        from safetensors.torch import save_file

        folder, policy, model = Path(folder), self.agents[agent], self.decoder.model
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(policy, Full):
            whole = copy.deepcopy(model)  # loading into the model itself, so that tied weights stay tied
            whole.load_state_dict(policy.parameters, strict=False)
            whole.save_pretrained(str(folder))
            return
        tensors = {}
        for name, value in policy.parameters.items():
            tensors[f"base_model.model.{name}.weight"] = value.detach().cpu().contiguous()
        save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": model.config.name_or_path,
            "r": policy.rank,
            "lora_alpha": policy.alpha,
            "lora_dropout": 0.0,
            "target_modules": list(policy.targets),
        }
        (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _linear_layers(model: Any) -> list[str]:
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    if not names:
        raise ValueError(f'{type(model).__name__} has no linear layers to adapt; train = "full" needs none')
    return names


def _full_attention(model: Any) -> bool:
    """Whether every layer attends to everything before it; False with sliding windows."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise ValueError(f"{type(model).__name__} has layers of kinds {sorted(kinds)}: only attention is supported")
    return kinds == {"full_attention"} and getattr(config, "sliding_window", None) is None


def _check_head(model: Any) -> None:
    """Some models scale or cap their logits after the output layer, which the split in `Decoder` would miss."""
    ids = torch.arange(4, device=next(model.parameters()).device)[None]
    with torch.inference_mode():
        head = model.get_output_embeddings()
        split = head(model.base_model(input_ids=ids, use_cache=False).last_hidden_state)
        whole = model(input_ids=ids, use_cache=False).logits
    if not torch.equal(split, whole):
        raise ValueError(f"{type(model).__name__} changes its logits after the output layer: not supported")
