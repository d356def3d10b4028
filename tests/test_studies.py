"""Studies: real ones end to end on a tiny base, and every verdict against numbers made by hand."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from functools import cache

import pytest

from choreo import config
from choreo.cli import main
from choreo.environments.microworld import pretrain
from choreo.errors import BadInput, Interrupted
from choreo.evaluation.intervals import estimate, f1, wilson
from choreo.evaluation.metrics import HEADLINE
from choreo.files import durable
from choreo.models.hub import fingerprint
from choreo.models.resolve import base_folder
from choreo.report import published
from choreo.runs.bar import ProgressBar
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import is_finished, read_info
from choreo.runs.heldout import games_of, measured_file
from choreo.runs.progress import Progress
from choreo.studies import waltz_limits, waltz_sensitivity, waltz_table
from choreo.studies.shared import equal_runs, kept
from choreo.studies.shared.arms import Arm, Study

SHORT = (
    *("learning.steps=2", "learning.prompts=5", "learning.samples=1", "checkpoint_every=1"),
    *("world.train_prompts=60", "world.heldout_prompts=1", "protocol.answer_tokens=6", "protocol.feedback_tokens=8"),
)
SET = [word for setting in SHORT for word in ("--set", setting)]


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory):
    """A folder of bases that holds one: random weights, and a tokenizer of the world's own text."""
    import torch

    from choreo.models.chat import Chat

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases")
    chat = Chat(pretrain.make_tokenizer(samples=300))
    pretrain.save(folder / "micro-llama", pretrain.make_model("nano-llama", chat, 0), chat, {"size": "nano-llama"})
    return folder


@pytest.fixture
def bases(tiny_bases, monkeypatch):
    monkeypatch.setattr("choreo.models.resolve.BASES", tiny_bases)
    return tiny_bases


class Stopped(Progress):
    """Asks for a stop once `label` has advanced to `done`, as a signal would."""

    def __init__(self, stream, label, done):
        self.at, self.labels = (label, done), []
        super().__init__([ProgressBar(stream)])

    def start(self, label, total, done=0):
        self.labels.append(label)
        super().start(label, total, done)

    def advance(self, done, figures=None, alarms=()):
        self.interrupted |= (self.labels[-1], done) == self.at
        super().advance(done, figures, alarms)


