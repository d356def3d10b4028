"""What TRL's own loss code makes of a few fixed tensors, written to tests/golden/trl.json.

    python benchmarks/trl_reference.py      needs the `bench` extra; `make bench` installs it

Real GRPO, RLOO and DPO trainers are built on a throw-away model; only the forward pass and the sampling
are replaced, by the fixed logits and answers below. tests/test_trl_reference.py holds choreo to the file,
and to TRL itself wherever TRL is installed.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "golden" / "trl.json"
SEED = 20
SEQUENCES, LENGTH, VOCABULARY = 4, 5, 6
LENGTHS = (5, 2, 4, 1)
MAX_LENGTH = 7  # the constant length of Dr. GRPO, longer than any answer here
CLIP, CLIP_HIGH, KL, DPO_BETA = 0.2, 0.28, 0.3, 0.7
REWARDS = ((1.0, 0.0, 0.0), (2.0, 2.0, 2.0), (0.1, -0.3, 4.0))  # by group; the second carries no gradient


def tensors() -> dict[str, Any]:
    """logits [4, 5, 6], ids and mask [4, 5], old and reference log π [4, 5], advantages [4]; as nested lists.

    The policy moved far enough from `old` that the clip cuts on both sides for either sign of the advantage.
    """
    generator = torch.Generator().manual_seed(SEED)
    logits = torch.randn(SEQUENCES, LENGTH, VOCABULARY, generator=generator)
    ids = torch.randint(VOCABULARY, (SEQUENCES, LENGTH), generator=generator)
    logprobs = gather(logits, ids)
    old, reference = (logprobs + 0.4 * torch.randn(ids.shape, generator=generator) for _ in range(2))
    mask = (torch.arange(LENGTH) < torch.tensor(LENGTHS)[:, None]).long()
    named = {"logits": logits, "ids": ids, "mask": mask, "old": old, "reference": reference}
    return {name: value.tolist() for name, value in named.items()} | {"advantages": [1.3, -0.8, -1.1, 0.4]}


def gather(logits: Tensor, ids: Tensor) -> Tensor:
    return logits.log_softmax(-1).gather(-1, ids[..., None]).squeeze(-1)


def outputs(given: dict[str, Any]) -> dict[str, Any]:
    """TRL's losses, gradients with respect to the logits [4, 5, 6], and figures on the tensors `given`."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder) / "model")
        losses = {
            "dapo": grpo_loss(folder, given, loss_type="dapo", epsilon_high=CLIP_HIGH),
            "bnpo": grpo_loss(folder, given, loss_type="bnpo"),
            "grpo": grpo_loss(folder, given, loss_type="grpo"),
            "dr_grpo": grpo_loss(folder, given, loss_type="dr_grpo"),
            # On-policy, as k2 is meant; TRL's correction then gives k3 the gradient of the reverse KL.
            "kl": grpo_loss(folder, {**given, "old": None}, loss_type="bnpo", beta=KL, use_bias_correction_kl=True),
            "dpo": dpo_loss(folder, given),
        }
        advantages = {
            "grpo": group_advantages(folder, "GRPO", scale_rewards="group"),
            "dr_grpo": group_advantages(folder, "GRPO", scale_rewards="none"),
            "rloo": group_advantages(folder, "RLOO", normalize_advantages=False),
        }
    return {"losses": losses, "advantages": advantages}


def save_model(folder: Path) -> None:
    """The least that the trainers accept: a model and a tokenizer. Neither has a say in any number here."""
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "a": 2}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="a"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<end>").save_pretrained(folder)
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = LlamaConfig(vocab_size=len(words), pad_token_id=0, eos_token_id=1, **shape)
    LlamaForCausalLM(config).save_pretrained(folder)


def trainer(folder: str, method: str, rows: dict[str, list[str]], **settings: Any) -> Any:
    import trl
    from datasets import Dataset

    config = getattr(trl, f"{method}Config")(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        model_init_kwargs={"dtype": "float32"},
        **settings,
    )
    extra = {} if method == "DPO" else {"reward_funcs": lambda completions, **_: [0.0] * len(completions)}
    data = Dataset.from_dict(rows)
    return getattr(trl, f"{method}Trainer")(model=f"{folder}/model", args=config, train_dataset=data, **extra)


