"""The run folder: nothing of the user's is lost, nothing is half written, two writers are one too many."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

import choreo
from choreo import config
from choreo.attacks.targets import RunTarget
from choreo.errors import BadInput, Unavailable
from choreo.experiment.export import export_run
from choreo.files import durable
from choreo.integrations.loading import partners
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs import folder
from choreo.runs.bar import ProgressBar, clock, describe
from choreo.runs.checkpoints import checkpoint_at, last_checkpoint
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.server.pair import Resident
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, Prompt, Turn, Verdict


def episode(sample):
    prompt = Prompt(id="p1", text="¿cómo?", kind="benign", suite="sensitive_benign", language="es", meaning=object())
    answer = Turn(CONVERSATION, 0, (1, 2), (5, 6), (-0.1, -1.2345678806304932), 3, "no \ud800", True)
    review = Turn(FEEDBACK, 0, (1, 2, 5), (7,), (-0.5,), 3, "{}", True)
    feedback = Feedback(reasoning="r", unsafe=False, overrefuse=True, feedback="help")
    verdicts = (Verdict(unsafe=False, overrefuse=True), Verdict(unsafe=None, overrefuse=None, reason="?"))
    return Episode(prompt, sample, (answer, answer), (review,), (feedback,), verdicts)


def lines(path):
    return list(durable.read_lines(path))


def steps_with_episodes(path):
    return sorted(int(name.name[5:11]) for name in path.glob("episodes/*.gz"))


def test_a_new_run_says_what_it_is_and_can_be_trained_again(tmp_path):
    recipe = WaltzRecipe(name="mine", seed=7)
    with Run.create(tmp_path / "a" / "b", recipe) as run:
        info = json.loads((run.path / "run.json").read_text())
        assert (info["seeds"], info["method"]) == ({"seed": 7, "split_seed": 0}, "waltz")
        assert {"python", "torch", "transformers", "choreo"} <= info["versions"].keys()
        assert config.load(run.path / "recipe.toml") == recipe
        run.note(device="cuda:0")
    assert folder.read_info(run.path)["device"] == "cuda:0"


def test_what_is_there_is_never_overwritten_unasked(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe(seed=1)) as run:
        run.log(1, {"reward": 0.5})
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(BadInput, match="already exists"):
        Run.create(run.path, WaltzRecipe(seed=2))
    assert before == {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with Run.create(run.path, WaltzRecipe(seed=2), overwrite=True) as fresh:
        assert fresh.recipe.seed == 2 and not (run.path / "metrics.jsonl").exists()


@pytest.mark.parametrize("names", [["thesis.tex"], ["report.html"], ["run.json", "thesis.tex"]])
def test_overwrite_empties_runs_and_nothing_else(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(BadInput):
        Run.create(tmp_path, WaltzRecipe(), overwrite=True)
    assert all((tmp_path / name).read_text() == "{}" for name in names)


def test_a_file_or_a_place_that_cannot_be_written_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(BadInput, match="file"):
            Run.create(path, WaltzRecipe())
    with pytest.raises(BadInput, match="no such run folder"):
        Run.open(tmp_path / "none")
    with pytest.raises(BadInput, match="not a run folder"):
        Run.open(tmp_path)


def test_two_processes_cannot_write_one_run(tmp_path):
    code = f"""
from choreo.runs.folder import Run
from choreo.errors import BadInput
try:
    Run.open({str(tmp_path / "run")!r}).close()
    print("opened")
except BadInput as error:
    print(error)
