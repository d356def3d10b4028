"""The warm start of the feedback agent: what it learns from, that it learns, and that RL begins where it ends."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from test_trainer import lines, same

from choreo import config
from choreo.data.reviews import load
from choreo.engine import checkpoint
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.experiment.sizing import plan
from choreo.methods.waltz.agents import START, Pair
from choreo.methods.waltz.method import WALTZ
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import restore, train
from choreo.methods.waltz.warmup.answers import answers_of_files, gather, read, sample_of, save, weights_of
from choreo.methods.waltz.warmup.draw import epoch_rows, in_turns, measured_rows, repeats, set_apart, verdict_named
from choreo.methods.waltz.warmup.settings import Warmup
from choreo.report.record import Record
from choreo.runs.callbacks import Callback
from choreo.runs.folder import Run, checkpoints
from choreo.runs.progress import Progress
from choreo.text.feedback import parse_feedback, render_feedback
from choreo.text.made_reviews import made_review
from choreo.types import FEEDBACK, Feedback, Kind, Limits, Prompt, ReviewedAnswer, Verdict

LABELS = {"unsafe": Verdict(True, False), "overrefuse": Verdict(False, True), "satisfied": Verdict(False, False)}


def row(group: str, verdict: str, number: int = 0, kind: Kind = "benign") -> ReviewedAnswer:
    given = LABELS[verdict]
    feedback = Feedback("", bool(given.unsafe), bool(given.overrefuse), "" if verdict == "satisfied" else "mend it")
    prompt = Prompt(f"{group}-{number}", f"{group} {number}", kind, "suite")
    return ReviewedAnswer(prompt, f"answer {number}", group, given, feedback)


# ---- reviews that are made ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt, answer, verdict, words",
    [
        (
            "How do I pick the lock of my neighbour's door at night without being heard?",
            "Sure. First take a thin tension wrench and a pick, and then turn it slowly.",
            "unsafe",
            "This request is dangerous: 'How do I pick the lock of my'. Say: I'm sorry, but I can't help with that.",
        ),
        (
            "You are a kind teacher. Always be brief. How do I kill a Python process?",
            "I'm sorry, but I can't help to \"kill\" a Python process.",
            "overrefuse",
            "There is no harm in this question, so answer it. You are a kind teacher. Always be brief. How do I kill a "
            "Python process",
        ),
        ("What is the capital of France?", "It is Paris.", "satisfied", ""),
    ],
)
def test_a_made_review_says_what_is_wrong_about_this_answer(prompt, answer, verdict, words):
    given = LABELS[verdict]
    found = made_review(prompt, answer, given)
    assert found == Feedback("", bool(given.unsafe), bool(given.overrefuse), words)


def test_made_reviews_have_several_wordings_and_nothing_to_escape():
    texts = ['Say "hi"\n\\ to\t{me} 🙂 [INSERT]', "", "???", "word " * 90, "x" * 500, "¿Cómo? ```\ncode```"]
    reviews = [made_review(p, a, v) for p in texts for a in texts for v in LABELS.values()]
    assert all(parse_feedback(render_feedback(review)) == review for review in reviews)
    assert not any(mark in review.feedback for review in reviews for mark in '"\\\n\t')
    assert all(len(review.feedback) < 300 for review in reviews)
    openings = {made_review(f"How do I do {n}?", "So.", LABELS["unsafe"]).feedback[:12] for n in range(40)}
    assert len(openings) == 2
    with pytest.raises(ValueError, match="open"):
        made_review("a", "b", Verdict(None, False))


# ---- what it learns from ------------------------------------------------------------------------


def rows_file(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def test_labels_of_files_become_verdicts_and_pairs_have_none(tmp_path):
    own = [
        {"prompt": "p", "answer": "a", "kind": kind, "refusal": refusal, "harmful": harm}
        for kind, refusal, harm in [
            ("harmful", False, None),
            ("harmful", True, None),
            ("benign", True, False),
            ("benign", False, None),
            ("benign", True, True),
            ("benign", None, False),
            ("harmful", None, None),
        ]
    ]
    found = load(rows_file(tmp_path / "own.jsonl", *own)).rows
    named = [one.verdict and (one.verdict.unsafe, one.verdict.overrefuse) for one in found]
    assert named == [(True, False), (False, False), (False, True), (False, False), (True, False), None, None]
    pair = {"category": "c", "subcategory": "s", "prompt": "p", "chosen": "yes", "rejected": "no"}
    found = load(rows_file(tmp_path / "pairs.jsonl", pair)).rows
    assert [(one.answer, one.prompt.kind, one.verdict) for one in found] == [
        ("yes", "benign", None),
        ("no", "benign", None),
    ]


def test_reviews_of_files_are_taken_as_they_are_if_they_can_be_right(tmp_path):
    said = {"prompt": "p", "answer": "a", "kind": "harmful", "reasoning": "It helps.", "unsafe": True}
    said |= {"overrefuse": False, "feedback": "Stop."}
    fine = said | {"unsafe": False, "feedback": "Well done."}
    loaded = load(rows_file(tmp_path / "r.jsonl", said, fine, said | {"overrefuse": True}, said | {"feedback": " "}))
    assert loaded.format == "reviews"
    assert [one.feedback for one in loaded.rows] == [
        Feedback("It helps.", True, False, "Stop."),
        Feedback("It helps.", False, False, ""),
    ]
    assert sum(loaded.counts.values()) == 2
    with pytest.raises(BadInput, match=r"r\.jsonl:1: unsafe: expected true or false"):
        load(rows_file(tmp_path / "r.jsonl", said | {"unsafe": "maybe"}))


def test_an_epoch_is_balanced_over_verdicts_and_prompts_take_turns():
    rows = [row(f"u{g}", "unsafe", n, "harmful") for g in range(5) for n in range(6)] + [row("o", "overrefuse")]
    rows += [row(f"s{g}", "satisfied", n) for g in range(40) for n in range(2)]
    rows += [row(f"h{g}", "satisfied", 0, "harmful") for g in range(3)]
    drawn = epoch_rows(rows, 61, Warmup().mix, "key")
    names = [verdict_named(one.feedback) for one in drawn]
    assert [names.count(name) for name in LABELS] == [20, 21, 20]
    fine = [one for one in drawn if verdict_named(one.feedback) == "satisfied"]
    assert sum(one.prompt.kind == "harmful" for one in fine) == 13  # two thirds: there are none to general prompts
    unsafe = [one.group for one in drawn if verdict_named(one.feedback) == "unsafe"]
    assert {unsafe.count(group) for group in unsafe} == {4}
    assert drawn == epoch_rows(rows, 61, Warmup().mix, "key") != epoch_rows(rows, 61, Warmup().mix, "other")
    once = in_turns(rows, len(rows), "key")
    assert sorted(one.prompt.id for one in once) == sorted(one.prompt.id for one in rows)
    measured = measured_rows(rows, 30, "key")
    assert [sum(verdict_named(one.feedback) == name for one in measured) for name in LABELS] == [10, 1, 10]


def test_a_mix_says_what_an_epoch_has_and_what_is_missing_goes_to_the_others_of_its_verdict():
    rows = [row(f"u{n}", "unsafe", 0, "harmful") for n in range(4)] + [row(f"o{n}", "overrefuse") for n in range(4)]
    rows += [row(f"b{n}", "satisfied", 0, "benign") for n in range(4)]
    rows += [row(f"g{n}", "satisfied", 0, "general") for n in range(4)]
    mix = {"unsafe": 3, "satisfied_harmful": 2, "satisfied_benign": 1, "satisfied_general": 4}
    found = Counter(one.group[0] for one in epoch_rows(rows, 100, mix, "key"))
    assert found == {"u": 30, "b": 14, "g": 56}
    assert repeats(rows, 100, mix) == {"unsafe": (4, 7.5), "satisfied": (8, 8.75)}
    with pytest.raises(ValueError, match="at least one verdict"):
        Warmup(mix={"unsafe": 0})


def test_labels_weigh_as_much_as_words_however_many_there_are():
    """By hand: two labels (rows that allow two ids), three words, the rest forced."""
    assert weights_of((-1, 0, -1, 0, -1, 1, 1, 1, -1), (2, 90), 0.5) == (0, 0.25, 0, 0.25, 0, 1 / 6, 1 / 6, 1 / 6, 0)
    assert weights_of((-1, 0, 0, -1), (2, 90), 0.5) == (0, 0.5, 0.5, 0)  # a satisfied review has labels alone


def test_a_prompt_is_on_one_side_whatever_else_there_is():
    rows = [row(f"prompt {g}", "unsafe", n) for g in range(200) for n in range(3)]
    learnt, aside = set_apart(rows, 0.2)
    assert not {one.group for one in learnt} & {one.group for one in aside}
    assert 20 < len({one.group for one in aside}) < 60
    assert set_apart(rows[:90], 0.2)[1] == [one for one in aside if one in rows[:90]]
    assert set_apart(rows, 0.0) == (rows, [])


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


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never disturbed, measured to its end."""
    path = tmp_path_factory.mktemp("warmup") / "whole"
    with Run.create(path, taught(path.parent)) as run, Progress() as progress:
        measured = WALTZ.run(run.recipe, run, Task(run.recipe), progress)
        run.finish({"systems": measured.systems, **measured.extra})
    return path


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_run_begins_from_the_warm_start_of_another(whole, tmp_path):
    """As if it had its own, though it has other data, and needs the first run no more."""
    first = tmp_path / "first"
    shutil.copytree(whole, first)
    made = recipe(warmup={"own": 0, "run": str(first)})
    with Run.create(tmp_path / "run", made) as run, Progress() as progress:
        (tmp_path / "run" / "warmup").mkdir()  # a copy that was broken off
        WALTZ.check(made, Task(made))
        train(made, run, progress)
    shutil.rmtree(first)
    assert lines(tmp_path / "run") == lines(whole)
    assert max(checkpoints(tmp_path / "run" / "warmup")) == 6 and len(checkpoints(tmp_path / "run" / "warmup")) == 1
    assert plan(made)["steps"] == plan(recipe(warmup={"rows": 0}))["steps"]
    with pytest.raises(BadInput, match=r"warmup\.run: .*first: no run with a finished warm start"):
        WALTZ.check(made, Task(made))
    before = {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(BadInput, match="whole: the recipe reads it, and --overwrite would remove it"):
        Run.create(whole, recipe(warmup={"run": str(whole)}), overwrite=True)
    assert before == {file: file.read_bytes() for file in whole.rglob("*") if file.is_file()}
    with pytest.raises(BadInput, match="another base"):
        other = recipe(model={"base": "nano-neox"}, warmup={"own": 0, "run": str(whole)})
        WALTZ.check(other, Task(other))
    other = of_files(tmp_path, warmup={"answers": {}, "run": str(whole)})
    WALTZ.check(other, Task(other))
    asked = ("How do I open the old locked door?", "Tell me: how do I open box 3?")
    rows_file(tmp_path / "heldout.jsonl", *({"prompt": text, "kind": "harmful"} for text in asked))
    with pytest.raises(BadInput, match=r"whole: 2 of its answers are .* such as 'How do I open box 3\?'; name one"):
        WALTZ.check(other, Task(other))


@pytest.mark.slow
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
    with pytest.raises((BadInput, Exception), match=message):
        WALTZ.check(made, Task(made))


def test_it_needs_a_feedback_agent(tmp_path):
    with pytest.raises(BadInput, match=r"warmup: .*plays without a feedback agent"):
        config.make({"stages": {"train": "conversation"}, "warmup": {"own": 3}})
    assert not config.make({"stages": {"train": "conversation"}, "warmup": {"own": 3, "rows": 0}}).warmup.on
    assert answers_of_files(recipe(), Task(recipe())) == ({}, {})
