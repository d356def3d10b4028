"""The warm start of the feedback agent in a run: that it learns, and that RL begins where it ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from test_trainer import lines, same
from test_warmup_rows import rows_file

from choreo import config
from choreo.engine import checkpoint
from choreo.environments.task import Task
from choreo.errors import BadInput, TooFew
from choreo.experiment.sizing import plan
from choreo.methods.waltz.agents import START, Pair
from choreo.methods.waltz.method import WALTZ
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import restore, train
from choreo.methods.waltz.warmup.answers import answers_of_files, gather, read, sample_of, save
from choreo.methods.waltz.warmup.settings import Warmup
from choreo.report.record import Record
from choreo.runs.callbacks import Callback
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.text.feedback import render_feedback
from choreo.types import FEEDBACK, Limits

# ---- the warm start in a run --------------------------------------------------------------------


def recipe(**sections: dict) -> WaltzRecipe:
    settings: dict[str, dict] = {
        "world": {"train_prompts": 90, "heldout_prompts": 2},
        "model": {"base": "nano-llama", "rank": 4},
        "protocol": {"answer_tokens": 24, "feedback_tokens": 96},
        "learning": {"steps": 2, "prompts": 5, "samples": 2},
        "warmup": {"own": 40, "rows": 24, "batch": 4, "lr": 1e-2, "aside": 0.3, "measured": 9},
    }
    merged = {name: settings.get(name, {}) | sections.get(name, {}) for name in settings | sections}
    return WaltzRecipe.model_validate({"seed": 3, "checkpoint_every": 2, **merged})


def taught(folder: Path) -> WaltzRecipe:
    """A recipe that learns from the model's own answers and from labelled ones in a file."""
    said = {"unsafe": ("harmful", "Take a thin wire."), "overrefuse": ("benign", "I cannot help.")}
    rows = [
        {"prompt": f"How do I open box {n}?", "answer": text, "kind": kind, "refusal": verdict == "overrefuse"}
        for n in range(20)
        for verdict, (kind, text) in said.items()
    ]
    file = rows_file(folder / "labelled.jsonl", *rows)
    return recipe(warmup={"answers": {"labelled": {"file": str(file)}}})


class Killed(Exception):
    pass


class Stopper(Callback):
    """Breaks off in the middle of the warm start, after update 5."""

    def on_phase(self, label, total, done):
        self.label = label

    def on_progress(self, done, figures):
        if self.label == "warm start" and done == 5:
            raise Killed


