"""A WaltzRL step, a GRPO step and a DPO update on a card, by choreo and by TRL: tokens/s, share of peak, peak memory.

    python benchmarks/gpu/speed.py --base llama-1b --out llama-1b.json
    python benchmarks/gpu/speed.py --base toy --device cpu        a look at whether it runs, in a minute

The work and the sides are those of `choreo bench` (../work.py, ../choreo_side.py, ../trl_side.py), on a Llama with
random weights: bfloat16, LoRA on every linear layer. Unlike there, each side has the card to itself, one after the
other, since two models and two caches need not fit. What TRL or vLLM is missing for is named in its row.

A token counts once when it is sampled and once when it is trained on; one that a review's grammar forced counts not at
all. `share` is of the card's peak: the operations that the work needs (choreo/experiment/costs.py, nothing computed
twice) over the step's time and the peak rate. That is the measured rate of a product of large square matrices, or
`--peak`. `peak_mib` is the most that tensors of a process took; `device_mib` what was taken of the card after a step,
with what PyTorch and vLLM keep for later.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import run  # noqa: E402
from run import Turn  # noqa: E402
from work import SIZES, Sizes, overrides  # noqa: E402

BASES = tuple(name for name, sizes in SIZES.items() if sizes.shape)
# By work and row: the processes whose steps are one step.
ROWS = {
    "waltz": {
        "choreo": ["waltz"],
        "trl": ["waltz-conversation", "waltz-feedback"],
        "trl+vllm": ["waltz-conversation-vllm", "waltz-feedback-vllm"],
    },
    "policy": {"choreo": ["policy"], "trl": ["policy"], "trl+vllm": ["policy-vllm"]},
    "dpo": {"choreo": ["dpo"], "trl": ["dpo"]},
}
TITLES = {
    "waltz": "WaltzRL step, against one GRPO step per agent",
    "policy": "GRPO step",
    "dpo": "DPO update, with log-probabilities of the reference",
}
LARGE = 8192  # rows and width of the product that gives a card's peak
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl", "vllm")


def main() -> int:
    parser = argparse.ArgumentParser(description="Time choreo and TRL on a card, on a Llama with random weights.")
    parser.add_argument("--base", choices=BASES, default="llama-1b", help="default: llama-1b")
    parser.add_argument("--work", choices=[*ROWS], action="append", help="this alone (default: all)")
    parser.add_argument("--row", choices=[*ROWS["waltz"]], action="append", help="this alone (default: all)")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for --base toy (default: cuda)"
    )
    parser.add_argument(
        "--peak", type=float, metavar="X", help="of the card, in 10^12 operations/s (default: measured)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="a new file for the results, as JSON")
    parser.add_argument("--json", action="store_true", help="print the results as one JSON object, as the last line")
    args = parser.parse_args()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # TRL would spread its work over all that it sees
    if refusal := refused(args):
        print(f"speed.py: {refusal}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="choreo-gpu-") as folder:
        result = measure(args, Path(folder))
    if args.out:
        with args.out.open("x", encoding="utf-8") as file:
            file.write(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result) if args.json else table(result))
    return 1 if any("failed" in row for rows in result["work"].values() for row in rows.values()) else 0


def refused(args: argparse.Namespace) -> str:
    import torch

    if args.device == "cpu" and args.base != "toy":
        return f"{args.base} is for a card; a CPU gets --base toy"
    if args.device == "cuda" and not torch.cuda.is_available():
        return "PyTorch sees no CUDA card here; --base toy --device cpu runs without one"
    if args.peak is not None and not args.peak > 0:
        return "--peak must be above 0"
    if args.out and (args.out.exists() or not args.out.parent.is_dir()):
        return f"{args.out}: {'is there already; name another file' if args.out.exists() else 'no such folder'}"
    return ""


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything that was asked for; this process touches the card only when all others are done."""
    work = run.prepared(folder, args.base, device=args.device)
    began = datetime.now(UTC)
    turns = {name: turns_of(name, folder, args, work) for name in ROWS if name in (args.work or ROWS)}
    dtype = work["sizes"]["dtype"]
    peak = args.peak * 1e12 if args.peak else product(dtype) if args.device == "cuda" else None
    return {
        "schema": 1,
        "date": began.isoformat(timespec="seconds"),
        **machine(args.device),
        "versions": run.versions(*PACKAGES),
        "base": f"{args.base}'s shape, random weights",
        "sizes": work["sizes"],
        "peak": {"flops": peak, "measured": not args.peak, "dtype": dtype} if peak else None,
        "work": {name: compared(name, rows, work, peak) for name, rows in turns.items()},
    }


