"""The commands: exit codes, one clear line for bad input, and what train does with a run folder.

The trainer is scripted here: what a command makes of it is the subject, not training.
"""

import json
import os
import shutil
import signal
import sys
import types

import pytest

from choreo import config
from choreo.cli import main
from choreo.errors import Interrupted
from choreo.runs.folder import Run


def estimate(value):
    return {"value": value, "n": 100, "low": value - 0.01, "high": value + 0.01, "undetermined": 0}


@pytest.fixture
def trainer(monkeypatch):
    """A trainer of four steps with a checkpoint after each, which stops as a real one does when asked to."""
    script = types.SimpleNamespace(signal_at=0, seen=[])

    def run_recipe(run, progress):
        done, _ = run.rewind()
        progress.start("training", 4, done)
        for step in range(done + 1, 5):
            if step == script.signal_at:
                os.kill(os.getpid(), signal.SIGINT)
            run.log(step, {"reward": 0.1 * step})
            run.checkpoint(step).mkdir()
            progress.advance(step, {"reward": 0.1 * step})
            script.seen.append(step)
            if progress.interrupted:
                raise Interrupted
        systems = {"waltz": {"asr": estimate(0.02), "orr": estimate(0.04), "f1": estimate(0.97)}}
        return {"schema": 1, "recipe": run.recipe.name, "seed": run.recipe.seed, "systems": systems, "x": float("nan")}

    module = types.ModuleType("choreo.experiment.run")
    module.run_recipe, module.check = run_recipe, lambda recipe: None
    monkeypatch.setitem(sys.modules, "choreo.experiment.run", module)
    return script


