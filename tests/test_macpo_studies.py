"""The MACPO studies: every verdict against rounds made by hand."""

from __future__ import annotations

import gzip
import io
import json
import sys
from functools import cache

import pytest
import warm

from choreo import config
from choreo.errors import BadInput, Interrupted
from choreo.evaluation.intervals import estimate, wilson
from choreo.experiment.run import run_recipe
from choreo.files import durable
from choreo.methods.macpo.split import split_prompts
from choreo.models.hub import fingerprint
from choreo.runs.bar import ProgressBar
from choreo.runs.folder import Run, is_finished
from choreo.runs.heldout import games_of, measured_file
from choreo.runs.progress import Progress
from choreo.studies import (
    macpo_baselines,
    macpo_negatives,
    macpo_noise,
    macpo_stability,
    macpo_table,
    macpo_teachers,
    macpo_transfer,
)
from choreo.studies.shared.arms import Study
from choreo.studies.shared.parallel_runs import train_in_parallel
from choreo.studies.shared.rounds import Measured, by_round, changes, gap_recovered, of_seeds

SEEDS = (0, 1, 2)
POLICIES = ("student+", "teacher-1+", "teacher-2+")


def rate(right: int, n: int = 600) -> dict:
    return estimate(right / n, n, *wilson(right, n))


def agent(right: int, refused: int = 60) -> dict:
    length = estimate(12.0, 600, 11.5, 12.5)
    return {
        "reward": rate(right),
        "asr": rate(20),
        "orr": rate(refused),
        "f1": rate(right),
        "general": rate(right),
        "degenerate": rate(0),
        "refusal_rate": rate(200),
        "refused_benign": rate(refused),
        "length": length,
        "distinct_2": 0.5,
        "perplexity": 1.2,
    }


def rounds(*rights: int, refused: int = 0) -> list[dict]:
    """One run whose student has `rights` of 600 right, round by round; its teachers 60 fewer."""
    return [
        {"round": number, "agents": {p: agent(r - 60 * (p != "student+"), 60 + refused * number) for p in POLICIES}}
        for number, r in enumerate(rights)
    ]


@cache
def games(right: float, refused: float) -> bytes:
    """The file of 1000 games with a share of right answers, and 100 of them on feared prompts, with one of refusals."""

    def game(number: int, kind: str, suite: str, wrong: bool) -> dict:
        prompt = {"id": f"{kind}{number}", "text": "?", "kind": kind, "suite": suite}
        verdict = {"unsafe": False, "overrefuse": wrong}
        return {"prompt": prompt, "verdicts": [verdict], "reviews": [], "feedback": []}

    helped = 100 - round(100 * refused)
    general = [game(n, "general", "general", n >= round(1000 * right) - helped) for n in range(900)]
    played = general + [game(n, "benign", "sensitive_benign", n >= helped) for n in range(100)]
    return gzip.compress("".join(json.dumps(one) + "\n" for one in played).encode(), 1)


@pytest.fixture
def bases(tmp_path, monkeypatch):
    """Folders by the names of the bases that the recipes want, with a fingerprint and nothing else."""
    for name in ("micro-llama", "weak-llama", "weak-qwen", "weak-neox"):
        (tmp_path / "bases" / name).mkdir(parents=True)
        (tmp_path / "bases" / name / "config.json").write_text("{}")
    monkeypatch.setattr("choreo.models.resolve.BASES", tmp_path / "bases")
    monkeypatch.setattr("choreo.studies.shared.arms.check", lambda recipe: None)  # it loads the bases
    return tmp_path / "bases"


def made(name, folder, arms, found, bases):
    """Runs of a study as if finished: found(arm) is one run's rounds."""
    study = Study.open(name, folder, SEEDS, (), Progress())
    folder.mkdir()
    durable.write_json(folder / "study.json", {"name": name, "seeds": SEEDS, "settings": ()})
    for arm in arms:
        for seed in SEEDS:
            run = folder / "runs" / f"{arm.name}-seed{seed}"
            run.mkdir(parents=True)
            recipe = study.recipe(arm, seed)
            durable.write_text(run / "recipe.toml", config.to_toml(recipe))
            known = {base: fingerprint(bases / base) for base in recipe.bases()}
            durable.write_json(run / "summary.json", {"rounds": found(arm), "bases": known})
            durable.write_json(run / "run.json", {"source": {}})
            for line in found(arm):
                for policy, figures in line["agents"].items():
                    file = measured_file(run, policy, line["round"])
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps(figures))
                    games_of(file).write_bytes(games(figures["reward"]["value"], figures["orr"]["value"]))
            for number, first in ((0, None), (1, 0.5 + seed / 10), (1, None), (2, 0.8)):
                shares = {} if first is None else {"taken/teacher-1": first, "taken/teacher-2": 1 - first}
                durable.append_line(run / "metrics.jsonl", {"round": number, "agent": "student+", **shares})
    return study, {arm.name: [folder / "runs" / f"{arm.name}-seed{seed}" for seed in SEEDS] for arm in arms}


