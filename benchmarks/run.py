"""choreo beside TRL and CoMLRL, on the same model, prompts, lengths and hardware: `make bench`, `choreo bench`.

Every side of every piece of work is a process of its own. They take turns, one step each, A B C A B C …, so
that whatever else the machine does falls on all. One step is timed from being told to go to being done.
Printed are medians, quartiles in brackets, and ratios: tokens per second of choreo over those of a peer.

policy  a whole GRPO step: sample, reward, reference log-probabilities, advantages, one update
dpo     a whole DPO step: reference log-probabilities, one update
score   the reference log-probabilities of a DPO step alone
waltz   a whole WaltzRL step of the shipped recipe (sample c_0, f_0 and c_1, judge, reference, update both
        agents), against two GRPO trainers of TRL, one per agent, and against CoMLRL's MAGRPO of two agents, on as
        many samples of the same states
joint   a whole MAGRPO step: two agents, each a whole model, answer the same prompts, are paid together, and learn

On micro-llama all weights are trained. On smollm2 it is LoRA, by PEFT on TRL's side. There is no `waltz`, since TRL
cannot hold a review to its grammar, and no `joint`. All sides compute in float32. A token counts once when it is
sampled, once when it is trained on, and in `score` when it is scored. Sizes are in work.py. Peers that are not
installed are named and left out.

One more peer is a module, PEER_side.py, and a line in SIDES.
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
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import choreo

HERE = Path(__file__).resolve().parent
# By library, whose part is LIBRARY_side.py: of each piece of work the processes whose steps together are one step.
SIDES = {
    "choreo": {"policy": ["policy"], "dpo": ["dpo"], "score": ["score"], "waltz": ["waltz"], "joint": ["joint"]},
    "trl": {
        "policy": ["policy"],
        "dpo": ["dpo"],
        "score": ["score"],
        "waltz": ["waltz-conversation", "waltz-feedback"],
    },
    "comlrl": {"waltz": ["waltz"], "joint": ["joint"]},
}
PEERS = [library for library in SIDES if library != "choreo"]
WORK = tuple(SIDES["choreo"])
BASES = ("micro-llama", "smollm2")  # the others of SIZES are of benchmarks/gpu
ROLLOUT = "rollout_tokens_per_second"
Turn = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description="Time choreo side by side with its peers on the same work.")
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--base", choices=BASES, default="micro-llama", help="default: micro-llama")
    parser.add_argument("--work", choices=WORK, action="append", help="this alone (default: all)")
    args = parser.parse_args()
    names = [name for name in args.work or WORK if peers_of(name)]
    if not names:
        print(f"choreo: bench: not installed: {', '.join(absent())}; `make bench` installs it", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="choreo-bench-") as folder:
        work = prepared(Path(folder), args.base)
        names = [name for name in names if timed(name, work)]
        if not names:
            print(f"choreo: bench: --base {args.base} has no work {', '.join(args.work or WORK)}", file=sys.stderr)
            return 2
        result: dict[str, Any] = {"schema": 2, **about(work), "work": {}}
        if not args.json:
            print(heading(result), flush=True)
        for name in dict.fromkeys(names):
            sides = {library: SIDES[library][name] for library in ("choreo", *peers_of(name))}
            figures = compare(take_turns(name, sides, Path(folder), work["sizes"]["steps"]))
            result["work"][name] = figures
            if not args.json:
                print(table(name, figures, work["sizes"]), flush=True)
    result["seconds"] = time.monotonic() - began
    if args.json:
        print(json.dumps(result | summary(result["work"]) | limit(args.base)))
    return 0


def limit(base: str) -> dict[str, Any]:
    """What an update of choreo computes a second, beside plain matrix products on this processor (engine.py), under
    "limit"; nothing where that could not be measured, so that the rest is not lost."""
    command = [sys.executable, str(HERE / "engine.py"), "--base", base, "--rate", "--json"]
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, env=environment())
    return {"limit": json.loads(done.stdout.splitlines()[-1])["limit"]} if done.returncode == 0 else {}


def absent() -> list[str]:
    """The peers that are not installed."""
    return [peer for peer in PEERS if importlib.util.find_spec(peer) is None]


def peers_of(name: str) -> list[str]:
    """Who does this work and is installed."""
    return [peer for peer in PEERS if name in SIDES[peer] and peer not in absent()]


def timed(name: str, work: Mapping[str, Any]) -> bool:
    """Whether this work is there on this base. `joint` is of whole models."""
    return bool({"waltz": work["contexts"], "joint": not work["sizes"]["rank"]}.get(name, True))


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
    """`figures_of` every library, and with those of a peer the ratios of choreo over it."""
    ours = turns["choreo"]
    return {
        library: figures_of(own) | (ratios(ours, own) if library != "choreo" else {}) for library, own in turns.items()
    }


def summary(work: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By WORK/PEER, and WORK-rollout/PEER where that is timed: medians, and quartiles of the ratio.

    work: by name, as `compare` has it.
    """
    found = {}
    for name, figures in work.items():
        for peer, theirs in figures.items():
            for part, rate, ratio in ("", "tokens_per_second", "ratio"), ("-rollout", ROLLOUT, "rollout_ratio"):
                if ratio in theirs:
                    found[f"{name}{part}/{peer}"] = {
                        "ours": figures["choreo"][rate]["median"],
                        "peer": theirs[rate]["median"],
                        "ratio": theirs[ratio]["median"],
                        "low": theirs[ratio]["low"],
                        "high": theirs[ratio]["high"],
                        "unit": "tokens/s",
                    }
    return found