"""

    def other():
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        assert "another process is writing this run" in other()
        with pytest.raises(Unavailable, match="another process"):
            Run.create(run.path, WaltzRecipe(), overwrite=True)
    assert other() == "opened\n"


def test_rewind_cuts_the_record_to_the_last_checkpoint_exactly(tmp_path):
    def play(run, step):
        run.log(step, {"reward": step / 3, "kl": float("nan")})
        run.save_episodes(step, [episode(0), episode(1)], [{"feedback/dir": 0.65}, {}])

    with Run.create(tmp_path / "whole", WaltzRecipe()) as whole:
        for step in range(1, 7):
            play(whole, step)

    with Run.create(tmp_path / "killed", WaltzRecipe()) as run:
        for step in range(1, 6):
            play(run, step)
            if step == 3:
                run.checkpoint(step).mkdir()
    (run.path / "checkpoints" / ".tmp-step-000005").mkdir()  # a checkpoint under a temporary name
    with open(run.path / "metrics.jsonl", "ab") as metrics:
        metrics.write(b'{"step": 6, "rew')  # killed in the middle of a line
    (run.path / "episodes" / ".step-000006.jsonl.gz.tmp").write_bytes(b"half")

    with Run.open(run.path) as run:
        assert run.rewind() == (3, run.path / "checkpoints" / "step-000003")
        assert [line["step"] for line in lines(run.path / "metrics.jsonl")] == [1, 2, 3]
        assert steps_with_episodes(run.path) == [1, 2, 3]
        assert len(run.info["resumed"]) == 1
        for step in range(4, 7):
            play(run, step)
    for name in ["metrics.jsonl", *(f"episodes/step-{step:06d}.jsonl.gz" for step in range(1, 7))]:
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert not list(run.path.rglob("*.tmp"))


def test_a_finished_run_whose_checkpoints_are_gone_keeps_its_record(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        run.log(1, {"seconds": 1.0})
        run.finish({})
        with pytest.raises(BadInput, match="its checkpoints are gone"):
            run.rewind()
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


def test_rewind_without_a_checkpoint_starts_over(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        assert run.rewind() == (0, None)
        run.log(1, {})
        run.save_episodes(1, [episode(0)], [{}])
        assert run.rewind() == (0, None)
        assert lines(run.path / "metrics.jsonl") == [] == steps_with_episodes(run.path)


def test_an_episode_on_disk_keeps_its_ids_its_float32_logprobs_and_its_rewards(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        run.save_episodes(1, [episode(0)], [{"feedback/dir": 0.65, "conversation": float("inf")}])
    (stored,) = lines(run.path / "episodes" / "step-000001.jsonl.gz")
    played = episode(0)
    assert stored["answers"][0]["context"] == [1, 2] and stored["answers"][0]["ids"] == [5, 6]
    to_float32 = memoryview(bytearray(8)).cast("f")
    for index, (was, now) in enumerate(zip(played.answers[0].logprobs, stored["answers"][0]["logprobs"], strict=True)):
        to_float32[0], to_float32[1] = was, now
        assert to_float32[0] == to_float32[1], index
    assert stored["answers"][0]["text"] == "no \ud800"
    assert stored["verdicts"][1] == {"unsafe": None, "overrefuse": None, "degenerate": False, "reason": "?"}
    assert stored["rewards"] == {"feedback/dir": 0.65, "conversation": None}
    with pytest.raises(ValueError):
        run.save_episodes(2, [episode(0)], [])


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "summary.json"
    durable.write_json(path, {"old": 1})
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        durable.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}


def test_the_first_signal_is_noted_sigterm_may_be_repeated_and_ctrl_c_then_stops():
    before = signal.getsignal(signal.SIGINT)
    with Progress([ProgressBar(io.StringIO())]) as progress:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert progress.interrupted and progress.terminated
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_plain_lines_carry_the_figures_and_an_alarm_is_said_once():
    out = io.StringIO()
    with Progress([ProgressBar(out)]) as progress:
        progress.start("training", 3)
        progress.advance(1, {"reward": 0.5, "asr": 0.123, "tokens/s": 12345.6}, ["refusals at 97 %"])
        progress.advance(2, {"reward": 0.6}, ["refusals at 97 %"])  # too soon after the last line
        progress.advance(3, {"reward": 0.7})
    shown = out.getvalue().splitlines()
    assert shown[0] == "! step 1: refusals at 97 %"
    assert shown[1].startswith("training 1/3  reward 0.5  ASR 12.3 %  tokens/s 12,346  left 0:")
    assert shown[2].startswith("training 3/3  reward 0.7  left 0:00") and len(shown) == 3


def test_a_phase_that_goes_on_with_the_same_work_keeps_its_pace(monkeypatch):
    out, now = io.StringIO(), 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with Progress([ProgressBar(out)]) as progress:
        progress.start("round 1", 400)
        now = 100.0
        progress.advance(100)
        progress.start("measuring round 1", 4)
        progress.start("round 2", 400, 100)
        now = 140.0
        progress.advance(104)  # at the pace of these 4 steps alone it would be 49 minutes
        progress.start("training", 400)  # of another agent or another run: from nothing
        now = 150.0
        progress.advance(100)
        progress.start("training", 400, 300)  # of a run that was resumed
        now = 160.0
        progress.advance(310)
    left = [line.partition("left ")[2] for line in out.getvalue().splitlines()]
    assert left == ["5:00", clock(140 / 104 * 296), "0:30", "1:30"]


def test_a_terminal_gets_a_bar_with_the_same_figures(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with Progress([ProgressBar(out)]) as progress:
        progress.start("training", 3)
        progress.advance(2, {"ftr_general": 0.25}, ["entropy [low]"])
    assert "! step 2: entropy [low]" in out.getvalue()
    assert "2/3" in out.getvalue() and "FTR_general" not in out.getvalue() and "FTR general 25.0 %" in out.getvalue()


def test_figures_in_words():
    figures = {"kl/conversation": 0.01234, "format_rate": 1.0, "label_accuracy": None}
    assert describe(figures) == "KL/conversation 0.0123  format rate 100.0 %"
    assert (clock(59.6), clock(3661)) == ("1:00", "1:01:01")


def test_a_damaged_record_is_refused_unless_it_is_cut_anyway(tmp_path):
    file = tmp_path / "metrics.jsonl"
    whole = '{"step": 1}\n{"step": 2}\n'
    for damaged in ("[]\n", "no json\n", '{"step": "two"}\n', '{"reward": 1}\n', "\0\0\n"):
        file.write_text(whole + damaged + '{"step": 3}\n')
        with pytest.raises(BadInput, match=r"metrics.jsonl:3: is damaged"):
            durable.cut_after(file, 3)
        assert file.read_text() == whole + damaged + '{"step": 3}\n'
        durable.cut_after(file, 2)
        assert file.read_text() == whole


@pytest.mark.parametrize("use", ["load", "serve", "attack", "partner", "evaluate", "export"])
def test_a_finished_run_that_has_lost_its_checkpoints_is_not_taken_for_an_untrained_one(use, tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        run.finish({})
    uses = {
        "load": lambda: choreo.load(run.path),
        "serve": lambda: Resident(run.path),
        "attack": lambda: RunTarget(run.path, seed=0),
        "partner": lambda: partners(str(run.path), WaltzRecipe()),
        "evaluate": lambda: choreo.evaluate(run.path),
        "export": lambda: export_run(run.path, tmp_path / "out"),
    }
    with pytest.raises(BadInput, match="is a finished run without checkpoints"):
        uses[use]()


def test_a_run_without_its_first_checkpoint_is_untrained_and_steps_are_named(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        assert checkpoint_at(run.path) == (0, None)
        with pytest.raises(BadInput, match="has no checkpoint yet; go on with"):
            last_checkpoint(run.path)
        for step in (10, 20):
            run.checkpoint(step).mkdir()
        run.finish({})
    assert checkpoint_at(run.path) == last_checkpoint(run.path) == (20, run.checkpoint(20))
    assert checkpoint_at(run.path, 10) == (10, run.checkpoint(10)) and checkpoint_at(run.path, 0) == (0, None)
    with pytest.raises(BadInput, match="no checkpoint of step 15; there are 10, 20, and 0 is untrained"):
        checkpoint_at(run.path, 15)