def test_a_gap_is_recovered_against_the_weak_teacher_and_the_ceiling_of_its_own_seed():
    macpo, ceiling = [rounds(480, 540), rounds(480, 546)], [rounds(570), rounds(570)]
    found = gap_recovered(macpo, macpo, ceiling)  # the teachers began at 420
    assert found["value"] == pytest.approx(((540 - 420) / 150 + (546 - 420) / 150) / 2) and found["n"] == 2
    assert gap_recovered(macpo, macpo, [rounds(420), rounds(400)])["value"] is None
    assert of_seeds(gap_recovered(macpo, macpo, [rounds(570), rounds(400)]), macpo).endswith(", 1 of 2 seeds")


def test_rounds_are_compared_by_prompt(bases, tmp_path):
    study, runs = made(
        "macpo-table", tmp_path / "study", macpo_table.ARMS[:1], lambda arm: rounds(480, 540, 538), bases
    )
    shown, tested = by_round(study, runs, "macpo", "Up?")
    assert [row[0] for row in shown.table.rows] == list(POLICIES)
    assert "macpo after round 1 against macpo at the start: reward is higher, +10.0 points (" in tested.verdict
    assert "macpo after round 2 against macpo after round 1: reward is not told apart, -0.3 points (" in tested.verdict
    assert "macpo, teacher-2+ after round 2 against macpo, teacher-2+ at the start: reward is higher" in tested.verdict
    assert len(tested.table.rows) == 9 and "all 9 contrasts" in tested.verdict
    assert [(str(c.a), str(c.b)) for c in changes("x", ["student+"], 1)] == [("x after round 1", "x at the start")]
    assert str(Measured("x", -2)) == "x before the last round"
    file = measured_file(runs["macpo"][1], "teacher-2+", 1)
    file.unlink()
    with pytest.raises(
        BadInput, match=r"macpo-seed1: lacks the held-out games of teacher-2\+ after round 1, .*--overwrite`"
    ):
        by_round(study, runs, "macpo", "Up?")


@pytest.mark.slow
def test_the_table_says_what_its_rounds_say(bases, tmp_path):
    ends = {
        "naive-sft-longer": (480, 481, 482),
        "consensus": (492,),
        "ceiling": (570,),
        "macpo": (480, 540, 564),
        "macpo-no-iw": (480, 540, 563),
        "macpo-published": (480, 540, 558),
    }

    def found(arm):
        return rounds(*ends.get(arm.name, (480, 500, 510)), refused=0 if arm.name == "macpo-published" else 60)

    made("macpo-table", tmp_path / "study", macpo_table.ARMS, found, bases)
    said = macpo_table.run(Study.open("macpo-table", tmp_path / "study", SEEDS, (), Progress()))
    assert "macpo against macpo at the start: reward is higher, +14.0 points (" in said
    assert "PGR of macpo between the first teacher at its start and the ceiling: 0.96 (" in said
    assert "macpo against naive-sft-longer: 13.7 % won, 0.0 % lost" in said
    assert "macpo against consensus: 14.0 % won, 2.0 % lost" in said
    assert "that teacher wrote 60% in the first round and 80% in the last (mean over seeds); a filter" in said
    answers = json.loads((tmp_path / "study" / "answers.json").read_text())
    whose = next(one for one in answers["sections"] if one["heading"].startswith("Whose answers"))
    assert [(number, teacher) for number, teacher, *_ in whose["rows"]] == [
        (1, "teacher-1"),
        (1, "teacher-2"),
        (2, "teacher-1"),
        (2, "teacher-2"),
    ]
    (table,) = [one for one in answers["sections"] if one["heading"] == "The table"]
    assert [row[0] for row in table["rows"]][:2] == ["naive-sft", "macpo"]  # naive SFT is MACPO's start
    assert "macpo against macpo-no-iw: reward is not told apart, +0.2 points" in said
    assert "adjusted for all 11 contrasts" in said
    assert "macpo against macpo-published: ORR is higher, +20.0 points" in said
    table = (tmp_path / "study" / "study.md").read_text()
    assert "12.0 (11.7–12.3)" in table  # tokens are no share


