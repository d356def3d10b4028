"""MACPO's supervised starts: whose answers the student begins with, for how long, and what agents are told."""

from __future__ import annotations

import pytest
from macpo import recipe

from choreo.config import load
from choreo.environments.microworld.habits import READ_FIRST
from choreo.errors import BadInput
from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.answers import AnswerWriter, weak_labels
from choreo.methods.macpo.phase_data import confident, phase_data
from choreo.methods.macpo.schedule import Phase, schedule
from choreo.methods.macpo.sizing import steps_of
from choreo.methods.macpo.split import split_prompts
from choreo.text.thinking import THOUGHT
from choreo.types import Turn


def test_the_consensus_of_three_is_learnt_and_a_failed_answer_has_no_vote(tiny_folder):
    three = {"teachers": (str(tiny_folder),) * 3}
    made = recipe(tiny_folder, agents=three, rounds={"count": 0}, tuning={"labels": "consensus"})
    loaded, data = MacpoAgents.load(made), split_prompts(made)
    writer = AnswerWriter(made, loaded, data.unlabelled)
    said = [("no", "yes", "yes"), ("a", "b", "c"), ("do it", "do it", "no"), ("x", "y", "z")] + [("", "", "")] * 2
    failed = [(), (), (0, 1), (0, 1, 2), (), ()]
    for k, teacher in enumerate(loaded.teachers):
        turns = [
            Turn(
                teacher.positive, 0, (), teacher.spell(own[k]), (), 0, own[k], True, failure=THOUGHT if k in bad else ""
            )
            for own, bad in zip(said, failed, strict=True)
        ]
        writer.cache.get(f"0/{teacher.positive}/answer/0", lambda turns=turns: turns)
    learnt = weak_labels(writer)
    assert [loaded.student.chat.decode(ids) for kept in learnt[:3] for ids in kept] == ["yes", "a", "no"]
    assert learnt[3] == []


def test_a_vote_takes_three_and_the_confident_loss_several_epochs_of_the_student_alone():
    with pytest.raises(BadInput, match="three teachers or more"):
        load("consensus", ('agents.teachers=["weak-llama", "weak-qwen"]',))
    with pytest.raises(BadInput, match="student_epochs of 2 or more"):
        load("confident-loss", ("tuning.student_epochs=1",))
    teacher, student = schedule(load("confident-loss"))
    base = load("naive-sft")
    assert steps_of(load("confident-loss"), teacher) == steps_of(base, teacher)
    assert steps_of(load("confident-loss"), student) == 4 * steps_of(base, student)


@pytest.mark.parametrize("setting", ["data.words=60", "data.format=hh-rlhf"])
def test_what_is_said_of_a_file_takes_a_file(setting):
    with pytest.raises(BadInput, match="names none"):
        load("macpo", (setting,))


def test_agents_are_told_to_read_first_where_the_microworld_wants_readings(tmp_path):
    assert load("macpo").system == READ_FIRST and load("macpo-coins").system == ""
    assert load("macpo", ("data.file=pairs.jsonl",)).system == ""
    assert load("macpo", ("writing.system=Be brief.",)).system == "Be brief."


def test_the_confident_loss_shifts_weight_to_the_students_own_answers(tiny_folder):
    made = recipe(tiny_folder, tuning={"epochs": 3, "confident": 0.5})
    loaded, data = MacpoAgents.load(made), split_prompts(made)
    writer = AnswerWriter(made, loaded, data.unlabelled)
    weak = phase_data(writer, data, Phase(0, "student", "+")).units
    assert confident(writer, weak, 0) is weak
    for epoch, a in ((1, 0.25), (2, 0.5)):
        mixed = confident(writer, weak, epoch)
        own = writer.write(0, loaded.student, "student+", f"own-{epoch}", temperature=0.0)
        assert [[set(s.advantages) for s in pair] for pair in mixed] == [[{1 - a}, {a}]] * len(weak)
        assert [(w.ids, o.ids) for w, o in mixed] == [(w.ids, t.ids) for w, t in zip(weak, own, strict=True)]
        assert all(w.context == o.context for w, o in mixed)
    assert confident(writer, weak[1:], 2) == mixed[1:]  # the answer to the first prompt failed
