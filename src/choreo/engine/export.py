"""Writes an agent for other tools: as a PEFT adapter, which is loaded with the base, or as a Hugging Face model."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.layers import stacks_of
from choreo.engine.policies import LowRank
from choreo.files.durable import make_folder

OF_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


def export(
    team: Team, agent: str, folder: str | Path, *, merged: bool = False, base: str = "", end_id: int | None = None
) -> None:
    """Writes the current weights of `agent` into `folder`.

    merged: writes a whole model, in the base's dtype, for an adapter too. An agent with full weights is always written
    as a whole model. base: the name of the base in an adapter's configuration; by default the folder that the base was
    loaded from. end_id: the token at which a whole model's `generate` stops; None leaves the base's own.
    """
    folder, policy, model = Path(folder), team.agents[agent], team.decoder.model
    if merged or not isinstance(policy, LowRank):
        whole = copy.deepcopy(model)  # loading into the model itself, so that tied weights stay tied
        weights = policy.merged() if isinstance(policy, LowRank) else policy.weights()
        with torch.no_grad():
            whole.load_state_dict(weights, strict=False)
        if end_id is not None and whole.generation_config is not None:
            whole.generation_config.eos_token_id = end_id
        make_folder(folder)
        whole.save_pretrained(str(folder))
    else:
        write_adapter(policy, model, folder, base)


def write_adapter(policy: LowRank, model: Any, folder: Path, base: str = "") -> None:
    """Writes an adapter on `model` into `folder`, in PEFT's format. base: as in `export`."""
    from safetensors.torch import save_file

    make_folder(folder)
    tensors = _named_for_peft(policy)
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    # PEFT takes a linear layer of these names in such a model for an expert of an older transformers.
    experts = any(stacks_of(module) for module in model.modules())
    by_weight = [
        layer.weight
        for layer in policy.targets
        if layer.experts is not None or (experts and layer.name.rpartition(".")[2] in OF_EXPERTS)
    ]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or model.config.name_or_path,
        "r": policy.rank,
        "lora_alpha": policy.alpha,
        "lora_dropout": 0.0,
        "target_modules": [layer.name for layer in policy.targets if layer.weight not in by_weight],
        **({"target_parameters": by_weight} if by_weight else {}),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _named_for_peft(policy: LowRank) -> dict[str, Tensor]:
    """The tensors of an adapter by PEFT's names.

    A and B of a stack are joined over its experts: A [experts · rank, in], B [out, rank · experts] (peft's
    `ParamWrapper`). A module with several stacks is wrapped once for each, the last one outermost.
    """
    stacks: dict[str, list[str]] = {}
    for layer in policy.targets:
        if layer.experts is not None:
            stacks.setdefault(layer.module, []).append(layer.name)
    tensors = {}
    for layer in policy.targets:
        down, up = policy.factors(layer)
        name = layer.name
        if layer.experts is not None:
            inside = len(stacks[layer.module]) - 1 - stacks[layer.module].index(layer.name)
            name = layer.module + ".base_layer" * inside
            down, up = down.flatten(0, 1), up.permute(1, 2, 0).flatten(1)
        for factor, value in (("lora_A", down), ("lora_B", up)):
            tensors[f"base_model.model.{name}.{factor}.weight"] = value.detach().cpu().contiguous()
    return tensors
