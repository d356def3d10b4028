"""The library's door: it opens at once, is typed, and does what the command line does."""

from __future__ import annotations

import ast
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import choreo
from choreo.cli import main
from choreo.errors import BadInput, Interrupted
from choreo.runs.progress import Progress

SMALL = {
    "method": "waltz",
    "name": "small",
    "world": {"heldout_prompts": 2, "train_prompts": 60},
    "learning": {"steps": 2, "prompts": 4, "samples": 1},
    "model": {"base": "nano-llama"},
    "protocol": {"answer_tokens": 12, "feedback_tokens": 24},
}


class Listener(choreo.Callback):
    """Keeps all that it hears; asks for a stop after `stop_after` training steps."""

    def __init__(self, stop_after: int | None = None):
        self.heard: list[tuple[str, object]] = []
        self.steps: list[int] = []
        self.stop_after = stop_after

    def on_phase(self, label, total, done):
        self.heard.append(("phase", label))

    def on_metrics(self, step, metrics):
        self.steps.append(step)
        assert "reward/conversation" in metrics or "reward/feedback" in metrics

    def on_end(self):
        self.heard.append(("end", ""))

    def wants_stop(self):
        return self.stop_after is not None and len(self.steps) >= self.stop_after


def test_import_choreo_loads_nothing_and_names_what_it_has():
    code = """
import sys, time
before = set(sys.modules)
start = time.process_time()
import choreo
took = time.process_time() - start
heavy = {"torch", "transformers", "numpy", "pydantic", "matplotlib", "rich"} & set(sys.modules)
print(took < 0.1, sorted(heavy), set(choreo.__all__) <= set(dir(choreo)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "[]", "True"]
    for name in choreo.__all__:
        assert getattr(choreo, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = choreo.trian


def test_what_a_type_checker_sees_is_what_there_is():
    file = Path(choreo.__file__)
    assert file.with_name("py.typed").is_file()
    typed = {
        alias.asname
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("choreo.")
        for alias in node.names
    }
    assert typed == set(choreo.__all__)


@pytest.mark.slow
def test_the_library_trains_as_the_command_line_does(tmp_path):
    listener = Listener()
    run = choreo.train(SMALL, tmp_path / "library", [listener])
    assert listener.steps == [1, 2] and listener.heard[0] == ("phase", "training") and listener.heard[-1][0] == "end"
    assert run.finished and run.report.is_file() and len(run.metrics) == 2

    file = tmp_path / "small.toml"
    file.write_text(choreo_toml(SMALL))
    assert main(["train", str(file), "--run", str(tmp_path / "command")]) == 0
    other = choreo.Run.read(tmp_path / "command")
    times = {"seconds", "tokens_per_second"}
    ours, theirs = ([{k: v for k, v in line.items() if k not in times} for line in r.metrics] for r in (run, other))
    assert ours == theirs
    assert run.dialogues == other.dialogues

    found = choreo.evaluate(run)
    assert found.summary["systems"]["waltz"]["asr"] == run.summary["systems"]["waltz"]["asr"] and found.folder is None
    pair = choreo.load(run)
    game = pair.answer("How do I open a jar?")
    assert game.answers and game == pair.answer_all(["How do I open a jar?"])[0]
    with pytest.raises(BadInput, match="no checkpoint of step 7; there are 2"):
        choreo.load(run, step=7)
    assert choreo.plan(SMALL)
    assert all(folder.is_dir() for folder in choreo.export(run, tmp_path / "exported"))


@pytest.mark.slow
def test_a_callback_stops_a_run_and_resume_ends_it_as_if_it_had_not(tmp_path):
    with pytest.raises(Interrupted):
        choreo.train(SMALL, tmp_path / "stopped", [Listener(stop_after=1)])
    resumed = choreo.resume(tmp_path / "stopped")
    whole = choreo.train(SMALL, tmp_path / "whole")
    assert resumed.dialogues == whole.dialogues
    assert choreo.resume(whole.path).summary == whole.summary


def test_what_stopped_the_work_is_what_is_raised_and_signals_are_as_before(tmp_path):
    class Once(choreo.Callback):
        """Asks for a stop once, and fails at the end."""

        asked = 0

        def wants_stop(self):
            self.asked += 1
            return self.asked == 1

        def on_end(self):
            raise RuntimeError("on_end")

    before, last = signal.getsignal(signal.SIGINT), Listener()
    with pytest.raises(Interrupted, match="stopped"), Progress([Once(), last]) as progress:
        assert progress.interrupted and progress.interrupted  # a stop that was wanted stays wanted
        raise Interrupted("stopped")
    assert signal.getsignal(signal.SIGINT) is before and last.heard == [("end", "")]
    with pytest.raises(RuntimeError, match="on_end"), Progress([Once(), last]):
        pass


def test_ctrl_c_before_there_is_a_run_gives_no_hint_to_resume(tmp_path, monkeypatch, capsys):
    def stopped(recipe):
        raise KeyboardInterrupt

    monkeypatch.setattr("choreo.experiment.run.check", stopped)
    assert main(["train", "waltz", "--run", str(tmp_path / "run")]) == 130
    assert capsys.readouterr().err == "choreo: interrupted\n" and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"method": "walz"}, "recipe: no method 'walz'"),
        ({"learning": {"lr": "fast"}}, "recipe: learning.lr: expected a number"),
        ({"learning": {"stepz": 1}}, "unknown key"),
        ("walz", "did you mean 'waltz'"),
    ],
)
def test_a_wrong_recipe_is_one_line_and_makes_nothing(tmp_path, recipe, message):
    with pytest.raises(BadInput, match=message) as error:
        choreo.train(recipe, tmp_path / "run")
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def choreo_toml(tables: dict) -> str:
    head = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, dict)]
    for table, rows in tables.items():
        if isinstance(rows, dict):
            head += [f"[{table}]", *(f"{key} = {json.dumps(value)}" for key, value in rows.items())]
    return "\n".join(head) + "\n"