def figures_of(turns: list[Turn]) -> dict[str, Any]:
    """Seconds, tokens/s and rollout tokens/s with quartiles, tokens per step, peak memory."""
    figures: dict[str, Any] = {
        "seconds": spread([t["seconds"] for t in turns]),
        "cpu_seconds": spread([t["cpu_seconds"] for t in turns]),
        "tokens": median(map(tokens, turns)),
        "tokens_per_second": spread(rates(turns)),
        "peak_mib": max(t["peak_mib"] for t in turns),
    }
    if all("rollout_seconds" in t for t in turns):
        figures[ROLLOUT] = spread(rollout_rates(turns))
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


def tokens(turn: Turn) -> float:
    return sum(turn.get(name, 0.0) for name in ("sampled", "trained", "scored"))


def rates(turns: list[Turn]) -> list[float]:
    return [tokens(t) / t["seconds"] for t in turns]


def rollout_rates(turns: list[Turn]) -> list[float]:
    return [t["sampled"] / t["rollout_seconds"] for t in turns]


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {"median": median(values), "low": low, "high": high, "n": len(values)}


def about(work: dict[str, Any]) -> dict[str, Any]:
    return {
        "versions": versions(*PEERS, "torch", "transformers", "accelerate"),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
        "model": work["sizes"]["base"] + ("" if work["shipped"] else "'s shape, random weights"),
        "sizes": work["sizes"],
        "absent": absent(),
    }


def versions(*packages: str) -> dict[str, str]:
    """Of choreo, and of those packages that are installed."""
    there = {name for name in packages if importlib.util.find_spec(name)}
    return {"choreo": choreo.__version__} | {name: metadata.version(name) for name in packages if name in there}


def heading(result: dict[str, Any]) -> str:
    versions = "  ".join(f"{name} {version}" for name, version in result["versions"].items())
    left_out = f"not installed, and left out: {', '.join(result['absent'])}\n" if result["absent"] else ""
    return f"{result['model']}, {result['machine']['cores']} cores\n{versions}\n{left_out}"


def table(name: str, figures: dict[str, Any], work: dict[str, Any]) -> str:
    answers = f"{work['prompts']} prompts × {work['group']} answers of {work['new_tokens']} tokens"
    titles = {
        "policy": f"GRPO step: {answers}",
        "dpo": f"DPO step: {work['pairs']} pairs",
        "score": f"Reference log-probabilities: {work['pairs']} pairs",
        "waltz": "WaltzRL step of the shipped recipe, against GRPO or MAGRPO of both agents",
        "joint": f"MAGRPO step of two agents: {answers} from each",
    }
    lines = [titles[name]]
    for library, own in figures.items():
        cells = [
            f"{shown(own['seconds'], '.2f')} s",
            f"{own['cpu_seconds']['median']:.2f} s of processor time",
            f"{shown(own['tokens_per_second'], ',.0f')} tokens/s",
            *([f"{shown(own[ROLLOUT], ',.0f')} in its rollout"] if ROLLOUT in own else []),
            f"{own['peak_mib']:,.0f} MiB",
        ]
        lines.append(f"  {library:8}{', '.join(cells)}")
    for peer, theirs in figures.items():
        if peer != "choreo":
            rollout = f" ({shown(theirs['rollout_ratio'], '.2f')} in the rollout)" if "rollout_ratio" in theirs else ""
            ratio, memory = shown(theirs["ratio"], ".2f"), theirs["memory_ratio"]
            lines.append(f"  {ratio} × the tokens/s of {peer}{rollout}, {memory:.2f} × its memory")
    return "\n".join(lines) + "\n"


def shown(value: dict[str, float], form: str) -> str:
    return f"{value['median']:{form}} [{value['low']:{form}}, {value['high']:{form}}]"


if __name__ == "__main__":
    sys.exit(main())