@pytest.mark.slow
def test_ten_rounds_tell_loss_from_none(bases, tmp_path):
    def found(arm):
        later = (560, 540, 520, 500, 480, 460, 440) if arm.name == "macpo" else (560,) * 7
        return rounds(480, 520, 540, 560, *later)

    made("macpo-stability", tmp_path / "study", macpo_stability.ARMS, found, bases)
    said = macpo_stability.run(Study.open("macpo-stability", tmp_path / "study", SEEDS, (), Progress()))
    assert "macpo against macpo after round 3: reward is lower, -20.0 points" in said
    alone = "macpo-published against macpo-published after round 3: reward is not told apart, +0.0 points"
    assert alone in said and "p is adjusted for all 6 contrasts of the table" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "study", "said"),
    [
        ("macpo-noise", macpo_noise, "macpo-0.5 against naive-sft-0.5: reward is higher, +10.0 points"),
        ("macpo-teachers", macpo_teachers, "three against one: reward is higher, +10.0 points"),
        ("macpo-negatives", macpo_negatives, "prompt against twin: reward is lower, -10.0 points"),
        ("macpo-baselines", macpo_baselines, "macpo against spin-with-likelihood: reward is higher, +10.0 points"),
        ("macpo-transfer", macpo_transfer, "macpo against naive-sft: general ability is higher, +11.1 points"),
    ],
)
def test_the_other_studies_say_what_their_rounds_say(bases, tmp_path, name, study, said):
    def found(arm):
        best = arm.name.startswith("macpo") or arm.name in ("three", "twin")
        return rounds(480, 560) if best else rounds(480, 500)

    made(name, tmp_path / "study", study.ARMS, found, bases)
    assert said in study.run(Study.open(name, tmp_path / "study", SEEDS, (), Progress()))


@pytest.mark.parametrize(
    "study",
    [macpo_baselines, macpo_negatives, macpo_noise, macpo_stability, macpo_table, macpo_teachers, macpo_transfer],
)
def test_every_arm_has_prompts_enough(study, tmp_path):
    opened = Study.open("any", tmp_path / "study", SEEDS, (), Progress())
    recipes = {(r.world, r.data): r for r in (opened.recipe(arm, 0) for arm in study.ARMS)}
    for recipe in recipes.values():
        both = split_prompts(recipe)
        assert (len(both.labelled), len(both.unlabelled)) == (recipe.data.labels, recipe.data.prompts)


SHORT = (
    "world.train_prompts=60",
    "world.heldout_prompts=2",
    "data.labels=6",
    "data.prompts=6",
    "writing.answer_tokens=6",
    "ceiling=false",
)


@pytest.mark.slow
def test_runs_side_by_side_end_like_runs_alone_and_one_that_fails_stops_the_rest(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(warm.command(tmp_path / "python")))
    agents = (f'agents.student="{tiny_folder}"', f'agents.teachers=["{tiny_folder}"]')
    paths = [tmp_path / f"run-{seed}" for seed in range(3)]
    for seed, path in enumerate(paths):
        Run.create(path, config.load("naive-sft", (*SHORT, *agents, f"seed={seed}"))).close()
    said = io.StringIO()
    train_in_parallel(paths[:2], 2, tmp_path / "logs", Progress([ProgressBar(said)]))
    assert [is_finished(path) for path in paths] == [True, True, False] and "runs, 2 at a time 2/2" in said.getvalue()
    with Run.create(tmp_path / "alone", config.load(paths[1] / "recipe.toml")) as run:
        run.finish(run_recipe(run, Progress([ProgressBar(io.StringIO())])))
    alone, beside = (json.loads((path / "summary.json").read_text()) for path in (tmp_path / "alone", paths[1]))
    assert alone["rounds"] == beside["rounds"]
    (paths[2] / "recipe.toml").write_text("method = 1\n")
    with pytest.raises(BadInput, match=r"run-2: its training failed and said: choreo: .*recipe.toml.*method"):
        train_in_parallel([paths[2]], 2, tmp_path / "logs", Progress([ProgressBar(io.StringIO())]))
    stopped = Progress([ProgressBar(io.StringIO())])
    stopped.interrupted = True
    Run.create(tmp_path / "last", config.load(paths[1] / "recipe.toml")).close()
    with pytest.raises(Interrupted):
        train_in_parallel([tmp_path / "last"], 2, tmp_path / "logs", stopped)
    assert not is_finished(tmp_path / "last")
