"""choreo beside TRL, on the same model, prompts, lengths and hardware: `make bench`, `choreo bench --base smollm2`.

Every side of every piece of work is a process of its own. They take turns, one step each, A B A B …, so
that whatever else the machine does falls on both. One step is timed from being told to go to being done.
Printed are medians, quartiles in brackets, and ratios: tokens per second of choreo over those of TRL.

policy  a whole GRPO step: sample, reward, reference log-probabilities, advantages, one update
dpo     a whole DPO step: reference log-probabilities, one update
waltz   a whole WaltzRL step of the shipped recipe (sample c_0, f_0 and c_1, judge, reference, update both
        agents), against two GRPO trainers, one per agent, on as many samples of the same states

On micro-llama all weights are trained. On smollm2 it is LoRA, by PEFT on TRL's side, and there is no `waltz`: TRL
cannot hold a review to its grammar. Both sides compute in float32. A token counts once when it is sampled and once
when it is trained on. Sizes are in work.py.
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
import time
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import choreo

HERE = Path(__file__).resolve().parent
SIDES = {
    "policy": {"choreo": ["policy"], "trl": ["policy"]},
    "dpo": {"choreo": ["dpo"], "trl": ["dpo"]},
    "waltz": {"choreo": ["waltz"], "trl": ["waltz-conversation", "waltz-feedback"]},
}
BASES = ("micro-llama", "smollm2")  # the others of SIZES are of benchmarks/gpu
Turn = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description="Time choreo side by side with TRL on the same work.")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--base", choices=BASES, default="micro-llama", help="default: micro-llama")
    parser.add_argument("--work", choices=sorted(SIDES), action="append", help="this alone (default: all)")
    args = parser.parse_args()
    as_json = args.json
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="choreo-bench-") as folder:
        work = prepared(Path(folder), args.base)
        result: dict[str, Any] = {"schema": 1, **about(work), "work": {}}
        if not as_json:
            print(heading(result), flush=True)
        for name, sides in SIDES.items():
            if name not in (args.work or SIDES) or (name == "waltz" and not work["contexts"]):
                continue
            figures = compare(take_turns(name, sides, Path(folder), work["sizes"]["steps"]))
            result["work"][name] = figures
            if not as_json:
                print(table(name, figures, work["sizes"]), flush=True)
    result["seconds"] = time.monotonic() - began
    if as_json:
        print(json.dumps(result))
    return 0


def prepared(folder: Path, base: str, **changed: Any) -> dict[str, Any]:
    """In a process that ends, so that this one stays small and idle while the sides work. changed: of its sizes."""
    call = f"prepare(Path({str(folder)!r}), {base!r}, **{changed!r})"
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); from work import *; {call}"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=sys.stderr, env=environment())
    return json.loads((folder / "work.json").read_text(encoding="utf-8"))


def environment() -> dict[str, str]:
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "PYTHONWARNINGS": "ignore"}


# ---- taking turns -------------------------------------------------------------------------------


class Side:
    """One process. `go` lets it do one step and returns what that took."""

    def __init__(self, library: str, part: str, folder: Path):
        self.name = f"{library}, {part}"
        own = folder / f"{library}-{part}"
        own.mkdir()
        (own / "work.json").symlink_to(folder / "work.json")
        self._log = own / "log.txt"
        command = [sys.executable, str(HERE / f"{library}_side.py"), part, str(own)]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment()
            )

    def ready(self) -> None:
        """Returns when the warm-up is over."""
        self._report()

    def go(self) -> Turn:
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return self._report()

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _report(self) -> Turn:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            log = self._log.read_text(encoding="utf-8", errors="replace")
            raise SystemExit(f"bench: {self.name} ended early:\n{log[-4000:]}")
        return json.loads(line)


def take_turns(name: str, sides: dict[str, list[str]], folder: Path, steps: int) -> dict[str, list[Turn]]:
    """`steps` turns of each library. The parts of one library's step are done one after the other and added up."""
    processes: dict[str, list[Side]] = {library: [] for library in sides}
    try:
        for library, parts in sides.items():
            for part in parts:
                side = Side(library, part, folder)
                processes[library].append(side)
                side.ready()
        turns: dict[str, list[Turn]] = {library: [] for library in sides}
        for _ in range(steps):
            for library, own in processes.items():
                turns[library].append(joined([side.go() for side in own]))
        return turns
    finally:
        for own in processes.values():
            for side in own:
                side.stop()


def joined(parts: list[Turn]) -> Turn:
    """Seconds and tokens add up; of the memory peaks the highest counts, as if the parts ran one at a time."""
    names = parts[0].keys()
    return {name: (max if name.endswith("_mib") else sum)(part[name] for part in parts) for name in names}


