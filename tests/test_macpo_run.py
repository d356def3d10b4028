"""MACPO: what is measured, and a run from its recipe to its page."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pytest
from macpo import recipe

from choreo.environments.microworld.world import World
from choreo.errors import BadInput
from choreo.experiment.report import write_report
from choreo.experiment.run import check, evaluate_run
from choreo.files import durable
from choreo.methods.base import Measurement
from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.measure import _nats, describe, distinct, duel, pgr, warnings
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.run import run_macpo
from choreo.runs.bar import ProgressBar
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.heldout import heldout_games
from choreo.runs.progress import Progress
from choreo.studies.shared.paired import tables
from choreo.types import Episode, Prompt, Turn, Verdict

# ── what is measured ─────────────────────────────────────────────────────────────────────────────


def summary_of(measured: Measurement) -> dict[str, Any]:
    return {**measured.extra, "systems": measured.systems}


def judged(kind: str, text: str, unsafe: bool | None, overrefuse: bool | None, ident: str = "") -> Episode:
    suite = {"harmful": "adversarial_harmful", "benign": "sensitive_benign"}.get(kind, "general")
    prompt = Prompt(ident or f"{kind}/{text}", "?", kind, suite)  # type: ignore[arg-type]
    turn = Turn("student+", 0, (1,), tuple(range(len(text.split()))), (), 1, text, True)
    return Episode(prompt, 0, (turn,), verdicts=(Verdict(unsafe, overrefuse),))


def test_measures_by_hand():
    refusal = World.refusal(Prompt("", "", "harmful", "vanilla_harmful"))
    episodes = [
        judged("harmful", refusal, False, False),
        judged("harmful", "well then", None, None),
        judged("benign", refusal, False, True),
        judged("general", "seven of nine", False, False),
    ]
    figures = describe(episodes, [(2.0, 4), (0.0, 0), (1.0, 2), (3.0, 6)], [True, False, True, False])
    assert figures["reward"]["value"] == 0.5  # what is left open earns nothing
    assert figures["asr"]["value"] == 0 and figures["asr"]["undetermined"] == 1
    assert figures["orr"]["value"] == 1
    assert figures["refusal_rate"]["value"] == 0.5 and figures["refused_benign"]["value"] == 0.5
    assert figures["perplexity"] == pytest.approx(math.exp(0.5))
    assert distinct(2, ["a b a b", "a"]) == pytest.approx(2 / 3) and distinct(2, ["a"]) is None
    assert (pgr(0.8, 0.6, 0.85), pgr(0.8, 0.6, 0.6)) == (pytest.approx(0.8), None)


def test_a_duel_by_hand():
    ours = dict(enumerate([True, True, False, None]))
    theirs = dict(enumerate([True, False, True, False]))
    found = duel(ours, theirs)
    assert {name: e["value"] for name, e in found.items()} == {"win": 0.25, "tie": 0.5, "lose": 0.25}
    with pytest.raises(ValueError, match="same prompts"):
        duel(ours, {**theirs, 4: True})


def test_the_monitor_warns_of_refusals_and_of_length(tiny_folder):
    def line(refused: float, length: float) -> dict:
        return {"agents": {"student+": {"refused_benign": {"value": refused}, "length": {"value": length}}}}

    made = recipe(tiny_folder)
    assert warnings([line(0.1, 10), line(0.15, 12)], made) == []
    refusals, words = warnings([line(0.1, 10), line(0.5, 30)], made)
    assert refusals == "student+ refuses 50 % of harmless prompts; at the start it was 10 %"
    assert words == "student+ writes 30 tokens an answer; at the start it was 10"


# ── a run from its recipe to its page ────────────────────────────────────────────────────────────


@pytest.mark.slow
def test_a_run_is_measured_round_by_round_against_its_ceiling_and_ends_in_a_page(tiny_folder, tmp_path, monkeypatch):
    made = recipe(tiny_folder, ceiling=True, rounds={"refusals": "as-labelled", "count": 2}, watch={"length": 1.001})
    path = tmp_path / "run"

    def killed(*_):
        raise KeyboardInterrupt

    with Run.create(path, made) as run, Progress() as progress:
        monkeypatch.setattr("choreo.methods.macpo.run.warnings", killed)  # after a checkpoint, before its figures
        with pytest.raises(KeyboardInterrupt):
            run_macpo(made, run, progress)
    assert checkpoints(path) and not (path / "rounds.json").exists()
    monkeypatch.undo()
    with Run.open(path) as run, Progress() as progress:
        summary = summary_of(run_macpo(made, run, progress))
        durable.write_json(path / "summary.json", summary)
    assert run.info["measuring"] > 0
    assert [line["round"] for line in summary["rounds"]] == [0, 1, 2]
    assert summary["rounds"][0]["agents"].keys() == {
        f"{name}{side}" for name in ("student", "teacher-1", "teacher-2") for side in "+-"
    }
    for line in summary["rounds"]:  # every agent's games are kept, and what is computed from them is what was reported
        for policy, figures in line["agents"].items():
            rewards = tables(heldout_games(path, policy, line["round"]))["satisfactory"]
            assert sum(map(bool, rewards.values())) == figures["reward"]["value"] * figures["reward"]["n"]
    last = [game["answers"][-1]["text"] for game in heldout_games(path, "student+", 2)]
    assert [game["answers"][-1]["text"] for game in heldout_games(path, "macpo")] == last
    assert len(heldout_games(path, "base")) == len(last)
    ends = {name: system["reward"]["value"] for name, system in summary["systems"].items()}
    weak = summary["rounds"][0]["agents"]["teacher-1+"]["reward"]["value"]
    assert ends.keys() == {"base", "ceiling", "macpo"}
    assert summary["pgr"] == pgr(ends["macpo"], weak, ends["ceiling"])
    page = write_report(path).read_text(encoding="utf-8")
    for heading in ("Does everyone improve?", "What is left out of it?", "How alike are positives and negatives?"):
        assert heading in page


@pytest.mark.slow
def test_a_run_told_to_stop_at_a_warning_ends_after_that_round(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("choreo.methods.macpo.run.warnings", lambda rounds, recipe: ["too long"] * (len(rounds) == 2))
    made = recipe(tiny_folder, rounds={"count": 3}, watch={"stop": True})
    with Run.create(tmp_path / "run", made) as run, Progress() as progress:
        summary = summary_of(run_macpo(made, run, progress))
    assert [line["round"] for line in summary["rounds"]] == [0, 1]
    assert summary["warnings"] == ["round 1: too long"]


@pytest.mark.slow
def test_held_out_prompts_too_long_for_any_agent_are_left_out_before_training(tiny_folder, tmp_path, capsys):
    short = tmp_path / "short"  # a teacher with fewer positions than the student
    shutil.copytree(tiny_folder, short)
    shape = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(shape | {"max_position_embeddings": 192}))
    asked = tmp_path / "asked.jsonl"
    rows = [{"prompt": words, "kind": "benign"} for words in ("How do I open a jar?", "1 2 3 4 5 " * 20, "x y " * 900)]
    asked.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    def made(**prompts) -> MacpoRecipe:
        return recipe(
            tiny_folder,
            judge={"kind": "offline"},
            agents={"teachers": (str(tiny_folder), str(short))},
            prompts={"heldout": {"asked": {"file": str(asked), **prompts}}},
        )

    check(made())
    with Run.create(tmp_path / "run", made()) as run, Progress([ProgressBar()]) as progress:
        measured = run_macpo(made(), run, progress)
    summary, played = summary_of(measured), measured.episodes
    assert "! 2 of 3 prompts to measure on are left out" in capsys.readouterr().err
    assert all([e.prompt.text for e in episodes] == [rows[0]["prompt"]] for episodes in played.values())
    assert summary["rounds"][-1]["agents"]["teacher-2+"]["suites"].keys() == {"asked-benign"}
    with Progress() as progress:
        again, _ = evaluate_run(tmp_path / "run", "heldout", progress)
    assert again["systems"] == summary["systems"]
    asked.write_text(json.dumps(rows[2]), encoding="utf-8")
    with pytest.raises(BadInput, match=r"no prompt to measure on .* lower writing.answer_tokens"):
        check(made())


def test_an_answer_too_long_in_the_students_tokens_is_in_no_perplexity(tiny_folder):
    loaded = MacpoAgents.load(recipe(tiny_folder))
    prompt = Prompt("p", "How?", "benign", "b")
    loaded.student.team.positions = len(loaded.student.context(prompt)) + 3

    def said(*ids: int) -> Episode:
        return Episode(prompt, 0, (Turn("t", 0, (), ids, (), 1, "", True),))

    found = _nats(loaded.student, loaded.teachers[0], [said(5, 6, 7), said(5, 6, 7, 8), said(9)])
    assert [count for _, count in found] == [3, 0, 1] and found[1] == (0, 0) and found[0][0] > 0
