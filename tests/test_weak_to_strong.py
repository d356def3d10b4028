"""`choreo world w2s`: the gates of a world, measured on real starts of small agents."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from choreo import config
from choreo.cli import main
from choreo.experiment.weak_to_strong import GATES, Gate, OneSeed, auc, flipped, highest_correlation
from choreo.methods.macpo.answers import AnswerWriter
from choreo.methods.macpo.schedule import STUDENT, Phase
from choreo.methods.macpo.split import LabelledPrompt
from choreo.runs.progress import Progress
from choreo.types import Prompt

SMALL = (
    "data.labels=24",
    "data.prompts=30",
    "agents.student=nano-llama",
    'agents.teachers=["nano-llama", "nano-qwen"]',
    "world.heldout_prompts=6",
    "world.reading=true",
    "tuning.epochs=1",
    "tuning.negative_epochs=1",
)


@pytest.mark.slow
def test_every_gate_is_decided_by_the_mean_of_its_measure(tmp_path, capsys):
    file = tmp_path / "w2s.json"
    sets = [part for setting in SMALL for part in ("--set", setting)]
    first = main(["world", "w2s", *sets, "--seeds", "20", "--out", str(file), "--json"])
    alone = json.loads(capsys.readouterr().out.splitlines()[-1])
    code = main(["world", "w2s", *sets, "--seeds", "20,21", "--out", str(file), "--json"])
    out = capsys.readouterr()
    found = json.loads(out.out.splitlines()[-1])
    assert first in (0, 1) and found["seeds"]["20"] == alone["seeds"]["20"] and "seed 20" not in out.err
    assert main(["world", "w2s", "--out", str(file)]) == 2 and "another recipe" in capsys.readouterr().err
    assert [gate["name"] for gate in found["gates"]] == [gate.name for gate in GATES]
    for gate, shown in zip(GATES, found["gates"], strict=True):
        values = [found["seeds"][seed][gate.name] for seed in ("20", "21")]
        if None not in values:  # too few right answers for a probe, or for a correlation
            assert shown["value"] == pytest.approx(sum(values) / 2)
            assert shown["passes"] == gate.passes(shown["value"])
    assert code == (0 if all(gate["passes"] for gate in found["gates"]) else 1)
    measured = found["seeds"]["20"]
    assert measured["labels"] == 24 and measured["prompts"] == 30
    assert set(measured["teachers"]) == {"teacher-1", "teacher-2"}
    assert measured["curve"]["labels"] == [8, 15, 30] and measured["curve"]["weak"][-1] == measured["naive"]


def test_who_is_measured_has_begun_anew_and_the_others_go_on_as_they_were(tmp_path, monkeypatch):
    recipe = config.load("macpo", SMALL)
    measured: list[dict] = []

    def reward(lab, name):
        agent = lab.agents[name]
        measured.append(agent.team.state_dict(agent.positive)["weights"])
        return 0.0

    monkeypatch.setattr(OneSeed, "reward", reward)
    with Progress() as progress:
        labs = []
        for name in "ab":
            (tmp_path / name).mkdir()
            labs.append(OneSeed.of(recipe, tmp_path / name, progress))
        used = labs[0]
        rows = used.data.ceiling[:20]
        student, teacher = used.agents[STUDENT], used.agents["teacher-2"]
        blind = replace(used.data, ceiling=())
        for agent in (teacher, student):
            used.train(AnswerWriter(recipe, used.agents, blind.unlabelled), blind, Phase(0, agent.name, "+"))
        before = [agent.team.state_dict(agent.positive) for agent in (student, teacher)]
        for lab in labs:
            lab.of_student(rows)
            lab.of_teacher("teacher-2", rows)
        after = [agent.team.state_dict(agent.positive) for agent in (student, teacher)]
    for one, two in zip(measured[:2], measured[2:], strict=True):
        assert all(torch.equal(one[name], two[name]) for name in one)
    for name, untrained in zip((STUDENT, "teacher-2"), measured[:2], strict=True):
        assert any(not torch.equal(value, used.begun[name]["weights"][key]) for key, value in untrained.items())
    for one, two in zip(before, after, strict=True):
        assert one["version"] == two["version"]
        assert all(torch.equal(value, two["weights"][key]) for key, value in one["weights"].items())


def test_a_gate_is_open_where_it_has_no_bound_and_shut_for_what_was_not_measured():
    assert Gate("g", "", least=0.2).passes(5) and not Gate("g", "", least=0.2).passes(0.1)
    assert Gate("g", "", most=0.2).passes(-5) and not Gate("g", "", most=0.2).passes(0.3)
    assert not Gate("g", "", least=0.2, most=1).passes(float("nan"))


def test_as_many_labels_are_flipped_as_are_wrong():
    rows = [LabelledPrompt(Prompt(str(n), "?", "benign", "s"), "right", "wrong") for n in range(40)]
    found = flipped(rows, 7, np.random.default_rng(3))
    assert [row.chosen for row in found].count("wrong") == 7 and [r.prompt for r in found] == [r.prompt for r in rows]
    assert found != flipped(rows, 7, np.random.default_rng(4))


def test_auc_by_hand():
    assert auc(np.array([3.0, 2.0]), np.array([1.0, 2.0])) == (1 + 1 + 1 + 0.5) / 4
    assert auc(np.array([]), np.array([1.0])) is None


def test_correlation_by_hand():
    one, two = [True, True, False, False], [True, False, True, False]
    assert highest_correlation(np.array([one, two, one])) == pytest.approx(1)
    assert highest_correlation(np.array([one, two])) == pytest.approx(0)
    assert highest_correlation(np.array([one])) == 0 and np.isnan(highest_correlation(np.array([one, [True] * 4])))


def test_only_a_recipe_of_macpo_in_the_microworld_is_measured(capsys):
    assert main(["world", "w2s", "waltz"]) == 2
    assert "expected one of macpo" in capsys.readouterr().err
    assert main(["world", "w2s", "macpo-no-hn"]) == 2
    assert 'expected "twin", got "none"' in capsys.readouterr().err
