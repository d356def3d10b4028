"""Several ranks train as one process does, to the same episodes, and survive the death of one of them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import warm
from test_trainer import episodes, lines, small

from choreo import config
from choreo.config.track import Track
from choreo.engine import checkpoint
from choreo.files import durable
from choreo.methods.waltz.trainer import train
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run, is_finished
from choreo.runs.progress import Progress

DOCS = Path(__file__).resolve().parents[1] / "docs"
STEPS = 8
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


STARTER = "import sys; sys.executable = sys.argv.pop(1); from choreo.cli import main; sys.exit(main())"


def in_ranks(*words: object, ranks: int = 2, python: Path | None = None) -> subprocess.Popen[str]:
    """`choreo train WORDS` in ranks. python: what starts each, for instance `warm.command`, in place of this Python."""
    start = ["-c", STARTER, str(python)] if python else ["-m", "choreo"]
    command = [sys.executable, *start, "train", *map(str, words), "--processes", str(ranks)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=ENVIRONMENT, text=True, **pipes)


def until_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600  # of a busy machine
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < step:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)


def ids(run: Path) -> list:
    rows = [json.loads(line) for text in episodes(run).values() for line in text.splitlines()]
    return [[turn["ids"] for turn in (*row["answers"], *row["reviews"])] for row in rows]


def test_two_ranks_are_one_process_though_one_is_killed_and_all_are_stopped(tmp_path):
    recipe, whole, run = small(steps=STEPS), tmp_path / "whole", tmp_path / "run"
    small_base = recipe.model.model_copy(update={"base": "nano-llama"})
    recipe = recipe.model_copy(update={"track": Track(to=("tensorboard",)), "model": small_base})  # tracked by rank 0
    with Run.create(whole, recipe) as one, Progress() as progress:
        train(recipe, one, progress)
    durable.write_text(tmp_path / "recipe.toml", config.to_toml(recipe))

    python = warm.command(tmp_path / "python")  # three seconds less for each rank
    process = in_ranks(tmp_path / "recipe.toml", "--run", run, python=python)
    until_step(run, 3, process)
    _, second = map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
    os.kill(second, signal.SIGKILL)
    out, said = process.communicate(timeout=600)
    assert process.returncode == 1, (out, said)
    assert f"rank 1 ended by signal 9; choreo train --resume {run} goes on" in said
    assert 2 <= max(checkpoints(run)) < STEPS and not is_finished(run)

    process = in_ranks("--resume", run, ranks=3, python=python)
    until_step(run, 5, process)
    process.send_signal(signal.SIGTERM)  # as Slurm and Kubernetes; Ctrl-C goes the same way (test_runs.py)
    out, said = process.communicate(timeout=600)
    assert process.returncode == 75 and said.count("terminated") == 1 and f"--resume {run}" in said, (out, said)
    assert max(checkpoints(run)) == len(lines(run)) < STEPS  # the step in hand was finished and saved

    process = in_ranks("--resume", run, "--json", python=python)
    out, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert json.loads(out)["systems"].keys() == {"base", "collaboration-untrained", "waltz"}  # said once

    assert ids(run) == ids(whole)
    ours, theirs = (checkpoint.load(checkpoints(path)[STEPS])["agents"] for path in (run, whole))
    for agent in theirs:
        pairs = [
            (ours[agent]["agent"]["weights"][name], value) for name, value in theirs[agent]["agent"]["weights"].items()
        ]
        apart, moved = (
            torch.cat([one.flatten() for one in side]) for side in zip(*((a - b, b) for a, b in pairs), strict=True)
        )
        assert apart.norm() < 1e-3 * moved.norm()


@pytest.mark.slow
def test_what_cannot_be_is_said_once(tmp_path):
    durable.write_text(tmp_path / "recipe.toml", 'method = "waltz"\n[model]\nbase = "nothing"\n')
    process = in_ranks(tmp_path / "recipe.toml", "--run", tmp_path / "run")
    _, said = process.communicate(timeout=600)
    assert process.returncode == 2 and said.count("choreo: ") == 1 and "nothing" in said, said
    assert not (tmp_path / "run").exists()


def test_torchrun_reads_the_documented_commands():
    """Its parser takes abbreviations of its own options from what stands behind the script, such as --run."""
    from torch.distributed.run import parse_args

    found = []
    for page in ("cluster.md", "your-model.md", "scale.md"):
        text = (
            (DOCS / page).read_text(encoding="utf-8").replace("\\\n", " ").replace("torchrun …", "torchrun --nnodes 4")
        )
        found += re.findall(r"torchrun (--[^\n`#]* choreo train [^\n`#]*)", text)
    assert len(found) == 3
    for line in found:
        read = parse_args(shlex.split(line))
        assert read.module and read.training_script == "choreo"
        assert read.training_script_args == ["train", "mine.toml", "--run", "runs/mine"]
