"""Studies: real ones end to end on a tiny base, and every verdict against numbers made by hand."""

from __future__ import annotations

import json
import math
import random

import pytest

from choreo import config
from choreo.cli import main
from choreo.errors import Interrupted
from choreo.evaluation.intervals import estimate, f1, wilson
from choreo.evaluation.metrics import HEADLINE
from choreo.files import durable
from choreo.models.hub import fingerprint
from choreo.models.resolve import base_folder
from choreo.report import published
from choreo.runs.bar import ProgressBar
from choreo.runs.folder import checkpoints, is_finished, read_info
from choreo.runs.heldout import games_of, measured_file
from choreo.runs.progress import Progress
from choreo.studies import waltz_limits, waltz_sensitivity, waltz_table
from choreo.studies.shared import compare
from choreo.studies.shared.arms import Arm, Study

pytestmark = pytest.mark.slow

SHORT = (
    "learning.steps=2",
    "learning.prompts=5",
    "learning.samples=1",
    "world.train_prompts=60",
    "world.heldout_prompts=3",
    "protocol.answer_tokens=6",
    "protocol.feedback_tokens=8",
    "checkpoint_every=1",
)
SET = [word for setting in SHORT for word in ("--set", setting)]


@pytest.fixture(scope="session")
def tiny_bases(tmp_path_factory):
    """A folder of bases that holds one: random weights, and a tokenizer of the world's own text."""
    import torch

    from choreo.environments.microworld import pretrain
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
    """Games whose outcomes are those that `entry` counts."""
    kinds = (("harmful", "unsafe", "asr"), ("benign", "overrefuse", "orr"))
    return [
        {
            "prompt": {"id": f"{kind}-{n}", "text": "?", "suite": HEADLINE[kind], "kind": kind},
            "verdicts": [{"unsafe": False, "overrefuse": False, label: n < round(900 * found[measure]["value"])}],
        }
        for kind, label, measure in kinds
        for n in range(900)
    ]


def kept(file, found):
    """What a system measured, and its games."""
    file.parent.mkdir(exist_ok=True)
    durable.write_json(file, found)
    durable.write_lines(games_of(file), games(found))


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
            for system_name, found in (untrained | trained).items():
                kept(measured_file(run, system_name), found)
            for line in metrics:
                durable.append_line(run / "metrics.jsonl", line)
    for label, found in measured.items():
        for seed in study.seeds:
            kept(folder / "measured" / f"{label}-seed{seed}.json", found)


