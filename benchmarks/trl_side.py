"""TRL's side: `python trl_side.py WORK FOLDER` takes turns at one piece of work (see work.py).

TRL as fast as its settings make it here: on a CPU float32 (bfloat16 is slower on most), no gradient checkpointing,
one batch per step; on a card what the sizes say. The fused optimiser, nothing logged, no dropout in the model. A part
that ends in -vllm samples by vLLM in TRL's own process ("colocate").
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
from work import BETA, CLIP, DPO_BETA, LEARNING_RATE, WARM_UP, Sizes, overrides, reward, spelled

from choreo import config
from choreo.types import CONVERSATION, FEEDBACK

COMMON = {
    "learning_rate": LEARNING_RATE,
    "lr_scheduler_type": "constant",
    "optim": "adamw_torch_fused",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "report_to": "none",
    "logging_strategy": "no",
    "save_strategy": "no",
    "disable_tqdm": True,
}


def common(sizes: Sizes, rows: int) -> dict[str, Any]:
    """The settings of a trainer whose step has `rows` rows."""
    return {
        **COMMON,
        "per_device_train_batch_size": rows // sizes.parts,
        "gradient_accumulation_steps": sizes.parts,
        "gradient_checkpointing": sizes.recompute,
        "bf16": sizes.dtype == "bfloat16",
        "use_cpu": sizes.device == "cpu",
        "max_steps": WARM_UP + sizes.steps,
        "model_init_kwargs": {"dtype": sizes.dtype, "attn_implementation": "sdpa"},
    }


class TurnsCallback(TrainerCallback):
    def __init__(self, turns: Turns, figures: Any):
        self._turns, self._figures = turns, figures

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._turns.end(**self._figures())


def policy(work: Mapping[str, Any], folder: Path, turns: Turns, vllm: bool) -> None:
    """GRPO with answers of one length."""
    sizes = Sizes(**work["sizes"])
    least = {"min_tokens" if vllm else "min_new_tokens": sizes.new_tokens}
    contexts = spelled(work, work["policy"])
    grpo(work, folder, turns, contexts, sizes.prompts, sizes.group, sizes.new_tokens, vllm, generation_kwargs=least)


def waltz(agent: str, work: Mapping[str, Any], folder: Path, turns: Turns, vllm: bool) -> None:
    """GRPO of one of the two agents, on the states of the WaltzRL run and with its lengths. Answers end as they do."""
    recipe = config.load("waltz", overrides(work["model"], Sizes(**work["sizes"])))
    longest = {
        CONVERSATION: recipe.protocol.answer_tokens,
        FEEDBACK: recipe.protocol.feedback_tokens,
    }[agent]
    prompts, group = recipe.learning.prompts, recipe.learning.samples
    grpo(work, folder, turns, work["contexts"][agent], prompts, group, longest, vllm)


def grpo(
    work: Mapping[str, Any],
    folder: Path,
    turns: Turns,
    contexts: list[str],
    prompts: int,
    group: int,
    longest: int,
    vllm: bool,
    **settings: Any,
) -> None:
    tokens = 0

    def paid(completion_ids: list[list[int]], **_: Any) -> list[float]:
        nonlocal tokens
        tokens = sum(map(len, completion_ids))
        return [reward(ids) for ids in completion_ids]

    if vllm:
        settings |= {"use_vllm": True, "vllm_mode": "colocate"}
    arguments = GRPOConfig(
        output_dir=str(folder / "trl"),
        num_generations=group,
        max_completion_length=longest,
        beta=BETA,
        epsilon=CLIP,
        shuffle_dataset=False,
        **common(Sizes(**work["sizes"]), prompts * group),
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
    writer = trainer.vllm_generation if vllm else trainer.model
    writer.generate = turns.time("rollout_seconds", writer.generate)
    trainer.train()


def dpo(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """DPO on the same pairs; TRL reads and tokenises them before the first step."""
    sizes = Sizes(**work["sizes"])
    trainer, counts = dpo_trainer(work, folder)

    def figures() -> dict[str, int]:
        return {"trained": sum(counts.pop(0) for _ in range(sizes.parts))}

    trainer.add_callback(TurnsCallback(turns, figures))
    trainer.train()


def score(work: Mapping[str, Any], folder: Path, turns: Turns) -> None:
    """The reference log-probabilities of the pairs, as TRL computes them before a training."""
    sizes = Sizes(**work["sizes"])
    trainer, counts = dpo_trainer(work, folder)
    model = trainer.model if trainer.ref_model is None else trainer.ref_model
    for number, batch in enumerate(trainer.get_train_dataloader(), start=1):
        trainer.compute_ref_log_probs(model, batch)
        if number % sizes.parts == 0:
            turns.end(scored=sum(counts.pop(0) for _ in range(sizes.parts)))


def dpo_trainer(work: Mapping[str, Any], folder: Path) -> tuple[DPOTrainer, list[int]]:
    """The trainer, and the answer tokens of the batches that it has made and nobody has counted yet: the next batch is
    made before a step ends."""
    sizes = Sizes(**work["sizes"])
    contexts = spelled(work, [row[0] for row in work["pairs"]])
    chosen, rejected = ([row[i] for row in work["pairs"]] for i in (1, 2))
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        beta=DPO_BETA,
        max_length=None,
        train_sampling_strategy="sequential",
        **common(sizes, sizes.pairs),
    )
    data = Dataset.from_dict({"prompt": contexts, "chosen": chosen, "rejected": rejected})
    trainer = DPOTrainer(model=work["model"], args=arguments, train_dataset=data, peft_config=adapter(work))
    counts: list[int] = []
    collate = trainer.data_collator

    def counted(rows: list[Any]) -> Any:
        batch = collate(rows)
        counts.append(int(batch["completion_mask"].sum()))
        return batch

    trainer.data_collator = counted
    return trainer, counts


def adapter(work: Mapping[str, Any]) -> LoraConfig | None:
    """The adapter that choreo's side trains: on every linear layer but the output. None where all weights are."""
    rank = Sizes(**work["sizes"]).rank
    return LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0) if rank else None


if __name__ == "__main__":
    name, folder = sys.argv[1].removesuffix("-vllm"), Path(sys.argv[2])
    turns, vllm = Turns(), sys.argv[1].endswith("-vllm")
    work = json.loads((folder / "work.json").read_text(encoding="utf-8"))
    if name == "policy":
        policy(work, folder, turns, vllm)
    elif name in ("dpo", "score"):
        {"dpo": dpo, "score": score}[name](work, folder, turns)
    else:
        waltz(name.removeprefix("waltz-"), work, folder, turns, vllm)
