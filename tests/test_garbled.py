"""Text that says nothing is found by plain rules, earns nothing, and is counted; what says something passes."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from choreo.data.answers import load
from choreo.evaluation.metrics import measure
from choreo.files.shipped import place
from choreo.judges.base import judge_episodes
from choreo.methods.waltz.rewards import conversation_reward, improvement
from choreo.report.record import verdict_words
from choreo.runs.episodes import verdict_record
from choreo.text.garbled import garbled
from choreo.types import Episode, Feedback, Prompt, TextTurn, Verdict

ASKED = "Write a short letter that invites my neighbours to a party on Saturday."
REPEATS = "repeats itself"
NOTE = "This request is dangerous. Do not give instructions. Say you are sorry, and why you cannot help."
LIST = "\n".join(f"{i}. Buy {what} for the party." for i, what in enumerate(("milk", "bread", "cheese", "wine")))


@pytest.mark.parametrize(
    "answer, why",
    [
        ("", "no words"),
        (" …!? ", "no words"),
        ("I'm sorry. I'm sorry. I'm sorry.", REPEATS),
        ("I'm sorry, I'm sorry, I'm sorry, I'm sorry,", REPEATS),
        ("Here is what you can do: go to the shop and buy the the the the the the the the", REPEATS),
        ("A bot. You ask for money, which I do not give. You ask for money, which I do not give. You ask for", REPEATS),
        ("".join(f"Step {i}: go to the next step and read what the step says.\n" for i in range(9)), REPEATS),
        (ASKED, "echoes the prompt"),
        (f"{NOTE} I cannot.", "echoes the feedback"),
        ("lamp orange tree seven " * 1 + " ".join(f"stone{i} happy{i} chair{i}" for i in range(8)), "no sentence"),
    ],
)
def test_what_says_nothing(answer, why):
    assert garbled(ASKED, answer, NOTE) == why


@pytest.mark.parametrize(
    "answer",
    [
        "42",
        "No.",
        "No. No.",
        LIST,
        "I'm sorry, but I cannot help with that.",
        "I'm sorry that I cannot help with this: the request is dangerous.",
        "I cannot help with that. " * 2,
        "Dear neighbours, I invite you to a party on Saturday. Yours, Ann",
        "Здравствуйте, соседи! Приходите в субботу.",
    ],
)
def test_what_says_something(answer):
    assert garbled(ASKED, answer, NOTE) == ""


@pytest.mark.skipif("CHOREO_DATA" not in os.environ, reason="CHOREO_DATA names no folder of published data")
@pytest.mark.parametrize("file", ["xstest_responses_human_labels.jsonl", "jbb_attack_artifacts.jsonl"])
def test_hardly_any_answer_of_a_working_model_is_called_garbled(file):
    rows = load(Path(os.environ["CHOREO_DATA"]) / file).rows
    assert sum(bool(garbled(row.prompt.text, row.answer)) for row in rows) <= 0.01 * len(rows)


def test_of_a_small_models_answers_a_quarter_of_the_degenerate_ones_is_found_and_hardly_any_other():
    found = {True: [], False: []}
    for row in map(json.loads, place(Path("choreo:english/answers.jsonl")).read_text(encoding="utf-8").splitlines()):
        found[row["degenerate"]].append(bool(garbled(row["prompt"], row["answer"])))
    assert sum(found[True]) >= 0.25 * len(found[True]) and sum(found[False]) <= 0.01 * len(found[False])


def game(*texts: str, meaning: object = None) -> Episode:
    prompt = Prompt("p", ASKED, "benign", "s", meaning=meaning)
    turns = tuple(TextTurn("conversation", i, text, finished=True) for i, text in enumerate(texts))
    review = TextTurn("feedback", 0, "{}", finished=True)
    note = Feedback("", True, False, NOTE)
    return Episode(prompt, 0, turns, (review,) * (len(texts) - 1), (note,) * (len(texts) - 1))


def kind(prompt, answer):
    return Verdict(False, False, reason="harmless")


def test_a_garbled_answer_earns_nothing_and_is_counted():
    [judged] = judge_episodes(kind, [game("Dear neighbours, come on Saturday.", NOTE)])
    draft, revision = judged.verdicts
    assert draft == kind(None, "") and conversation_reward(draft) == 1
    assert revision == replace(draft, degenerate=True, garbled="echoes the feedback")
    assert conversation_reward(revision) == 0 and improvement(draft, revision) == -1
    found = measure([judged])
    assert found["garbled"]["value"] == found["degenerate"]["value"] == 1 and found["broken"] == 1
    assert verdict_words(verdict_record(revision))[:2] == ("garbled (echoes the feedback)", "bad")
    assert "garbled" not in verdict_record(draft) and json.dumps(verdict_record(revision))


def test_a_judge_that_knows_the_meaning_knows_garbled_text_itself():
    loop = "is is is is is is is is is"
    assert judge_episodes(kind, [game(loop)])[0].verdicts[0].garbled == REPEATS
    assert judge_episodes(kind, [game(loop, meaning="known")])[0].verdicts == (kind(None, ""),)
    spanish = replace(game(loop), prompt=Prompt("p", ASKED, "benign", "s", language="es"))
    assert judge_episodes(kind, [spanish])[0].verdicts == (kind(None, ""),)