def refused(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("choreo: ") and err.count("\n") == 1
    return err


@pytest.mark.slow
def test_bad_input_is_one_line_and_exit_2(capsys, tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("\n[learning]\nlr = 'fast'\n")
    assert f"{bad}:3: learning.lr: expected a number > 0" in refused(capsys, "train", bad)
    assert "did you mean 'waltz'" in refused(capsys, "train", "walz")
    assert "--set nam=a\\nb: nam: unknown key" in refused(capsys, "train", "waltz", "--set", "nam=a\nb")
    assert "give a recipe, or --resume" in refused(capsys, "train")
    assert "give a recipe, or --resume" in refused(capsys, "train", "waltz", "--resume", tmp_path)
    assert "--resume goes on exactly" in refused(capsys, "train", "--resume", tmp_path, "--set", "seed=1")
    assert "no such run folder" in refused(capsys, "train", "--resume", tmp_path / "none")
    assert "invalid choice: 'trian'" in refused(capsys, "trian")
    assert "required: COMMAND" in refused(capsys)
    assert "unrecognized arguments: --sett" in refused(capsys, "train", "waltz", "--sett", "a=b")
    for command in ("eval", "report"):
        assert "no such run folder" in refused(capsys, command, tmp_path / "none")
        assert "not a run folder" in refused(capsys, command, tmp_path)
    assert "neither heldout nor train" in refused(capsys, "eval", tmp_path, "--suite", "no-such-suite")
    assert "already exists" in refused(capsys, "study", "waltz-table", "--run", tmp_path)
    (tmp_path / "file").write_text("mine")
    assert "no study.json" in refused(capsys, "study", "waltz-table", "--run", tmp_path, "--resume")
    assert "no study to go on with" in refused(capsys, "study", "waltz-table", "--run", tmp_path / "typo", "--resume")
    below = tmp_path / "file" / "sub"
    assert "cannot make this folder" in refused(capsys, "study", "waltz-table", "--run", below, "--seeds=0")
    assert "cannot make this folder" in refused(capsys, "world", "pretrain", "--out", below)
    assert "holds no base made here" in refused(capsys, "world", "pretrain", "--out", tmp_path, "--overwrite")
    for seeds in ("a", "1,1", "-1", ""):
        assert "seeds" in refused(capsys, "study", "waltz-table", f"--seeds={seeds}")
    assert "there are vanilla_harmful" in refused(capsys, "world", "sample", "--suite", "none")


def test_train_fills_a_run_folder_and_prints_its_summary_last(capsys, tmp_path, trainer):
    run = tmp_path / "run"
    assert main(["train", "waltz", "--set", "seed=5", "--run", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    summary = json.loads(out.splitlines()[-1])
    assert summary == json.loads((run / "summary.json").read_text())
    assert (summary["seed"], summary["x"]) == (5, None)
    assert f"report: {run / 'report.html'}" in err and (run / "report.html").stat().st_size > 1000
    assert "already exists" in refused(capsys, "train", "waltz", "--run", run)
    assert main(["train", "waltz", "--run", str(run), "--overwrite"]) == 0
    assert "2.0 % (1.0–3.0)" in capsys.readouterr().out
    assert json.loads((run / "summary.json").read_text())["seed"] == 0


def test_an_interrupted_run_exits_130_and_goes_on_where_it_stopped(capsys, tmp_path, trainer):
    run = tmp_path / "run"
    trainer.signal_at = 2
    assert main(["train", "waltz", "--run", str(run)]) == 130
    assert capsys.readouterr().err.endswith(f"choreo: interrupted; go on with: choreo train --resume {run}\n")
    trainer.signal_at = 0
    assert main(["train", "--resume", str(run)]) == 0
    assert trainer.seen == [1, 2, 3, 4]
    assert main(["train", "--resume", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "is finished" in err and json.loads(out.splitlines()[-1])["schema"] == 1
    assert trainer.seen == [1, 2, 3, 4]


def test_a_failure_that_is_not_the_users_is_not_disguised(tmp_path, trainer, monkeypatch):
    def broken(run, progress):
        raise ZeroDivisionError

    monkeypatch.setattr(sys.modules["choreo.experiment.run"], "run_recipe", broken)
    with pytest.raises(ZeroDivisionError):
        main(["train", "waltz", "--run", str(tmp_path / "run")])


def test_without_a_name_the_run_folder_is_new_and_under_runs(tmp_path, trainer, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "waltz", "--set", "name=my/odd name"]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("my-odd-name-2") and (run / "summary.json").is_file()


COMMANDS = (
    "train",
    "eval",
    "report",
    "study",
    "world",
    "world sample",
    "data check",
    "bench",
    "swarm",
    "swarm run",
    "swarm annotate",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_teaches_by_example(capsys, command):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert "examples:\n" in capsys.readouterr().out


def test_what_cannot_end_is_refused_before_anything_is_made_or_removed(capsys, tmp_path):
    run = tmp_path / "run"
    for setting, said in (
        ("model.base=nowhere", "base 'nowhere': neither a shipped one"),
        ("world.heldout_prompts=6000", "has fewer than 6000 different prompts"),
        ("world.train_prompts=3", "a step wants"),
        ("world.languages=[]", "world.languages: expected a list"),
        ("protocol.rounds=0", "protocol.rounds = 0 plays without"),
    ):
        assert said in refused(capsys, "train", "waltz", "--run", run, "--overwrite", "--set", setting)
        assert not run.exists()
    assert "whole number >= 0" in refused(capsys, "world", "calibrate", "--split-seed=-1")
    assert "fewer than 6000" in refused(capsys, "world", "sample", "--count=6000", "--suite=dual_use")


def test_a_base_that_does_not_load_leaves_the_run_that_is_there(capsys, tmp_path, tiny_folder):
    run, base = tmp_path / "run", shutil.copytree(tiny_folder, tmp_path / "base")
    (base / "model.safetensors").unlink()
    with Run.create(run, config.load("waltz")):
        pass
    said = refused(capsys, "train", "waltz", "--run", run, "--overwrite", "--set", f"model.base={base}")
    assert str(base) in said and (run / "run.json").is_file()


def test_a_run_begun_with_other_defaults_is_not_gone_on_with(capsys, tmp_path):
    with Run.create(tmp_path / "run", config.load("waltz")):
        pass
    recipe = tmp_path / "run" / "recipe.toml"
    recipe.write_text(recipe.read_text().replace('schedule = "linear"\n', ""))
    assert "recipe.toml: learning.schedule: missing" in refused(capsys, "train", "--resume", tmp_path / "run")


@pytest.mark.slow
def test_a_run_is_trained_measured_and_measured_again_to_the_same_figures(capfd, tmp_path):
    run, small = (
        tmp_path / "run",
        (
            "learning.steps=1",
            "learning.prompts=3",
            "learning.samples=2",
            "world.heldout_prompts=3",
            "world.train_prompts=60",
            "protocol.answer_tokens=8",
            "protocol.feedback_tokens=8",
        ),
    )
    assert main(["train", "waltz", "--run", str(run), "--json", *(w for s in small for w in ("--set", s))]) == 0
    summary = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert main(["eval", str(run), "--json"]) == 0
    again = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert summary["systems"].keys() == {"base", "collaboration-untrained", "waltz"}
    for name, system in summary["systems"].items():
        clock = {"latency_added": None}
        assert again["systems"][name] | clock == system | clock
    assert summary["seconds"] > 0 and summary["device"] == "cpu" and (run / "report.html").is_file()


def test_recipes_are_listed_printed_and_compared(capsys, tmp_path):
    assert main(["recipe"]) == 0
    listed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert listed == config.shipped_names() and all(config.purpose(name) for name in listed)
    assert main(["recipe", "macpo", "--set", "rounds.count=5"]) == 0
    (mine := tmp_path / "mine.toml").write_text(capsys.readouterr().out)
    assert config.load(mine) == config.load("macpo", ["rounds.count=5"]) and not config.unset(mine)
    assert main(["recipe", str(mine), "--against", "macpo"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[1:]] == [["rounds.count", "5", "3"]]
    assert main(["recipe", "waltz", "--against", "waltz"]) == 0
    assert "the same settings" in capsys.readouterr().out
    assert "name one" in refused(capsys, "recipe", "--set", "seed=1")