def machine(device: str) -> dict[str, Any]:
    """card: its name, memory and driver; None on a CPU."""
    import torch

    found: dict[str, Any] = {"system": platform.platform(), "card": None}
    if device == "cpu":
        return found
    properties = torch.cuda.get_device_properties(0)
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "not known"
    memory, capability = properties.total_memory / 2**20, f"{properties.major}.{properties.minor}"
    card = {"name": properties.name, "memory_mib": memory, "capability": capability}
    return found | {"card": card | {"driver": driver, "cuda": torch.version.cuda}}


def product(dtype: str) -> float:
    """FLOP/s of the card at a product of large matrices."""
    from choreo.experiment.machine import product_rate

    return product_rate(LARGE, LARGE, dtype, device="cuda")


# ---- taking turns -------------------------------------------------------------------------------


def turns_of(name: str, folder: Path, args: argparse.Namespace, work: dict[str, Any]) -> dict[str, Any]:
    """By row: its turns, or why there are none, as {"not_run": reason} or {"failed": reason}."""
    found: dict[str, Any] = {}
    for row, parts in ROWS[name].items():
        if args.row and row not in args.row:
            continue
        if reason := missing(row, args.device):
            found[row] = {"not_run": reason}
            continue
        print(f"speed.py: {name}, {row}", file=sys.stderr, flush=True)
        try:
            found[row] = alone(name, row.partition("+")[0], parts, folder, work["sizes"]["steps"])
        except SystemExit as ended:
            print(ended, file=sys.stderr, flush=True)
            found[row] = {"failed": str(ended).strip().splitlines()[-1]}
    return found


def missing(row: str, device: str) -> str:
    """What a row needs and is not here, in words."""
    for library, name in (("trl", "TRL"), ("vllm", "vLLM")):
        if library in row and importlib.util.find_spec(library) is None:
            return f"{name} is not installed"
    return "vLLM in TRL's process takes a card" if "vllm" in row and device == "cpu" else ""


def alone(name: str, library: str, parts: list[str], folder: Path, steps: int) -> list[Turn]:
    """The turns of a library whose processes run one after the other."""
    each = [run.take_turns(name, {library: [part]}, folder, steps)[library] for part in parts]
    return [run.joined(list(turn)) for turn in zip(*each, strict=True)]


# ---- figures ------------------------------------------------------------------------------------


def compared(name: str, rows: dict[str, Any], work: dict[str, Any], peak: float | None) -> dict[str, Any]:
    """By row the figures of `run.figures_of`, operations of a step and their share of the peak, where that is known,
    and, of what is not choreo, the ratios of choreo over it."""
    found: dict[str, Any] = {}
    ours = rows.get("choreo")
    for row, turns in rows.items():
        if isinstance(turns, dict):
            found[row] = turns
            continue
        figures = run.figures_of(turns)
        needed = needs(name, row, work, turns)
        figures |= {"operations": needed, "share": needed / figures["seconds"]["median"] / peak if peak else None}
        found[row] = figures | (run.ratios(ours, turns) if row != "choreo" and isinstance(ours, list) else {})
    return found


