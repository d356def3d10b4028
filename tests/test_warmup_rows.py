"""What the warm start of the feedback agent learns from: labels, made reviews, and what an epoch draws."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from choreo.data.reviews import load
from choreo.errors import BadInput
from choreo.methods.waltz.warmup.answers import weights_of
from choreo.methods.waltz.warmup.draw import epoch_rows, in_turns, measured_rows, repeats, set_apart, verdict_named
from choreo.methods.waltz.warmup.settings import Warmup
from choreo.text.feedback import parse_feedback, render_feedback
from choreo.text.made_reviews import made_review
from choreo.types import Feedback, Kind, Prompt, ReviewedAnswer, Verdict

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