# ---- figures ------------------------------------------------------------------------------------


def compare(turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """`figures_of` either library, then the ratios of choreo over TRL."""
    figures: dict[str, Any] = {library: figures_of(own) for library, own in turns.items()}
    return figures | ratios(turns["choreo"], turns["trl"])


def figures_of(turns: list[Turn]) -> dict[str, Any]:
    """Seconds, tokens/s and rollout tokens/s with quartiles, tokens per step, peak memory."""
    figures: dict[str, Any] = {
        "seconds": spread([t["seconds"] for t in turns]),
        "cpu_seconds": spread([t["cpu_seconds"] for t in turns]),
        "tokens": median(t["sampled"] + t["trained"] for t in turns),
        "tokens_per_second": spread(rates(turns)),
        "peak_mib": max(t["peak_mib"] for t in turns),
    }
    if all("rollout_seconds" in t for t in turns):
        figures["rollout_tokens_per_second"] = spread(rollout_rates(turns))
    if all("device_mib" in t for t in turns):
        figures["device_mib"] = max(t["device_mib"] for t in turns)
    return figures


def ratios(ours: list[Turn], theirs: list[Turn]) -> dict[str, Any]:
    """Of tokens/s, each the median over neighbouring turns, and of peak memory."""

    def each(a: list[float], b: list[float]) -> dict[str, float]:
        return spread([x / y for x, y in zip(a, b, strict=True)])

    found: dict[str, Any] = {"ratio": each(rates(ours), rates(theirs))}
    if all("rollout_seconds" in t for t in (*ours, *theirs)):
        found["rollout_ratio"] = each(rollout_rates(ours), rollout_rates(theirs))
    return found | {"memory_ratio": max(t["peak_mib"] for t in ours) / max(t["peak_mib"] for t in theirs)}


def rates(turns: list[Turn]) -> list[float]:
    return [(t["sampled"] + t["trained"]) / t["seconds"] for t in turns]


def rollout_rates(turns: list[Turn]) -> list[float]:
    return [t["sampled"] / t["rollout_seconds"] for t in turns]


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {"median": median(values), "low": low, "high": high, "n": len(values)}


def about(work: dict[str, Any]) -> dict[str, Any]:
    return {
        "versions": versions("trl", "torch", "transformers", "accelerate"),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "model": work["sizes"]["base"] + ("" if work["shipped"] else "'s shape, random weights"),
        "sizes": work["sizes"],
    }


def versions(*packages: str) -> dict[str, str]:
    """Of choreo, and of those packages that are installed."""
    there = {name for name in packages if importlib.util.find_spec(name)}
    return {"choreo": choreo.__version__} | {name: metadata.version(name) for name in packages if name in there}


def heading(result: dict[str, Any]) -> str:
    versions = "  ".join(f"{name} {version}" for name, version in result["versions"].items())
    return f"{result['model']}, {result['machine']['cores']} cores\n{versions}\n"


def table(name: str, figures: dict[str, Any], work: dict[str, Any]) -> str:
    sizes = {
        "policy": f"GRPO step: {work['prompts']} prompts × {work['group']} answers of {work['new_tokens']} tokens",
        "dpo": f"DPO step: {work['pairs']} pairs",
        "waltz": "WaltzRL step of the shipped recipe, against one GRPO step per agent",
    }
    lines = [sizes[name]]
    for library in ("choreo", "trl"):
        own = figures[library]
        cells = [
            f"{shown(own['seconds'], '.2f')} s",
            f"{own['cpu_seconds']['median']:.2f} s of processor time",
            f"{shown(own['tokens_per_second'], ',.0f')} tokens/s",
            f"{own['peak_mib']:,.0f} MiB",
        ]
        lines.append(f"  {library:8}{', '.join(cells)}")
    ratio, memory = shown(figures["ratio"], ".2f"), figures["memory_ratio"]
    lines.append(f"  ratio   {ratio} × the tokens/s, {memory:.2f} × the memory")
    if "rollout_ratio" in figures:
        rates = [shown(figures[side]["rollout_tokens_per_second"], ",.0f") for side in ("choreo", "trl")]
        ratio = shown(figures["rollout_ratio"], ".2f")
        lines.append(f"  rollout alone: choreo {rates[0]}, TRL {rates[1]} tokens/s: {ratio} ×")
    return "\n".join(lines) + "\n"


def shown(value: dict[str, float], form: str) -> str:
    return f"{value['median']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


if __name__ == "__main__":
    sys.exit(main())