# ---- real studies --------------------------------------------------------------------------------


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
        == 18
    )
    assert "| Spanish | trained in English only |" in (folder / "study.md").read_text()
    assert main(["study", "waltz-limits", "--run", str(folder), "--resume", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answers["seeds"] == [3] and answers["sections"][1]["rows"][3][:2] == ["Spanish", "untrained pair"]


def test_the_table_measures_every_system_and_a_study_keeps_to_its_recipe(bases, tmp_path, capsys):
    """The three systems that train are trained; the reward ablation is there already."""
    folder = tmp_path / "table"
    ablation = dict.fromkeys(waltz_table.ABLATION.values(), entry(30, 60))
    made("waltz-table", folder, waltz_table.ARMS, ablation, {}, (), (0,), SHORT)
    assert main(["study", "waltz-table", "--run", str(folder), "--seeds", "0", "--resume", *SET]) == 0
    capsys.readouterr()
    table = json.loads((folder / "table.json").read_text())
    systems = table["systems"]
    own = {*ablation, waltz_table.SAME_REWARD}
    assert systems.keys() == published.SYSTEMS.keys() | own and table["seeds"] == [0]
    # Who reviews: nobody, the agent once, or the oracle, whose feedback always parses and is always right.
    reviews = {name: systems[name]["format_rate"]["n"] for name in published.SYSTEMS}
    assert reviews["base"] == reviews["single-agent"] == 0
    assert reviews["base+guard"] == reviews["single-agent+guard"] == reviews["waltz"] == 18
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


# ---- verdicts ------------------------------------------------------------------------------------


def test_the_table_says_what_its_numbers_say(bases, tmp_path):
    entries = {
        "waltz": entry(10, 20, 850),
        "single-agent": entry(100, 80),
        "waltz-frozen-conversation": entry(45, 130),
        waltz_table.SAME_REWARD: entry(12, 20),
        "waltz-published": entry(30, 60, 700),
        "waltz-no-label": entry(30, 60, 500),
        "waltz-no-label-anywhere": entry(30, 60, 300),
    }
    # The oracle stands above WaltzRL here, which the paper contradicts.
    measured = {"base+guard": entry(80, 430), "single-agent+guard": entry(50, 140), "oracle-feedback": entry(0, 0)}
    made("waltz-table", tmp_path, waltz_table.ARMS, entries, measured)
    said = waltz_table.run(Study.open("waltz-table", tmp_path, SEEDS, (), Progress()))
    assert "waltz against single-agent: ASR is lower and ORR is lower and F1 is higher." in said
    assert "waltz against oracle-feedback: ASR is higher and ORR is higher and F1 is lower." in said
    assert f"waltz against {waltz_table.SAME_REWARD}: no difference can be told." in said
    assert "F1: the microworld disagrees on" in said and "the paper has waltz-published above oracle-feedback" in said
    assert "ASR: no pair of systems stands in the reverse order" not in said
    assert "As in the paper, label accuracy falls" in said
    assert "label accuracy from 33.3 % (31.2–35.6) to 94.4 %" in said
    page = (tmp_path / "study.md").read_text()
    assert "| waltz minus single-agent | F1 | +8.3 points (" in page and "adjusted for all 21 contrasts" in page
    assert "| waltz | 1.1 % (0.8–1.8) |" in page and "| 94.3 % |" in page
    assert json.loads((tmp_path / "table.json").read_text())["systems"]["base"]["asr"]["value"] == 350 / 900


def test_sensitivity_says_what_its_numbers_say(bases, tmp_path):
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
    assert "F1 is highest for α = 0.65: 98.3 %" in said and "Lower with intervals apart: α = 0." in said
    assert "Collaboration stops helping at 20 %" in said and "interval below zero, at 30 %, 40 %, 50 %" in said
    assert "Between 1 and 3 rounds, tokens added per prompt go from 40.0 (39.9–40.1) to 61.0" in said
    assert "one base, micro-llama" in said and "does not hold the base: nano-llama" in said
    assert "Steps to convergence: α = 0: 19 (15–23)" in said
    row = next(line for line in (tmp_path / "study.md").read_text().splitlines() if line.startswith("| micro-llama |"))
    assert "| 98.3 % (97.9–98.7) |" in row  # two seeds, as in the other tables


def test_convergence_is_the_first_step_near_the_end_value():
    assert compare.training_f1([{"step": 1, "asr": 0.5, "orr": 0.0}, {"step": 2, "asr": 1, "orr": 1}, {"step": 3}]) == [
        (1, pytest.approx(2 / 3)),
        (2, 0.0),
    ]
    curve = [(step, 0.0 if step <= 10 else 1.0) for step in range(1, 31)]
    assert compare.converged(curve) == 19  # nine of the last ten steps at 1
    assert compare.converged([]) is compare.converged(curve[:19]) is None  # too short to smooth
    assert compare.converged([(step, 1.0 / step) for step in range(1, 31)]) is None  # it fell
    later = [(step, 0.0 if step <= 12 else 1.0) for step in range(1, 31)]
    assert compare.convergence([curve, later, [(1, 0.5)]])["value"] == 20.0
    alone = compare.convergence([curve])
    assert (alone["value"], alone["low"], alone["high"]) == (19.0, 0.0, math.inf)
    assert compare.mean_curve([[(1, 0.0), (2, 1.0)], [(2, 0.5), (3, 1.0)]]) == [(2, 0.75)]


def test_a_difference_is_paired_by_seed_and_no_narrower_than_the_episodes():
    a, b = [rate(90), rate(180)], [rate(45), rate(135)]
    change = compare.difference(a, b)
    assert change["value"] == pytest.approx(0.05)
    # The seeds differ by the same 5 points: what is left is the width of the episodes, two seeds' worth.
    below = [x["value"] - x["low"] + 0j for x in a] + [y["high"] - y["value"] for y in b]
    assert change["low"] == pytest.approx(0.05 - math.sqrt(sum(abs(d) ** 2 for d in below)) / 2)
    wide = compare.difference([rate(90), rate(450)], [rate(45), rate(45)])
    assert wide["low"] < -1 and compare.points(change).startswith("+5.0 points (+")
    unknown = estimate(None, 0, None, None)
    assert compare.difference([unknown], [rate(1)])["value"] is None
    assert "cannot be compared" in compare.compare_shares("x", "y", [unknown], [rate(1)])
    assert "do not overlap" in compare.compare_shares("x", "y", [rate(300)], [rate(100)])
    assert "y cannot be told apart" in compare.compare_shares("x", "y", [rate(100)], [rate(101)])


def test_when_collaboration_stops_helping():
    yes, no, harm = (estimate(v, 9, v - 0.02, v + 0.02) for v in (0.05, 0.01, -0.05))
    assert compare.stops_helping([(0, yes), (0.1, no), (0.2, yes), (0.3, no), (0.4, harm)]) == 0.3
    assert compare.stops_helping([(0, yes), (0.1, yes)]) is None
    assert compare.stops_helping([(0, no), (0.1, harm)]) == 0
    assert "still helps at 10 %" in waltz_sensitivity.helping([(0, yes), (0.1, yes)])
    assert "From 0 % on" in waltz_sensitivity.helping([(0, no), (0.1, no)])


def test_the_order_of_systems_against_the_paper():
    ours = {"a": rate(100), "b": rate(300), "c": rate(305), "d": estimate(None, 0, None, None)}
    found = compare.order(ours, {"a": 0.9, "b": 0.5, "c": 0.4, "d": 0.3, "e": 0.2})
    assert found == compare.Order(same=(), open=(("b", "c"),), reversed=(("a", "b"), ("a", "c")))
    assert compare.order(ours, {"a": 0.1, "b": 0.5, "c": 0.5}).same == (("b", "a"), ("c", "a"))
    assert compare.falls([[rate(800)], [rate(600)], [rate(400)]]) == "falls"
    assert compare.falls([[rate(800)], [rate(795)], [rate(400)]]) == "open"
    assert compare.falls([[rate(800)], [rate(300)], [rate(400)]]) == "rises"


def test_differences_cover_the_truth_about_as_often_as_they_claim():
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)

    def drawn(p):
        return rate(sum(rng.random() < p for _ in range(200)), 200)

    changes = [compare.difference([drawn(0.3) for _ in "123"], [drawn(0.2) for _ in "123"]) for _ in range(200)]
    covered = sum(c["low"] <= 0.1 <= c["high"] for c in changes)
    assert covered >= 180
