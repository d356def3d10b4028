"""What a step costs, by its sizes: seconds against prompts, answers of each, tokens of an answer, agents and ranks.

    python benchmarks/curves.py [--turns 5] [--out docs/results/speed-curves.svg] [--json]

Prompts, answers and tokens: rollout, scores of the reference and one update of micro-llama, all weights, on one thread,
answers of the very length. One size varies, the others are those of MIDDLE. Every turn measures each size once, so that
whatever else the machine does falls on all. Agents and ranks: steps of `choreo train`, run after run, by turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles

import torch
from engine import Batch, seconds

from choreo.report.plots import Line, lines
from choreo.report.svg import standalone

BASE = "micro-llama"
MIDDLE = {"prompts": 12, "answers": 4, "tokens": 32}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STEPS, FIRST = 8, 2  # of a training that is timed, and how many of them do not count
TRAININGS = {  # recipe, threads of each rank, ranks
    "one agent, one thread": ("single-agent", 1, 1),
    "two agents, one thread": ("waltz", 1, 1),
    "two agents, two threads": ("waltz", 2, 1),
    "two agents, two ranks of one thread": ("waltz", 1, 2),
}
Found = dict[str, float]


def spread(times: list[float]) -> Found:
    """Seconds: median and quartiles."""
    low, _, high = quantiles(times, n=4, method="inclusive")
    return {"seconds": median(times), "low": low, "high": high}


def curves(turns: int) -> dict[str, list[Found]]:
    """For each size the seconds of a step at every factor of its middle."""
    made = {
        (name, factor): Batch(BASE, *(MIDDLE | {name: round(factor * middle)}).values(), ends=False)
        for name, middle in MIDDLE.items()
        for factor in FACTORS
    }

    def step(batch: Batch) -> None:
        batch.rollout()
        batch.score()
        batch.update()

    times: dict[tuple[str, float], list[float]] = {key: [] for key in made}
    for batch in made.values():
        step(batch)
    for _ in range(turns):
        for key, batch in made.items():
            times[key].append(seconds(lambda batch=batch: step(batch)))
    return {
        name: [{"size": factor * MIDDLE[name], **spread(times[name, factor])} for factor in FACTORS] for name in MIDDLE
    }


def training(recipe: str, threads: int, ranks: int) -> list[float]:
    """The seconds of each step of a short training, both agents learning from the first one on."""
    with tempfile.TemporaryDirectory(prefix="choreo-curves-") as folder:
        run = Path(folder) / "run"
        sets = [f"learning.steps={STEPS}", "stages.stage1_share=0", "world.heldout_prompts=3"]
        words = [word for one in sets for word in ("--set", one)]
        command = [sys.executable, "-m", "choreo.cli", "train", recipe, "--run", str(run), *words]
        command += ["--processes", str(ranks)] if ranks > 1 else []
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}:\n{done.stderr[-2000:]}")
        rows = map(json.loads, (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        return [row["seconds"] for row in rows][FIRST:]


def trainings(turns: int) -> dict[str, Found]:
    times: dict[str, list[float]] = {name: [] for name in TRAININGS}
    for _ in range(turns):
        for name, how in TRAININGS.items():
            times[name] += training(*how)
    return {name: spread(found) for name, found in times.items()}


def drawn(found: dict[str, list[Found]]) -> str:
    series = [
        Line(f"{name} ({MIDDLE[name]})", FACTORS, *([row[k] for row in rows] for k in ("seconds", "low", "high")))
        for name, rows in found.items()
    ]
    return standalone(lines(series, "Seconds of a step", "times the number in brackets"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5, help="default: 5; trainings take half of them")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the curves are drawn, as SVG")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = {"steps": curves(given.turns), "trainings": trainings(max(2, given.turns // 2))}
    if given.out:
        given.out.write_text(drawn(found["steps"]), encoding="utf-8")
    if given.json:
        print(json.dumps(found))
        return 0
    for name, rows in found["steps"].items():
        print(f"{name:8}", "  ".join(f"{row['size']:g}: {row['seconds']:.3f} s" for row in rows))
    for name, row in found["trainings"].items():
        print(f"{name}: {row['seconds']:.2f} s a step [{row['low']:.2f}, {row['high']:.2f}]")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
