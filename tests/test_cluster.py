"""The scripts of docs/cluster.md: the batch script goes on with a run, and is queued again after exit code 75 alone."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from choreo.cli.parser import parser

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "cluster.md").read_text(encoding="utf-8")


def block(first: str) -> str:
    """The code block of the page that begins with the line `first`."""
    found = re.search(rf"^```\w+\n({re.escape(first)}\n.*?)^```$", PAGE, re.S | re.M)
    assert found, first
    return found[1]


@pytest.mark.parametrize("code", [0, 1, 75])
@pytest.mark.parametrize("begun", [False, True])
def test_the_batch_script_resumes_and_is_queued_again_after_75_alone(code, begun, tmp_path):
    """Slurm's two commands are played by scripts that note what they were given."""
    for name, ends in ("srun", code), ("scontrol", 0):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*" >>asked\nexit {ends}\n')
        (tmp_path / name).chmod(0o755)
    if begun:
        (tmp_path / "runs" / "mine").mkdir(parents=True)
        (tmp_path / "runs" / "mine" / "recipe.toml").touch()
    (tmp_path / "train.sbatch").write_text(block("#!/bin/bash"))
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    ended = subprocess.run(["bash", "train.sbatch"], cwd=tmp_path, env=environment, timeout=20)
    started, *queued = (tmp_path / "asked").read_text().splitlines()
    args = parser().parse_args(started.removeprefix("srun choreo ").split())
    assert ended.returncode == code and (args.resume is not None) is begun
    assert queued == (["scontrol requeue 17"] if code == 75 else [])


def test_the_job_ignores_75_and_fails_on_bad_input():
    job = pytest.importorskip("yaml").safe_load(block("apiVersion: batch/v1"))
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    rules = {
        tuple(rule["onExitCodes"]["values"]): rule["action"]
        for rule in job["spec"]["podFailurePolicy"]["rules"]
        if "onExitCodes" in rule
    }
    assert rules == {(75,): "Ignore", (2,): "FailJob"} and spec["restartPolicy"] == "Never"
    for words in re.findall(r"exec choreo (.*?)(?:;|$)", container["args"][0], re.M):
        parser().parse_args(words.split())
    assert subprocess.run(["sh", "-n", "-c", container["args"][0]]).returncode == 0
