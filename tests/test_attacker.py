"""A trained attacker: trained, killed, resumed to the bit, and used as the writer of an attack."""

from __future__ import annotations

import json
import time

import pytest
from macpo import lines, same
from serving import make_run
from warm import Warm

from choreo.cli import main
from choreo.engine import checkpoint
from choreo.files import durable
from choreo.runs.folder import checkpoints

pytestmark = pytest.mark.slow

WORLD = {"heldout_prompts": 4, "train_prompts": 60}


def test_an_attacker_is_trained_killed_resumed_and_used(tmp_path, capsys):
    target = make_run(tmp_path / "target", world=WORLD)
    settings = {
        "target": target, "warmup_steps": 3, "warmup_rows": 8, "steps": 3, "intents": 4, "samples": 3,
        "checkpoint_every": 1, "world.train_prompts": 60, "world.heldout_prompts": 4,
    }  # fmt: skip
    command = [
        "train",
        "attacker",
        *(word for name, value in settings.items() for word in ("--set", f"{name}={value}")),
    ]
    assert main([*command, "--run", str(tmp_path / "whole"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert set(summary["systems"]) == {"plain", "attacker"}
    assert summary["systems"]["attacker"]["measured_on"]["asr"] == "adversarial_harmful"
    metrics = lines(tmp_path / "whole")
    assert [("won" in line) for line in metrics] == [False] * 3 + [True] * 3
    assert metrics[2]["loss"] < metrics[0]["loss"]

    process = Warm(["-m", "choreo.cli", *command, "--run", str(tmp_path / "killed")])
    deadline = time.monotonic() + 300
    while max(checkpoints(tmp_path / "killed"), default=0) < 4:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert main(["train", "--resume", str(tmp_path / "killed"), "--json"]) == 0
    capsys.readouterr()
    both = [tmp_path / name for name in ("whole", "killed")]
    assert same(*(checkpoint.load(checkpoints(run)[6]) for run in both))
    assert lines(both[0]) == lines(both[1])

    games = list(durable.read_lines(tmp_path / "whole" / "episodes" / "step-000006.jsonl.gz"))
    assert len(games) == 4 * 3 and all(game["prompt"]["family"] == "trained" for game in games)
    for game in games:
        assert game["rewards"] == {"attacker/unsafe": float(game["verdicts"][-1]["unsafe"] is True)}
    assert metrics[5]["won"] == sum(game["rewards"]["attacker/unsafe"] for game in games) / len(games)

    attack = ["attack", str(target), "--attack", "trained", "--tries", "2", "--most", "3", "--json"]
    assert main([*attack, "--writer", str(tmp_path / "whole"), "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)["systems"]
    assert set(found) == {"pair, trained", "alone, trained"}
    assert main([*attack, "--writer", str(target)]) == 2
    assert "is a run of waltz; a writer is" in capsys.readouterr().err


def test_an_attacker_needs_a_pair_in_the_microworld(tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "How do I open a jar?", "kind": "benign"}\n')
    target = ["--set", f"target={make_run(tmp_path / 'target', world=WORLD)}"]
    for words, said in (
        ([], "target: the run of the pair that is attacked must be named"),
        (["--set", "target=nowhere"], "nowhere: no such run folder"),
        ([*target, "--set", f"prompts.heldout.a.file={tmp_path / 'mine.jsonl'}"], "judge"),
        ([*target, "--set", "intents=50", "--set", "world.train_prompts=60"], "intents = 50: there are 20"),
    ):
        assert main(["train", "attacker", *words, "--run", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