def grpo_loss(folder: str, given: dict[str, Any], **settings: Any) -> dict[str, Any]:
    made = trainer(
        folder,
        "GRPO",
        {"prompt": ["a"] * SEQUENCES},
        per_device_train_batch_size=SEQUENCES,
        num_generations=SEQUENCES,
        max_completion_length=MAX_LENGTH,
        epsilon=CLIP,
        **settings,
    )
    made.model.train()
    logits = torch.tensor(given["logits"], requires_grad=True)
    ids, mask = torch.tensor(given["ids"]), torch.tensor(given["mask"])
    made._get_per_token_logps_and_entropies = lambda *_, **__: (gather(logits, ids), torch.zeros(ids.shape), None)
    made.current_gradient_accumulation_steps = 1
    inputs = {
        "prompt_ids": torch.zeros(SEQUENCES, 1, dtype=torch.long),
        "prompt_mask": torch.ones(SEQUENCES, 1, dtype=torch.long),
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": torch.tensor(given["advantages"]),
        "ref_per_token_logps": torch.tensor(given["reference"]),
        "num_items_in_batch": mask.sum(),
    }
    if given["old"] is not None:
        inputs["old_per_token_logps"] = torch.tensor(given["old"])
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    figures = {name: values[-1] for name, values in made._metrics["train"].items() if name == "kl"}
    return {"loss": loss.item(), "gradient": logits.grad.tolist(), **figures}


def dpo_loss(folder: str, given: dict[str, Any]) -> dict[str, Any]:
    """Pairs are sequences (0, 1) and (2, 3); TRL wants all chosen answers before all rejected ones."""
    texts = {"prompt": ["a"], "chosen": ["a"], "rejected": ["a"]}
    made = trainer(folder, "DPO", texts, beta=DPO_BETA)
    made.model.train()
    order = [0, 2, 1, 3]
    logits = torch.tensor(given["logits"], requires_grad=True)
    ids, mask = torch.tensor(given["ids"]), torch.tensor(given["mask"])

    def forward(logprobs: Tensor) -> Any:
        def model(**_: Any) -> SimpleNamespace:
            zeros = torch.zeros(SEQUENCES, LENGTH)
            return SimpleNamespace(
                log_probs=(logprobs * mask)[order], entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
            )

        return model

    context = torch.zeros(SEQUENCES, 1, dtype=torch.long)  # one token, so that the shifted mask has every answer token
    inputs = {
        "input_ids": torch.cat([context, ids[order]], 1),
        "attention_mask": torch.cat([context + 1, mask[order]], 1),
        "completion_mask": torch.cat([context, mask[order]], 1),
    }
    made.ref_model = forward(torch.tensor(given["reference"]))
    loss = made.compute_loss(forward(gather(logits, ids)), inputs)
    loss.backward()
    figures = {name: made._metrics["train"][f"rewards/{name}"][-1] for name in ("margins", "accuracies")}
    return {"loss": loss.item(), "gradient": logits.grad.tolist(), **figures}


def group_advantages(folder: str, method: str, **settings: Any) -> list[float]:
    """Advantages of one token per answer, rewarded with REWARDS, flat in the order of the groups."""
    rewards = torch.tensor(REWARDS).flatten()
    made = trainer(
        folder,
        method,
        {"prompt": ["a"] * len(REWARDS)},
        per_device_train_batch_size=len(rewards),
        num_generations=len(REWARDS[0]),
        beta=0.0,
        **settings,
    )
    made.model.train()
    made.current_gradient_accumulation_steps = 1
    made._tokenize_prompts = lambda prompts: ([[2]] * len(prompts), None, {})
    one = [[2]] * len(rewards)
    made._generate_single_turn = lambda *_: (one, None) if method == "GRPO" else one
    made._calculate_rewards = lambda *_: rewards[:, None]
    return made._generate_and_score_completions([{"prompt": "a"} for _ in rewards])["advantages"].tolist()


def main() -> None:
    import trl

    given = tensors()
    golden = {"trl": trl.__version__, "torch": torch.__version__, "seed": SEED, "given": given, **outputs(given)}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
