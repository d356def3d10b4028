"""An agent written for other tools: a PEFT adapter, which needs the base to load, or a whole Hugging Face model."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import torch

from choreo.engine.agent import Team
from choreo.engine.policies import LowRank


def export(
    team: Team, agent: str, folder: str | Path, *, merged: bool = False, base: str = "", end_id: int | None = None
) -> None:
    """Writes the weights of `agent` as it stands into `folder`.

    merged: whole weights, in the base's dtype, of an agent that is an adapter too. An agent with full weights always
    is a whole model. base: what an adapter calls its base; by default the folder it was loaded from.
    end_id: the token at which a whole model's `generate` is to stop; None leaves the base's own.
    """
    from safetensors.torch import save_file

    folder, policy, model = Path(folder), team.agents[agent], team.decoder.model
    folder.mkdir(parents=True, exist_ok=True)
    if merged or not isinstance(policy, LowRank):
        whole = copy.deepcopy(model)  # loading into the model itself, so that tied weights stay tied
        weights = policy.merged() if isinstance(policy, LowRank) else policy.weights()
        with torch.no_grad():
            whole.load_state_dict(weights, strict=False)
        if end_id is not None and whole.generation_config is not None:
            whole.generation_config.eos_token_id = end_id
        whole.save_pretrained(str(folder))
        return
    tensors = {}
    for name, value in policy.parameters.items():
        tensors[f"base_model.model.{name}.weight"] = value.detach().cpu().contiguous()
    save_file(tensors, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or model.config.name_or_path,
        "r": policy.rank,
        "lora_alpha": policy.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(policy.targets),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
