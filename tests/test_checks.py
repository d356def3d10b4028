"""Checks of answers to general prompts: what counts as right, where a row is wrong, and how they are measured."""

import re
from dataclasses import replace

import pytest
from data_rows import write

from choreo.data import prompts
from choreo.data.overlap import overlaps
from choreo.errors import BadInput
from choreo.evaluation.metrics import measure
from choreo.text.checks import check_of, is_right, last_number, list_items
from choreo.types import Episode, Prompt, TextTurn, Verdict

ABILITY = "choreo:english/ability.jsonl"


@pytest.mark.parametrize(
    ("check", "right", "wrong"),
    [
        ({"any": ["Paris"]}, ["It is PARIS.", "paris"], ["Parisian food", "London", ""]),
        ({"all": ["red", "blue"], "none": ["green"]}, ["Blue, then red"], ["red", "red blue green"]),
        ({"number": 43}, ["17 + 26 = 43.", "43", "It is 43.0"], ["26 + 17", "430", "4,3", "forty"]),
        ({"number": 1250}, ["1,250 people"], ["1 250"]),
        ({"number": 8}, ["A spider has eight legs."], ["It has 6, not eight."]),
        ({"number": -3}, ["x = -3", "x = −3"], ["10-3"]),
        ({"pattern": r"^\W*HELLO\W*$"}, ['"HELLO"'], ["hello", "HELLO there"]),
        (
            {"items": 3},
            ["Sure:\n1. a\n2. b\n3. c", "- a\n* b\n• c", "A) x\nB) y\nC) z", "Apple, pear, and plum.", "a\nb\nc"],
            ["a, b", "- a"],
        ),
        ({"words": [1, 1]}, ["Madrid."], ["", "In Madrid"]),
        ({"any": ["Madrid"], "words": [1, 1]}, ["Madrid"], ["Rome", "It is Madrid"]),
    ],
)
def test_what_counts_as_right(check, right, wrong):
    made = check_of(check)
    assert [answer for answer in right if not is_right(made, answer)] == []
    assert [answer for answer in wrong if is_right(made, answer)] == []


def test_numbers_and_lists_that_are_not_there():
    assert last_number("no digits") is None and last_number("H2O") is None and list_items("") == 0


@pytest.mark.parametrize(
    ("check", "said"),
    [
        ({}, "expected an object with some of any, all, none, number, pattern, items, words, got {}"),
        (3, "expected an object"),
        ({"has": ["x"]}, "got 'has'"),
        ({"any": "Paris"}, "any: expected a list of texts, got 'Paris'"),
        ({"pattern": "("}, "pattern: expected a regular expression"),
        ({"number": True}, "number: expected a number"),
        ({"words": [3, 1]}, "words: expected a list of two whole numbers"),
    ],
)
def test_a_wrong_check_names_its_line(tmp_path, check, said):
    file = write(tmp_path / "a.jsonl", {"prompt": "Hi?", "kind": "general", "check": check})
    with pytest.raises(BadInput, match=re.escape(f"{file}:1: check: ") + ".*" + re.escape(said)):
        prompts.load(file)
    file = write(tmp_path / "b.jsonl", {"prompt": "Hi?", "kind": "benign", "check": {"number": 1}})
    with pytest.raises(BadInput, match="check: is of answers to general prompts, and this one is benign"):
        prompts.load(file)


def test_general_ability_is_measured_by_the_checks_of_the_prompts_that_have_one(tmp_path):
    rows = [{"prompt": f"What is {n} plus 1?", "kind": "general", "check": {"number": n + 1}} for n in range(4)]
    asked = prompts.load(write(tmp_path / "a.jsonl", *rows, {"prompt": "Tell me.", "kind": "general"})).rows

    def episode(prompt: Prompt, answer: str, failure: str = "") -> Episode[TextTurn]:
        turn = TextTurn("conversation", 0, answer, True, failure=failure)
        return Episode(prompt, 0, (turn,), verdicts=(Verdict(False, False),))

    said = ("It is 1.", "<think>2?</think> It is 3.", "3", "", "Well.")
    played = [episode(prompt, text, "" if text else "no text") for prompt, text in zip(asked, said, strict=True)]
    found = measure(played, ability=False)["general"]
    assert (found["value"], found["n"], found["undetermined"]) == (2 / 3, 3, 1) and found["low"] < 2 / 3 < found["high"]
    assert measure(played[:1])["general"]["n"] == 1  # the judge's word, where it knows what is right
    bare = [replace(one, prompt=replace(one.prompt, meaning=None)) for one in played]
    assert measure(bare, ability=False)["general"]["n"] == 0


def test_the_shipped_questions_are_all_checked_and_none_is_trained_on():
    asked = prompts.load(ABILITY).rows
    assert len(asked) == 150 and all(prompt.meaning for prompt in asked)
    assert {prompt.suite for prompt in asked} == {
        f"ability-{s}-general" for s in ("arithmetic", "facts", "formats", "language")
    }
    for name in ("train", "heldout"):
        found = overlaps(prompts.load(f"choreo:english/{name}.jsonl").rows, asked)
        assert [(one.measured.text, one.trained.text) for one in found] == []
    for prompt in asked:  # a question that its own words answer would measure nothing
        assert not is_right(prompt.meaning, "I cannot help with that."), prompt.text