def needs(name: str, row: str, work: dict[str, Any], turns: list[Turn]) -> float:
    """Operations (FLOP) of a step on average, nothing computed twice."""
    from choreo import config
    from choreo.config.common import Weights
    from choreo.experiment.costs import operations
    from choreo.experiment.planning import Site, plan
    from choreo.experiment.sizing import Model, shape
    from choreo.methods.passes import Pass
    from choreo.models.load import load_chat
    from choreo.types import CONVERSATION, FEEDBACK

    sizes = Sizes(**work["sizes"])
    recipe = config.load("waltz", [*overrides(work["model"], sizes), "model.recompute=false"])
    learning, protocol = recipe.learning, recipe.protocol
    if name == "waltz" and row == "choreo":
        limits = protocol.limits
        most = limits.answer_tokens + limits.rounds * (limits.answer_tokens + limits.feedback_tokens)
        written = mean(turn["written"] for turn in turns) / (learning.prompts * learning.samples * most)
        return plan(recipe, Site(memory=2.0**60, written=written))["cost"]["operations"] / learning.steps
    chat, how = load_chat(work["model"]), Weights(**sizes.weights() | {"recompute": False})
    one = shape(Model.read(work["model"], how), how)

    def length(texts: list[str]) -> float:
        return mean(len(chat.encode(text)) for text in texts)

    def grpo(rows: int, distinct: int, context: float, new: float) -> list[Pass]:
        more = (rows, context, new, 1.0)
        return [Pass("", "sample", *more, distinct), Pass("", "score", *more), Pass("", "learn", *more)]

    def state(texts: list[str]) -> float:
        return mean(len(chat.tokenizer(text)["input_ids"]) for text in texts)

    if name == "policy":
        context = len(chat.answer_context(())) + length(work["policy"])
        passes = grpo(sizes.prompts * sizes.group, sizes.prompts, context, sizes.new_tokens)
    elif name == "dpo":
        context = len(chat.answer_context(())) + length([pair[0] for pair in work["pairs"]])
        new = 1 + mean([length([pair[i] for pair in work["pairs"]]) for i in (1, 2)])  # and the end of the answer
        more = (2 * sizes.pairs, context, new, 1.0)
        passes = [Pass("", "score", *more), Pass("", "learn", *more)]
    else:  # one GRPO step per agent, whose answers have about the same share of their most tokens
        lengths = {CONVERSATION: protocol.answer_tokens, FEEDBACK: protocol.feedback_tokens}
        rows = learning.prompts * learning.samples
        written = mean(turn["sampled"] for turn in turns) / (rows * sum(lengths.values()))
        passes = [
            one_pass
            for agent, most in lengths.items()
            for one_pass in grpo(rows, learning.prompts, state(work["contexts"][agent]), most * written)
        ]
    return sum(operations(one_pass, one) for one_pass in passes)


def table(result: dict[str, Any]) -> str:
    card = result["card"]
    place = f"{card['name']}, driver {card['driver']}, CUDA {card['cuda']}" if card else "a CPU: no figure of a card"
    versions = "  ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [f"{result['base']}, {result['sizes']['dtype']}, on {place}, {result['date']}", versions]
    if peak := result["peak"]:
        source = "measured" if peak["measured"] else "as said"
        lines.append(f"peak: {peak['flops'] / 1e12:.3g} · 10^12 operations/s, {source}")
    for name, rows in result["work"].items():
        lines += ["", TITLES[name]]
        for row, figures in rows.items():
            lines.append(f"  {row:10}{line(figures)}")
    return "\n".join(lines)


def line(figures: dict[str, Any]) -> str:
    for state, words in (("not_run", "not run"), ("failed", "FAILED")):
        if state in figures:
            return f"{words}: {figures[state]}"
    cells = [
        f"{run.shown(figures['seconds'], '.2f')} s",
        f"{run.shown(figures['tokens_per_second'], ',.0f')} tokens/s",
        f"{figures['peak_mib']:,.0f} MiB",
    ]
    if figures["share"] is not None:
        cells.append(f"{figures['share']:.1%} of the peak")
    if "rollout_tokens_per_second" in figures:
        cells.append(f"rollout alone {run.shown(figures['rollout_tokens_per_second'], ',.0f')} tokens/s")
    if "device_mib" in figures:
        cells.append(f"{figures['device_mib']:,.0f} MiB of the card")
    if "ratio" in figures:
        cells.append(
            f"choreo {run.shown(figures['ratio'], '.2f')} × its tokens/s, {figures['memory_ratio']:.2f} × its MiB"
        )
    return ", ".join(cells)


if __name__ == "__main__":
    sys.exit(main())
