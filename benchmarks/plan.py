"""What `choreo plan` foresees of tiny recipes, beside what they take here.

    OMP_NUM_THREADS=1 python benchmarks/plan.py [--json]

The machine's constants are measured first, as by `choreo bench machine`, on the shipped base of width 128 alone. Every
recipe then trains a few steps, with three seeds; the first step of each does not count. Time is that of the processor
on one thread, so that other programs disturb little. `planned` is with turns of the length that they had, `at most`
with the longest turns that the recipe allows, which is what `choreo plan` says unless it is told.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import choreo
from choreo import api, config
from choreo.experiment import machine

SEEDS = (0, 1, 2)
SMALL = (
    "learning.steps=5",
    "learning.prompts=16",
    "stages.stage1_share=0",
    "world.train_prompts=300",
    "world.heldout_prompts=1",
)
RECIPES = {
    "waltz, adapters, width 128": (),
    "waltz, whole models, width 128": ('model.train="full"',),
    "waltz, adapters, width 32": ('model.base="nano-llama"',),
    "single-agent, width 128": ("RECIPE=single-agent",),
    "waltz, adapters, width 512": ('model.base="WIDE"', "learning.prompts=4", "learning.steps=3"),
}


def wide(folder: Path) -> Path:
    """A Llama of 8 layers of width 512 (25M weights in them), at random, with the tokenizer of the shipped base."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from choreo.models.resolve import base_folder

    shipped = base_folder(machine.BASE)
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(shipped)
    config.update({"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "head_dim": 64})
    config.update({"num_attention_heads": 8, "num_key_value_heads": 8})
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(shipped).save_pretrained(folder)
    return folder


class Watch(choreo.Callback):
    """Seconds of the processor of every step, and the share of the most tokens that its turns had."""

    def __init__(self, recipe: Any):
        self.recipe, self.began, self.seconds = recipe, 0.0, list[float]()
        self.written: list[float] = []

    def on_progress(self, done: int, figures: Mapping[str, float]) -> None:
        self.began = time.process_time()

    def on_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        self.seconds.append(time.process_time() - self.began)

    def on_episodes(self, step: int, episodes: Sequence[Any], rewards: Sequence[Any]) -> None:
        limits = self.recipe.protocol.limits
        most = limits.answer_tokens + limits.rounds * (limits.answer_tokens + limits.feedback_tokens)
        tokens = sum(len(turn.ids) for game in episodes for turn in (*game.answers, *game.reviews))
        self.written.append(tokens / (len(episodes) * most))


def trial(settings: Sequence[str], seed: int, constants: Path, folder: Path) -> dict[str, float]:
    """Seconds a step, measured and planned."""
    name = next((one.removeprefix("RECIPE=") for one in settings if one.startswith("RECIPE=")), "waltz")
    settings = [*SMALL, *(one for one in settings if not one.startswith("RECIPE=")), f"seed={seed}"]
    recipe = config.load(name, settings)
    watch = Watch(recipe)
    api.train(recipe, folder, [watch])
    steps = recipe.learning.steps
    written = sum(watch.written[1:]) / (steps - 1)

    def planned(share: float) -> float:
        found = api.plan(recipe, machine=constants, written=share)
        return float(sum(found["cost"]["seconds"].values())) / steps

    return {
        "measured": sum(watch.seconds[1:]) / (steps - 1),
        "planned": planned(written),
        "at most": planned(1.0),
        "written": written,
    }


def main() -> int:
    if torch.get_num_threads() != 1:
        print("plan.py: set OMP_NUM_THREADS=1: time is that of one thread", file=sys.stderr)
        return 2
    found: dict[str, Any] = {"recipes": {}}
    with tempfile.TemporaryDirectory() as place:
        constants = Path(place, "machine.json")
        found["machine"] = machine.measure_machine(time.process_time)
        machine.write(found["machine"], constants)
        print(machine.tell(found["machine"]), file=sys.stderr)
        base = wide(Path(place, "wide"))
        for number, (name, words) in enumerate(RECIPES.items()):
            settings = [one.replace("WIDE", str(base)) for one in words]
            rows = [trial(settings, seed, constants, Path(place, f"{number}-{seed}")) for seed in SEEDS]
            found["recipes"][name] = rows
            middle = {key: median(row[key] for row in rows) for key in rows[0]}
            ratios = sorted(row["planned"] / row["measured"] for row in rows)
            print(
                f"{name}: {middle['measured']:.2f} s a step measured, {middle['planned']:.2f} planned "
                f"({ratios[0]:.2f} to {ratios[-1]:.2f} times), {middle['at most']:.2f} at most; "
                f"turns of {middle['written']:.0%} of their most tokens",
                file=sys.stderr,
            )
    if "--json" in sys.argv:
        print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