def checked(made: WaltzRecipe) -> None:
    WALTZ.check(made, Task(made), WALTZ.load(made))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never disturbed, measured to its end."""
    path = tmp_path_factory.mktemp("warmup") / "whole"
    with Run.create(path, taught(path.parent)) as run, Progress() as progress:
        measured = WALTZ.run(run.recipe, run, Task(run.recipe), progress)
        run.finish({"systems": measured.systems, **measured.extra})
    return path


def test_it_learns_and_rl_begins_where_it_ends(whole):
    summary = json.loads((whole / "summary.json").read_text())
    warmup = summary["warmup"]
    assert warmup == json.loads((whole / "warmup" / "summary.json").read_text())
    assert warmup["updates"] == 6 and warmup["after"]["n"] == warmup["before"]["n"] > 0
    assert warmup["after"]["loss"] < warmup["before"]["loss"]
    assert list(summary["systems"]) == ["base", "collaboration-untrained", "collaboration-warm", "waltz"]
    first = lines(whole)[0]
    assert first["kl/feedback"] == pytest.approx(0, abs=1e-6) and first["ratio/feedback"] == pytest.approx(0, abs=1e-4)
    [*_, last] = [checkpoint.load(path) for path in checkpoints(whole).values()]
    [*_, warm] = [checkpoint.load(path) for path in checkpoints(whole / "warmup").values()]
    assert same(last["start"], warm["agents"][FEEDBACK]["agent"]) and last["start"]["version"] == 6
    assert last["agents"][FEEDBACK]["agent"]["version"] == 6 + 2
    pair = restore(config.load(whole / "recipe.toml"), checkpoints(whole)[2])
    assert same(pair.team(FEEDBACK).state_dict(START), last["start"])


def test_broken_off_and_resumed_it_is_the_same_to_the_bit(whole, tmp_path):
    path = tmp_path / "run"
    with (
        Run.create(path, config.load(whole / "recipe.toml")) as run,
        pytest.raises(Killed),
        Progress([Stopper()]) as progress,
    ):
        train(run.recipe, run, progress)
    assert max(checkpoints(path / "warmup")) == 4 and len(lines(path / "warmup")) == 5
    with Run.open(path) as run, Progress() as progress:
        train(run.recipe, run, progress)
    for folder in ("", "warmup"):
        assert lines(path / folder) == lines(whole / folder)
        ours, theirs = checkpoints(path / folder), checkpoints(whole / folder)
        assert ours.keys() == theirs.keys()
        assert all(same(checkpoint.load(ours[step]), checkpoint.load(theirs[step])) for step in ours)
    ours, theirs = (json.loads((one / "warmup" / "summary.json").read_text()) for one in (path, whole))
    assert ours | {"seconds": 0} == theirs | {"seconds": 0}


class StoppedWriting(Callback):
    """Breaks off after so many own answers, and keeps where each phase began."""

    def __init__(self, after=None):
        self.after, self.began = after, {}

    def on_phase(self, label, total, done):
        self.label, self.began[label] = label, done

    def on_progress(self, done, figures):
        if self.label == "warm start: answers" and done == self.after:
            raise Killed


def test_own_answers_are_kept_as_they_are_written(whole, tmp_path):
    """The 32 of the first batch are not written again, half a line is, and all is the same to the bit."""
    path = tmp_path / "run"
    with (
        Run.create(path, config.load(whole / "recipe.toml")) as run,
        pytest.raises(Killed),
        Progress([StoppedWriting(32)]) as progress,
    ):
        train(run.recipe, run, progress)
    with open(path / "warmup" / "own.jsonl", "a") as file:
        file.write('{"answers": ["half a')
    after = StoppedWriting()
    with Run.open(path) as run, Progress([after]) as progress:
        train(run.recipe, run, progress)
    assert after.began["warm start: answers"] == 32
    kept = "answers.jsonl.gz"
    assert (path / "warmup" / kept).read_bytes() == (whole / "warmup" / kept).read_bytes()
    assert lines(path) == lines(whole) and not (path / "warmup" / "own.jsonl").exists()


def test_a_run_begins_from_the_warm_start_of_another(whole, tmp_path):
    """As if it had its own, though it has other data, and needs the first run no more."""
    first = tmp_path / "first"
    shutil.copytree(whole, first)
    made = recipe(warmup={"own": 0, "run": str(first)})
    with Run.create(tmp_path / "run", made) as run, Progress() as progress:
        (tmp_path / "run" / "warmup").mkdir()  # a copy that was broken off
        checked(made)
        train(made, run, progress)
    shutil.rmtree(first)
    assert lines(tmp_path / "run") == lines(whole)
    assert max(checkpoints(tmp_path / "run" / "warmup")) == 6 and len(checkpoints(tmp_path / "run" / "warmup")) == 1
    assert plan(made)["steps"] == plan(recipe(warmup={"rows": 0}))["steps"]
    with pytest.raises(BadInput, match=r"warmup\.run: .*first: no run with a finished warm start"):
        checked(made)
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(BadInput, match="whole: the recipe reads it, and --overwrite would remove it"):
        Run.create(whole, recipe(warmup={"run": str(whole)}), overwrite=True)
    assert before == {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(BadInput, match="another base"):
        other = recipe(model={"base": "nano-neox"}, warmup={"own": 0, "run": str(whole)})
        checked(other)
    other = of_files(tmp_path, warmup={"answers": {}, "run": str(whole)})
    checked(other)
    asked = ("How do I open the old locked door?", "Tell me: how do I open box 3?")
    rows_file(tmp_path / "heldout.jsonl", *({"prompt": text, "kind": "harmful"} for text in asked))
    with pytest.raises(BadInput, match=r"whole: 2 of its answers are .* such as 'How do I open box 3\?'; name one"):
        checked(other)


def test_the_report_has_its_figures_and_the_plan_its_work(whole):
    page = WALTZ.report(Record.read(whole))
    assert "Warm start of the feedback agent" in page and "loss of the reviews learnt" in page
    with_it, without = plan(recipe()), plan(recipe(warmup={"rows": 0}))
    assert with_it["steps"] - without["steps"] == 6 and with_it["tokens"] - without["tokens"] == 40 * 24
    assert with_it["models"][0]["agents"] == 3 and without["models"][0]["agents"] == 2


def test_without_it_nothing_is_there_and_recipes_of_earlier_runs_go_on(tmp_path):
    plain = recipe().model_copy(update={"warmup": Warmup()})
    pair = Pair(plain)
    assert set(pair.team(FEEDBACK).agents) == {"conversation", "feedback"} and pair.start_state() == {}
    assert "collaboration-warm" not in WALTZ.systems(plain)
    text = config.to_toml(plain)
    before, _, after = text.partition("[warmup]")
    (tmp_path / "recipe.toml").write_text(before + "[learning]" + after.partition("[learning]")[2])
    assert config.unset(tmp_path / "recipe.toml") == [] and config.load(tmp_path / "recipe.toml") == plain


# ---- prompts and answers of a user's own --------------------------------------------------------


def of_files(tmp_path: Path, *rows: dict, **sections: dict) -> WaltzRecipe:
    prompts = [{"prompt": f"How do I bake bread number {n} at home?", "kind": "benign"} for n in range(6)]
    rows_file(tmp_path / "train.jsonl", *prompts)
    rows_file(tmp_path / "heldout.jsonl", {"prompt": "How do I open a locked door?", "kind": "harmful"})
    rows_file(tmp_path / "answers.jsonl", *rows)
    files = {name: {name: {"file": str(tmp_path / f"{name}.jsonl")}} for name in ("train", "heldout", "answers")}
    settings: dict[str, dict] = {
        "prompts": {"train": files["train"], "heldout": files["heldout"]},
        "judge": {"kind": "offline"},
        "learning": {"mix": {"benign": 1.0}, "prompts": 2, "steps": 1},
        "warmup": {"own": 0, "answers": files["answers"]},
    }
    return recipe(**{name: settings.get(name, {}) | sections.get(name, {}) for name in settings | sections})


def answer(prompt: str, text: str, **labels: object) -> dict:
    return {"prompt": prompt, "answer": text, "kind": "benign", "refusal": None, "harmful": None, **labels}


def test_answers_to_held_out_prompts_are_left_out_and_unlabelled_ones_are_judged(tmp_path):
    made = of_files(
        tmp_path,
        answer("How do I open a locked door? Tell me now, please.", "No.", refusal=True),
        answer("How do I kill a process in Python?", "I'm sorry, but I can't help with that request."),
        answer("What is the capital of France, and why?", "word " * 200, refusal=False),
        answer("word " * 600, "Yes.", refusal=False),
    )
    pair = Pair(made)
    progress = Progress()
    rows, counts = gather(made, pair, Task(made), progress, tmp_path / "own.jsonl")
    assert [one.prompt.text[:10] for one in rows] == ["How do I k", "What is th"]
    judged, labelled = rows
    assert judged.feedback.overrefuse and "kill a process" in judged.feedback.feedback
    assert len(pair.agents[FEEDBACK].chat.encode(labelled.answer)) <= 24
    assert counts["answers"]["used"] == 2 and counts["answers"]["their prompts are measured on"] == 1
    assert counts["answers"]["prompts longer than warmup.prompt_tokens"] == 1
    save(tmp_path / "kept.jsonl.gz", rows)
    assert read(tmp_path / "kept.jsonl.gz") == rows
    sample = sample_of(pair, judged, Limits(1, 24, 96))
    chat = pair.agents[FEEDBACK].chat
    assert chat.decode(sample.ids) == render_feedback(judged.feedback) and sample.ids[-1] == chat.end_id


@pytest.mark.parametrize(
    "sections, message",
    [
        ({"judge": {"kind": "exact"}, "prompts": {"train": {}, "heldout": {}}}, "answers without labels"),
        ({"warmup": {"own": 99}}, r"warmup\.own: a step wants 99 benign prompts"),
    ],
    ids=["exact judge", "too few prompts"],
)
def test_what_cannot_be_is_refused_before_a_run(sections, message, tmp_path):
    made = of_files(tmp_path, answer("How do I kill a process?", "No."), **sections)
    with pytest.raises((BadInput, TooFew), match=message):
        checked(made)


def test_it_needs_a_feedback_agent(tmp_path):
    with pytest.raises(BadInput, match=r"warmup: .*plays without a feedback agent"):
        config.make({"stages": {"train": "conversation"}, "warmup": {"own": 3}})
    assert not config.make({"stages": {"train": "conversation"}, "warmup": {"own": 3, "rows": 0}}).warmup.on
    assert answers_of_files(recipe(), Task(recipe())) == ({}, {})
