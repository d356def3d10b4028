"""TRL's side: `python trl_side.py WORK FOLDER` takes turns at one piece of work (see work.py).

TRL as fast as its settings make it here: float32 (bfloat16 is slower on most CPUs), no gradient
checkpointing, one batch per step, the fused optimiser, nothing logged, no dropout in the model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer
from turns import Turns
from work import BETA, CLIP, DPO_BETA, LEARNING_RATE, WARM_UP, Sizes, overrides, reward, spell

from choreo import config
from choreo.models.load import load_chat
from choreo.types import CONVERSATION, FEEDBACK

COMMON = {
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
    "model_init_kwargs": {"dtype": "float32", "attn_implementation": "sdpa"},
}


class TurnsCallback(TrainerCallback):
    def __init__(self, turns: Turns, figures: Any):
        self._turns, self._figures = turns, figures

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._turns.end(**self._figures())


def policy(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """GRPO with answers of one length."""
    sizes = work["sizes"]
    grpo(
        work,
        folder,
        turns,
        spelled(work, work["policy"]),
        prompts=sizes["prompts"],
        group=sizes["group"],
        longest=sizes["new_tokens"],
        generation_kwargs={"min_new_tokens": sizes["new_tokens"]},
    )


def waltz(agent: str) -> Any:
    """GRPO of one of the two agents, on the states of the WaltzRL run and with its lengths. Answers end as they do."""

    def run(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
        recipe = config.load("waltz", overrides(work["model"], work["sizes"]["steps"]))
        longest = {
            CONVERSATION: recipe.protocol.answer_tokens,
            FEEDBACK: recipe.protocol.feedback_tokens,
        }[agent]
        prompts, group = recipe.learning.prompts, recipe.learning.samples
        grpo(work, folder, turns, work["contexts"][agent], prompts=prompts, group=group, longest=longest)

    return run


def grpo(
    work: Mapping[str, Any],
    folder: Path,
    turns: Turns,
    contexts: list[str],
    *,
    prompts: int,
    group: int,
    longest: int,
    **settings: Any,
) -> None:
    tokens = 0

    def paid(completion_ids: list[list[int]], **_: Any) -> list[float]:
        nonlocal tokens
        tokens = sum(map(len, completion_ids))
        return [reward(ids) for ids in completion_ids]

    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=prompts * group,
        num_generations=group,
        max_completion_length=longest,
        beta=BETA,
        epsilon=CLIP,
        shuffle_dataset=False,
        max_steps=WARM_UP + work["sizes"]["steps"],
        **COMMON,
        **settings,
    )
    trainer = GRPOTrainer(
        model=work["model"],
        reward_funcs=paid,
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": contexts}),
        peft_config=adapter(work),
        callbacks=[TurnsCallback(turns, lambda: {"sampled": tokens, "trained": tokens})],
    )
    trainer.model.generate = turns.time("rollout_seconds", trainer.model.generate)
    trainer.train()


def dpo(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """DPO on the same pairs; TRL reads and tokenises them before the first step."""
    contexts = spelled(work, [row[0] for row in work["pairs"]])
    chosen, rejected = ([row[i] for row in work["pairs"]] for i in (1, 2))
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=work["sizes"]["pairs"],
        beta=DPO_BETA,
        max_length=None,
        max_steps=WARM_UP + work["sizes"]["steps"],
        **COMMON,
    )
    data = Dataset.from_dict({"prompt": contexts, "chosen": chosen, "rejected": rejected})
    counts: list[int] = []  # of the batches made and not yet trained on: the next one is made before a step ends
    trainer = DPOTrainer(
        model=work["model"],
        args=arguments,
        train_dataset=data,
        peft_config=adapter(work),
        callbacks=[TurnsCallback(turns, lambda: {"sampled": 0, "trained": counts.pop(0)})],
    )
    collate = trainer.data_collator

    def counted(rows: list[Any]) -> Any:
        batch = collate(rows)
        counts.append(int(batch["completion_mask"].sum()))
        return batch

    trainer.data_collator = counted
    trainer.train()


def adapter(work: Mapping[str, Any]) -> LoraConfig | None:
    """The adapter that choreo's side trains: on every linear layer but the output. None where all weights are."""
    rank = Sizes(**work["sizes"]).rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0) if rank else None


def spelled(work: Mapping[str, Any], prompts: list[str]) -> list[str]:
    """Each prompt as the text of the context that choreo's chat format makes of it."""
    chat = load_chat(work["model"])
    return [spell(chat, chat.answer_context(chat.encode(text))) for text in prompts]


if __name__ == "__main__":
    name, folder = sys.argv[1], Path(sys.argv[2])
    turns = Turns()
    work = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    sides = {"policy": policy, "dpo": dpo, "waltz-conversation": waltz(CONVERSATION), "waltz-feedback": waltz(FEEDBACK)}
    sides[name](work, folder, turns)
