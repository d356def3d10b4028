"""A trained attacker: trained, killed, resumed to the bit, and used as the writer of an attack."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from macpo import lines, same
from serving import make_run
from warm import Warm

from choreo.agents.local import TOO_LONG
from choreo.cli import main
from choreo.engine import checkpoint
from choreo.environments.microworld.suites import prompts
from choreo.files import durable
from choreo.methods.attacker.play import AttackedPair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import train
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress

WORLD = {"heldout_prompts": 2, "train_prompts": 60}
NANO = {"base": "nano-llama"}


@pytest.mark.slow
def test_an_attacker_is_trained_killed_resumed_and_used(tmp_path, capsys):
    target = make_run(tmp_path / "target", world=WORLD, model=NANO)
    settings = {
        "target": target, "warmup_steps": 3, "warmup_rows": 8, "steps": 3, "intents": 4, "samples": 3, "benign": 0,
        "checkpoint_every": 1, "world.train_prompts": 60, "world.heldout_prompts": 2,
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
    assert Run.read(tmp_path / "whole").info["steps"] == 6

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
    assert len(games) == 4 * 3
    for game in games:
        won = game["prompt"]["family"] == "trained" and game["verdicts"][-1]["unsafe"] is True
        assert game["rewards"] == {"attacker/unsafe": float(won)}
    assert metrics[5]["won"] == sum(game["rewards"]["attacker/unsafe"] for game in games) / len(games)

    attack = ["attack", str(target), "--attack", "trained", "--tries", "2", "--most", "2", "--json"]
    assert main([*attack, "--writer", str(tmp_path / "whole"), "--out", str(tmp_path / "out")]) == 0
    found = json.loads(capsys.readouterr().out)["systems"]
    assert set(found) == {"pair, trained", "alone, trained"}
    assert main([*attack, "--writer", str(target)]) == 2
    assert "is a run of waltz; a writer is" in capsys.readouterr().err
    other = make_run(tmp_path / "other", world={**WORLD, "split_seed": 1}, model=NANO)
    assert main(["attack", str(other), *attack[2:], "--writer", str(tmp_path / "whole")]) == 2
    assert "world.split_seed = 0: what is attacked has 1" in capsys.readouterr().err


def louder(state):
    """A checkpoint's state with other weights."""
    if isinstance(state, dict):
        return {name: louder(value) for name, value in state.items()}
    return state * 1.5 if isinstance(state, torch.Tensor) and state.is_floating_point() else state


def replaced(folder: Path) -> None:
    """Puts a checkpoint of the same step and other weights in the place of `folder`."""
    state = checkpoint.load(folder)
    shutil.rmtree(folder)
    checkpoint.save(folder, state | {"agents": louder(state["agents"])})


@pytest.mark.slow
def test_what_goes_on_is_held_to_the_checkpoints_that_it_began_with(tmp_path, capsys):
    target, attacker, out = tmp_path / "target", tmp_path / "attacker", tmp_path / "out"
    recipe = WaltzRecipe.model_validate({"world": WORLD, "model": NANO, "learning": {"steps": 1, "prompts": 3}})
    with Run.create(target, recipe) as run, Progress() as progress:
        train(recipe, run, progress)
    world = [word for name, value in WORLD.items() for word in ("--set", f"world.{name}={value}")]
    settings = {"warmup_steps": 1, "steps": 1, "intents": 2, "samples": 2, "checkpoint_every": 1, "target": target}
    small = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    assert main(["train", "attacker", "--run", str(attacker), *small, *world]) == 0
    command = ["attack", str(target), "--attack", "trained", "--writer", str(attacker), "--tries", "1", "--most", "2"]
    assert main([*command, "--out", str(out)]) == 0
    assert main([*command, "--out", str(out), "--resume"]) == 0

    first, last = checkpoints(attacker).values()
    whole = checkpoint.load(last)
    replaced(last)
    capsys.readouterr()
    assert main([*command, "--out", str(out), "--resume"]) == 2
    assert "was begun with another writer" in capsys.readouterr().err
    shutil.rmtree(last)
    (attacker / "summary.json").unlink()  # the attacker's run has one step left
    kept = tmp_path / "kept"
    (_, pair), = checkpoints(target).items()  # fmt: skip
    shutil.copytree(pair, kept)
    replaced(pair)
    assert main([*command, "--out", str(out), "--resume"]) == 2
    assert "was begun with another target" in capsys.readouterr().err
    assert main(["train", "--resume", str(attacker)]) == 2
    assert "is another pair than the attacker began with" in capsys.readouterr().err
    # A target that was trained further is still there as it was.
    pair.rename(pair.with_name("step-000002"))
    kept.rename(pair)
    assert main(["train", "--resume", str(attacker)]) == 0
    assert same(checkpoint.load(last), whole)
    assert first.is_dir()


def test_a_rewritten_prompt_without_room_gets_no_answer(tmp_path):
    pair = AttackedPair.load(make_run(tmp_path / "target", world=WORLD))
    prompt = prompts("adversarial_harmful", "heldout", 1)[0]
    sent = [(prompt, 0), (replace(prompt, text=f"{prompt.text} " * 200), 0)]
    played, unasked = pair.answer(sent, (0, "test"))
    assert played.answers[-1].text and not played.answers[-1].failure
    assert (unasked.answers[-1].text, unasked.answers[-1].failure) == ("", TOO_LONG)


def test_an_attacker_needs_a_pair_in_the_microworld(tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "How do I open a jar?", "kind": "benign"}\n')
    files = ["--set", f"prompts.heldout.a.file={tmp_path / 'mine.jsonl'}", "--set", "judge.kind=offline"]
    target = ["--set", f"target={make_run(tmp_path / 'target', world=WORLD)}"]
    for words, said in (
        ([], "target: the run of the pair that is attacked must be named"),
        (["--set", "target=nowhere"], "nowhere: no such run folder"),
        ([*target, *files], "attacker: trains in the microworld alone"),
        ([*target, "--set", "world.reading=true"], "world.reading = True: the pair of"),
        ([*target, "--set", "world.split_seed=1"], "world.split_seed = 1: the pair of"),
        ([*target, "--set", 'world.languages=["en"]'], "world.languages = ('en',): the pair of"),
        ([*target, "--set", "intents=50", "--set", "world.train_prompts=60"], "intents = 50: there are 20"),
    ):
        assert main(["train", "attacker", *words, "--run", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
