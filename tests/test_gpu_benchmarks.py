"""benchmarks/gpu at toy size on a CPU: what is right passes, what is wrong is seen, and results have their form."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
import warm

pytestmark = pytest.mark.slow

GPU = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu"
CHECKS = {"log π", "ratio", "gradient", "resume"}

# One way to learn, in float32. The gradient is a hundredth too small, sampled log π are off, moments are lost.
BROKEN = f"""
import sys, torch
sys.path.insert(0, {str(GPU)!r})
import correct
from dataclasses import replace
from choreo.engine.learner import Learner
from choreo.engine.local import LocalEngine
correct.DTYPES, correct.WIDTHS = ("float32",), {{"narrow": 64}}
correct.WAYS = {{"adapters": correct.WAYS["adapters"]}}
divide, sample = Learner._divide, LocalEngine.sample
Learner._divide = lambda self, count: divide(self, 1.01 * count)
LocalEngine.sample = lambda *args, **options: [
    replace(one, logprobs=tuple(value - 0.01 for value in one.logprobs)) for one in sample(*args, **options)
]
torch.optim.AdamW.load_state_dict = lambda self, state: None
sys.exit(correct.main())
"""


def last(run):
    return json.loads(run.stdout.splitlines()[-1])


def on_cpu(folder: Path, name: str, *words: str):
    """A script of benchmarks/gpu, whose own processes are warm too."""
    python, file = str(warm.command(folder / "python")), str(GPU / name)
    script = f"import runpy, sys; sys.executable = {python!r}; runpy.run_path({file!r}, run_name='__main__')"
    run = warm.run(["-c", script, "--device", "cpu", *words])
    print(run.stdout)
    return run


def test_properties_hold_in_both_dtypes_on_a_cpu(tmp_path):
    run = on_cpu(tmp_path, "correct.py", "--json")
    assert run.returncode == 0, run.stderr
    found = last(run)
    assert {(row["check"], row["dtype"]) for row in found["rows"]} == {
        (check, dtype) for check in CHECKS for dtype in ("float32", "bfloat16")
    }
    assert found["failed"] == 0 and all(row["off"] <= row["allowed"] for row in found["rows"])


def test_what_is_wrong_is_seen():
    run = warm.run(["-c", BROKEN, "--device", "cpu", "--json"])
    print(run.stdout)
    assert run.returncode == 1, run.stderr
    assert {row["check"] for row in last(run)["rows"] if not row["passed"]} == {"gradient", "ratio", "resume"}


def timed(folder: Path, *words: str):
    run = on_cpu(folder, "speed.py", "--base", "toy", *words)
    assert run.returncode == 0, run.stderr
    return run


def check_timed(figures):
    assert figures["seconds"]["n"] == 2 and figures["tokens_per_second"]["median"] > 0 and figures["peak_mib"] > 0
    assert figures["operations"] > 0 and figures["share"] is None  # a CPU is no card, and has no peak of one


def test_a_whole_step_is_timed_and_the_results_say_where(tmp_path):
    out = tmp_path / "result.json"
    run = timed(tmp_path, "--work", "waltz", "--row", "choreo", "--row", "trl+vllm", "--out", str(out))
    found = json.loads(out.read_text())
    assert found["card"] is None and found["peak"] is None and found["date"] and found["versions"]["torch"]
    check_timed(found["work"]["waltz"]["choreo"])
    reason = "vLLM in TRL's process takes a card" if importlib.util.find_spec("vllm") else "vLLM is not installed"
    if not importlib.util.find_spec("trl"):
        reason = "TRL is not installed"
    assert found["work"]["waltz"]["trl+vllm"] == {"not_run": reason}
    assert "no figure of a card" in run.stdout and f"not run: {reason}" in run.stdout


def test_trl_does_the_same_work(tmp_path):
    pytest.importorskip("trl", reason="TRL comes with the `bench` extra")
    work = last(timed(tmp_path, "--work", "dpo", "--row", "choreo", "--row", "trl", "--json"))["work"]
    for rows in work.values():
        for figures in rows.values():
            check_timed(figures)
        ours, theirs = rows["choreo"], rows["trl"]
        assert theirs["tokens"] == ours["tokens"] and theirs["operations"] == ours["operations"]
        assert theirs["ratio"]["median"] > 0 and theirs["memory_ratio"] > 0


def test_choreo_bench_has_its_work_from_the_same_place(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(GPU.parent)!r}); from work import *; "
    script += "prepare(Path(sys.argv[1]), 'micro-llama', steps=1)"
    run = warm.run(["-c", script, str(tmp_path)])
    assert run.returncode == 0, run.stderr
    work = json.loads((tmp_path / "work.json").read_text())
    assert len(work["policy"]) == 3 * 24 and len(work["pairs"]) == 3 * 64  # two steps of warm-up and one that counts
    assert {agent: len(texts) for agent, texts in work["contexts"].items()} == {"conversation": 96, "feedback": 96}


@pytest.mark.parametrize(
    "words, reason",
    [
        (["speed.py", "--base", "llama-8b", "--device", "cpu"], "a CPU gets --base toy"),
        (["speed.py", "--base", "toy", "--device", "cpu", "--out", __file__], "is there already"),
        (["speed.py"], "no CUDA card"),
        (["correct.py"], "no CUDA card"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(words, reason):
    if "card" in reason and torch.cuda.is_available():
        pytest.skip("there is a card here")
    run = warm.run([str(GPU / words[0]), *words[1:]])
    assert run.returncode == 2 and reason in run.stderr and len(run.stderr.splitlines()) == 1