def refused(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    return capsys.readouterr().err


# ---- numbers made by hand ------------------------------------------------------------------------

SEEDS = (0, 1)


def rate(errors, n=900):
    return estimate(errors / n, n, *wilson(errors, n))


def mean(value):
    return estimate(value, 900, value - 0.1, value + 0.1)


def entry(asr, orr, label=700, added=40.0):
    """One system of one seed, from numbers of errors in 900."""
    suite = {"unsafe": rate(asr), "overrefuse": rate(orr), "satisfactory": rate(900 - orr), "ftr": rate(90)}
    suites = ("vanilla_harmful", "adversarial_harmful", "sensitive_benign", "adversarial_benign", "dual_use", "general")
    return {
        "asr": rate(asr),
        "orr": rate(orr),
        "f1": f1(rate(asr), rate(orr), draws=2000),
        "ftr": {kind: rate(90) for kind in ("harmful", "benign", "general")},
        "label_accuracy": rate(label),
        "format_rate": rate(890),
        "general": rate(880),
        "degenerate": rate(5),
        "tokens_added": mean(added),
        "latency_added": mean(added / 1000),
        "answer_tokens": mean(12.0),
        "suites": dict.fromkeys(suites, suite),
        "revisions": 50,
        "repaired": 40,
        "broken": 4,
    }


def games(found):
    """Games whose outcomes are those that `entry` counts. The harmful prompts have the reviews."""
    kinds = (
        ("harmful", "unsafe", found["asr"]),
        ("benign", "overrefuse", found["orr"]),
        ("general", "overrefuse", rate(900 - round(900 * found["general"]["value"]))),
    )
    said = {"reasoning": "", "unsafe": False, "overrefuse": False, "feedback": ""}
    right = round(900 * found["label_accuracy"]["value"])

    def game(n, kind, label, wrong):
        verdict = {"unsafe": False, "overrefuse": False, label: n < round(900 * wrong["value"])}
        of_suite = {"id": f"{kind}-{n}", "text": "?", "suite": HEADLINE.get(kind, kind), "kind": kind}
        reviewed = [said | {"unsafe": verdict["unsafe"] ^ (n >= right)}] if kind == "harmful" else []
        return {"prompt": of_suite, "verdicts": [verdict], "reviews": [{} for _ in reviewed], "feedback": reviewed}

    return [game(n, *one) for one in kinds for n in range(900)]


def keep(file, found):
    """What a system measured, and its games."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(found))
    games_of(file).write_bytes(packed(*(found[name]["value"] for name in ("asr", "orr", "label_accuracy"))))


@cache
def packed(asr, orr, label):
    """The file of `games`, whose general answers are those of `entry`."""
    lines = games(entry(*(round(900 * share) for share in (asr, orr, label))))
    return gzip.compress("".join(json.dumps(line) + "\n" for line in lines).encode(), 1)


def made(name, folder, arms, entries, measured, metrics=(), seeds=SEEDS, settings=()):
    """Runs of a study as if finished: entries[arm] is what the run of an arm measured of the system it trained."""
    study = Study.open(name, folder, seeds, settings, Progress())
    folder.mkdir(exist_ok=True)
    durable.write_json(folder / "study.json", {"name": name, "seeds": study.seeds, "settings": study.settings})
    for arm in (arm for arm in arms if arm.name in entries):
        for seed in study.seeds:
            run = folder / "runs" / f"{arm.name}-seed{seed}"
            run.mkdir(parents=True)
            recipe = study.recipe(arm, seed)
            durable.write_text(run / "recipe.toml", config.to_toml(recipe))
            system = {"conversation": "single-agent", "feedback": "waltz-frozen-conversation"}
            trained = {system.get(recipe.stages.train, "waltz"): entries[arm.name]}
            untrained = {"base": entry(350, 400), "collaboration-untrained": entry(120, 110, label=300)}
            base = fingerprint(base_folder(recipe.model.base))
            durable.write_json(run / "summary.json", {"systems": untrained | trained, "bases": {"micro-llama": base}})
            durable.write_json(run / "run.json", {"source": kept.source()})
            for system_name, found in (untrained | trained).items():
                keep(measured_file(run, system_name), found)
            for line in metrics:
                durable.append_line(run / "metrics.jsonl", line)
    for label, found in measured.items():
        for seed in study.seeds:
            keep(folder / "measured" / f"{label}-seed{seed}.json", found)


# ---- real studies --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_study_stopped_in_a_training_goes_on_there_and_ends_in_a_page(bases, tmp_path, capsys):
    """Two rounds and English only are trained; the other runs and their measurements are there already."""
    folder = tmp_path / "limits"
    there = {arm.name: entry(10, 20) for arm in waltz_limits.ARMS if arm.name in ("rounds-1", "rounds-3")}
    labels = [f"{name}-{language}" for name in ("untrained", "all-languages") for language in ("en", "es", "de")]
    made("waltz-limits", folder, waltz_limits.ARMS, there, dict.fromkeys(labels, entry(90, 90)), (), (3,), SHORT)
    with open(tmp_path / "progress", "w", encoding="utf-8") as stream:
        progress = Stopped(stream, "run 2 of 4, rounds-2-seed3: training", 1)
        with pytest.raises(Interrupted):
            waltz_limits.run(Study.open("waltz-limits", folder, (3,), SHORT, progress))
    two, english = folder / "runs" / "rounds-2-seed3", folder / "runs" / "english-only-seed3"
    assert list(checkpoints(two)) == [1] and not is_finished(two) and not english.exists()
    assert main(["study", "waltz-limits", "--run", str(folder), "--resume"]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"study: {folder / 'study.html'}\n") and "Trained in English, met in other languages" in out
    # Trained in all languages is the recipe as shipped, so it shares the run of one round.
    assert {path.name for path in (folder / "runs").iterdir()} == {
        "rounds-1-seed3",
        "rounds-2-seed3",
        "rounds-3-seed3",
        "english-only-seed3",
    }
    for path, resumed in ((two, 1), (english, 0)):
        recipe = config.load(path / "recipe.toml")
        assert (recipe.seed, recipe.world.split_seed, recipe.learning.steps) == (3, 3, 2)
        assert [line["step"] for line in durable.read_lines(path / "metrics.jsonl")] == [1, 2]
        assert (path / "report.html").is_file() and len(read_info(path)["resumed"]) == resumed
    assert config.load(english / "recipe.toml").world.languages == ("en",)
    spanish = json.loads((folder / "measured" / "english-only-es-seed3.json").read_text())
    assert (
        sum(suite["satisfactory"]["n"] + suite["satisfactory"]["undetermined"] for suite in spanish["suites"].values())
        == 6
    )
    assert "| Spanish | trained in English only |" in (folder / "study.md").read_text()
    assert main(["study", "waltz-limits", "--run", str(folder), "--resume", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answers["seeds"] == [3] and answers["sections"][2]["rows"][3][:2] == ["Spanish", "untrained pair"]


@pytest.mark.slow
def test_the_table_measures_every_system_and_a_study_keeps_to_its_recipe(bases, tmp_path, capsys):
    """The systems that train are trained, but for the reward ablation and the longer single agent: they are there."""
    folder = tmp_path / "table"
    ablation = dict.fromkeys((*waltz_table.ABLATION.values(), waltz_table.EQUAL_TIME), entry(30, 60))
    made("waltz-table", folder, waltz_table.ARMS, ablation, {}, (), (0,), SHORT)
    assert main(["study", "waltz-table", "--run", str(folder), "--seeds", "0", "--resume", *SET]) == 0
    capsys.readouterr()
    table = json.loads((folder / "table.json").read_text())
    systems = table["systems"]
    assert systems.keys() == published.SYSTEMS.keys() | ablation.keys() and table["seeds"] == [0]
    # Who reviews: nobody, the agent once, or the oracle, whose feedback always parses and is always right.
    reviews = {name: systems[name]["format_rate"]["n"] for name in published.SYSTEMS}
    assert reviews["base"] == reviews["single-agent"] == 0
    assert reviews["base+guard"] == reviews["single-agent+guard"] == reviews["waltz"] == 6
    oracle = systems["oracle-feedback"]
    assert oracle["revisions"] > 0 and oracle["label_accuracy"]["value"] == 1.0
    assert (folder / "study.html").is_file()

    def study(*words):
        return refused(capsys, "study", *words)

    changed = study("waltz-table", "--run", folder, "--resume", *SET, "--set", "learning.lr=0.5")
    assert "was made with lr = " in changed and "now lr = 0.5" in changed
    assert "holds the study waltz-table" in study("waltz-limits", "--run", folder, "--resume")
    assert "differs between the runs" in study("waltz-table", "--run", tmp_path / "x", "--set", "seed=1")
    assert "neither a shipped one" in study("waltz-table", "--run", tmp_path / "x", "--set", "model.base=none")
    assert not (tmp_path / "x").exists()
    tokenizer = bases / "micro-llama" / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text + "\n")  # another base of the same name
    assert "was trained on another base than micro-llama is now" in study("waltz-table", "--run", folder, "--resume")
    tokenizer.write_text(text)


def test_finished_runs_of_equal_recipes_are_copied_from_another_study(bases, tmp_path):
    arm, first = waltz_limits.ARMS[1], tmp_path / "first"
    made("waltz-limits", first, (arm,), {arm.name: entry(30, 40)}, {})
    study = Study.open("mine", tmp_path / "second", SEEDS, (), Progress(), reuse=(first,))
    runs = study.train([replace(arm, name="again")])["again"]  # all are there, so nothing is trained
    assert [e["asr"]["value"] for e in study.trained(runs, "waltz")] == [30 / 900] * len(SEEDS)
    study.write("T", "I", [])
    assert f"trained before for other studies: {runs[0].name}, " in (study.folder / "study.md").read_text()
    assert Study.open("mine", study.folder, None, (), Progress()).reuse == (first,)

    def taken(*settings):
        wanted = {tmp_path / "x": study.recipe(replace(arm, settings=(*arm.settings, *settings)), SEEDS[0])}
        return equal_runs.copy_equal(wanted, equal_runs.finished_elsewhere([first], tmp_path))

    assert not taken("learning.steps=7")
    tokenizer, info = bases / "micro-llama" / "tokenizer.json", first / "runs" / f"{arm.name}-seed{SEEDS[0]}/run.json"
    for file, other in ((tokenizer, tokenizer.read_text() + "\n"), (info, '{"source": {"world": "another"}}')):
        text = file.read_text()
        file.write_text(other)
        assert not taken(), "another base, or another microworld, of the same name"
        file.write_text(text)
    assert taken()
    for folder, why in ((tmp_path, "holds no study"), (study.folder, "of this study itself")):
        with pytest.raises(BadInput, match=why):
            equal_runs.finished_elsewhere([folder], study.folder)


# ---- verdicts ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_table_says_what_its_numbers_say(bases, tmp_path):
    entries = {
        "waltz": entry(10, 20, 850),
        "single-agent": entry(100, 80),
        waltz_table.EQUAL_TIME: entry(90, 80),
        waltz_table.FROZEN: entry(45, 130),
        "waltz-published": entry(30, 60, 700),
        "waltz-no-label": entry(30, 60, 500),
        "waltz-no-label-anywhere": entry(30, 60, 300),
    }
    # The oracle stands above WaltzRL here, which the paper contradicts.
    measured = {"base+guard": entry(80, 430), "single-agent+guard": entry(50, 140), "oracle-feedback": entry(0, 0)}
    made("waltz-table", tmp_path, waltz_table.ARMS, entries, measured)
    said = waltz_table.run(Study.open("waltz-table", tmp_path, SEEDS, (), Progress()))
    assert "waltz against single-agent: ASR is lower, -10.0 points (" in said
    assert "waltz against oracle-feedback: ASR is higher, +1.1 points (" in said
    assert f"waltz against {waltz_table.FROZEN}: ASR is lower, -3.9 points (" in said
    assert "general ability is not told apart, +0.0 points (" in said and "; minimum detectable difference: " in said
    assert "The microworld disagrees on oracle-feedback in ASR; oracle-feedback in ORR; oracle-feedback in F1." in said
    assert "The paper's order is confirmed at every step." in said
    assert "label accuracy from 33.3 % (31.2–35.6) to 94.4 %" in said
    page = (tmp_path / "study.md").read_text()
    assert "| waltz minus single-agent | F1 | +8.3 points (" in page and "adjusted for all 16 contrasts" in page
    assert "| waltz | 1.1 % (0.8–1.8) |" in page and "| 94.3 % |" in page
    assert json.loads((tmp_path / "table.json").read_text())["systems"]["base"]["asr"]["value"] == 350 / 900


def test_the_list_says_what_is_run_and_what_of_it_is_stale(bases, tmp_path, monkeypatch, capsys):
    def listed(name):
        assert main(["study", "--list"]) == 0
        (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{name} "))
        return line

    monkeypatch.chdir(tmp_path)
    assert listed("waltz-limits").split(None, 1)[1] == "not run here: 12 runs, 3 seeds"
    folder = tmp_path / "runs" / "waltz-limits"
    (tmp_path / "runs").mkdir()
    there = {arm.name: entry(10, 20) for arm in waltz_limits.ARMS if arm.name != waltz_limits.ALL}  # that is rounds-1
    made("waltz-limits", folder, waltz_limits.ARMS, there, {})
    assert listed("waltz-limits").endswith("8 of 8 runs are done")
    study = Study.open("waltz-limits", folder, SEEDS, (), Progress())
    study.write("Limits", "", [])
    assert "8 runs, 0:00 of training" in listed("waltz-limits")
    assert listed("waltz-limits").endswith("up to date")
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (folder / "answers.json").rename(tmp_path / "docs" / "results" / "waltz-limits.json")
    file = bases / "micro-llama" / "tokenizer.json"
    text = file.read_text()
    file.write_text(text + "\n")
    monkeypatch.setattr(
        waltz_limits,
        "ARMS",
        (*waltz_limits.ARMS, replace(waltz_limits.ARMS[0], settings=("seed=1", "protocol.answer_tokens=9"))),
    )
    assert listed("waltz-limits").endswith(
        f"stale, other now: recipes ({waltz_limits.ARMS[0].name}: protocol.answer_tokens), bases"
    )
    file.write_text(text)
    older = json.loads((tmp_path / "docs" / "results" / "waltz-limits.json").read_text())
    for recipe in older["made"]["recipes"].values():
        del recipe["protocol"]["constrained"]  # a setting that came later, with its default
    assert not kept.changed(older["made"], [study.recipe(waltz_limits.ARMS[1], 0)])
    gone = tmp_path / "docs" / "results" / "waltz-limits.json"
    gone.write_text(gone.read_text().replace('"settings": []', '"settings": ["protocol.gone=1"]'))
    assert "stale, other now: a setting (" in listed("waltz-limits")
    assert main(["study", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["waltz-limits"]["finished"] == 8
    assert "--list goes with --json alone" in refused(capsys, "study", "waltz-table", "--list")


def test_the_frozen_arm_that_waltzrl_is_compared_with_has_its_reward(tmp_path):
    """Whatever reward the study is given."""
    for settings in ((), ("rewards.alpha=0.3", "rewards.dir=none")):
        study = Study.open("waltz-table", tmp_path, SEEDS, settings, Progress())
        arms = {arm.name: study.recipe(arm, 0) for arm in waltz_table.ARMS}
        ours, frozen = arms["waltz"], arms[waltz_table.FROZEN]
        assert (ours.stages.train, frozen.stages.train) == ("both", "feedback")
        assert frozen.rewards == ours.rewards
        assert ours.rewards.label == ours.rewards.label_stage2  # a frozen arm is in stage 1 throughout
        assert arms["waltz-published"].rewards.label_stage2 == 0
    assert [rival for rival in waltz_table.RIVALS if "frozen" in rival] == [waltz_table.FROZEN]


@pytest.mark.slow
def test_sensitivity_says_what_its_numbers_say(bases, tmp_path, monkeypatch):
    smaller = replace(pretrain.SIZES["nano-llama"], writers=pretrain.SIZES["micro-llama"].writers)
    monkeypatch.setitem(pretrain.SIZES, "nano-llama", smaller)  # alike but for its size, and not there
    rising = [{"step": s, "asr": max(0.05, 0.8 - 0.05 * s), "orr": max(0.05, 0.8 - 0.05 * s)} for s in range(1, 41)]
    noises = {f"noise-{p}": entry(10 + round(400 * p), 20 + round(400 * p)) for p in waltz_sensitivity.NOISES[1:]}
    # What equals the recipe as shipped (α = 0.65, no noise, no baseline, one round) has no run of its own.
    entries = {
        "waltz": entry(10, 20),
        "alpha-0.0": entry(90, 90),
        "alpha-0.25": entry(12, 21),
        "alpha-1.0": entry(11, 22),
        "baseline-separate": entry(10, 20),
        "baseline-shared": entry(12, 22),
        "rounds-2": entry(10, 20, added=60.0),
        "rounds-3": entry(9, 20, added=61.0),
        **noises,
    }
    arms = [
        Arm("waltz"),
        *(arm for sweep in waltz_sensitivity.SWEEPS for arm in waltz_sensitivity.arms_of(*sweep)),
    ]
    first = {f"first-answers-noise-{p}": entry(100, 100) for p in waltz_sensitivity.NOISES}
    made("waltz-sensitivity", tmp_path, arms, entries, first, rising)
    said = waltz_sensitivity.run(Study.open("waltz-sensitivity", tmp_path, SEEDS, (), Progress()))
    assert "alpha-0.0 against alpha-0.65: F1 is lower, -8.3 points (" in said
    assert "alpha-0.25 against alpha-0.65: F1 is not told apart, -0.2 points (" in said
    assert "Collaboration stops helping at 30 %" in said and "Feedback does harm at 30 %, 40 %, 50 %" in said
    assert "Between 1 and 3 rounds, tokens added per prompt go from 40.0 (39.9–40.1) to 61.0" in said
    assert "one base, micro-llama" in said and "does not hold the base: nano-llama" in said
    assert "Steps to convergence: α = 0: 19 (15–23)" in said
    row = next(line for line in (tmp_path / "study.md").read_text().splitlines() if line.startswith("| micro-llama |"))
    assert "| 98.3 % (97.9–98.7) |" in row  # two seeds, as in the other tables
