"""Published preference formats: what is read, what is left out and why, and where a file is wrong."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from choreo.data.preferences import FORMATS, PreferencePair, load
from choreo.errors import BadInput

HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How?\n\nAssistant:"
PKU = {
    "prompt": "How?",
    "response_0": "So.",
    "response_1": "No.",
    "is_response_0_safe": False,
    "is_response_1_safe": True,
    "better_response_id": 0,
    "safer_response_id": 1,
}


def lines(tmp_path: Path, *rows: object) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return file


def test_hh_dialogues_share_all_but_the_last_answer(tmp_path):
    loaded = load(
        lines(
            tmp_path,
            {"chosen": f"{HH} So.", "rejected": f"{HH} No."},
            {"chosen": f"{HH} So.", "rejected": f"{HH} So. "},
            {"chosen": f"{HH} So.", "rejected": "\n\nHuman: Ho\n\nAssistant: No."},
        )
    )
    turns = (("user", "Hi"), ("assistant", "Hello"), ("user", "How?"))
    assert loaded.format == "hh-rlhf" and loaded.rows == [PreferencePair(turns, "So.", "No.", 1)]
    assert loaded.counts == {"the two answers are equal": 1, "the two dialogues differ before their last answer": 1}
    assert loaded.read == 3


def test_pku_takes_the_safer_answer_and_of_two_alike_the_better(tmp_path):
    alike = {**PKU, "is_response_0_safe": True}
    odd = {**PKU, "safer_response_id": 0}
    loaded = load(lines(tmp_path, PKU, alike, odd))
    assert [(pair.chosen, pair.rejected) for pair in loaded.rows] == [("No.", "So."), ("So.", "No.")]
    assert loaded.counts == {"the safer answer is the one marked unsafe": 1}


def test_macpo_arrays_hold_answers_or_pairs_and_lines_are_counted(tmp_path):
    rows = [
        {"instruction": "USER: Hi ASSISTANT: Hello USER: How?", "input": "", "output": ["So.", "No."]},
        {"instruction": "How?", "input": "In a game.", "output": "So."},
    ]
    file = tmp_path / "train.json"
    file.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    first, second = load(file).rows
    assert first == PreferencePair((("user", "Hi"), ("assistant", "Hello"), ("user", "How?")), "So.", "No.", 2)
    assert second == PreferencePair((("user", "How?\nIn a game."),), "So.", None, 10)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"chosen": 3, "rejected": "x"}', ":1: chosen: expected text, got int"),
        ('{"chosen": "hello", "rejected": "x"}', ":1: chosen: expected a dialogue that begins with Human:"),
        ('{"chosen": "\\n\\nHuman: x", "rejected": "x"}', ":1: rejected: expected a dialogue"),
        ('\n{"a": 1}', ":2: no known format has the fields a"),
        ("[1]", ":1: expected an object, got int"),
        ('{"chosen": ', ":1: not JSON"),
        ("", ": holds no rows"),
        ('[{"instruction": "x", "input": "", "output": ["a"]}]', ":1: output: expected an answer, or a list"),
        ('[{"instruction": "x", "input": "", "output": "a"}] more', ":1: more after the end"),
    ],
)
def test_a_row_that_does_not_fit_is_one_line_with_its_place(tmp_path, text, said):
    file = lines(tmp_path, text)
    with pytest.raises(BadInput) as wrong:
        load(file)
    assert str(wrong.value).startswith(f"{file}{said}") and "\n" not in str(wrong.value)
    with pytest.raises(BadInput, match="No such file"):
        load(tmp_path / "none.json")
    with pytest.raises(BadInput, match="no format 'x'"):
        load(file, "x")


def test_a_row_of_any_other_shape_is_bad_input_and_nothing_else(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    values = [None, True, 0, 1, 2, "", "x", "USER: a", f"{HH} a", [], ["a", "b"], ["a", 1], {}]
    names = sorted({*PKU, "chosen", "rejected", "instruction", "input", "output"})
    for _ in range(500):
        row = {name: rng.choice(values) for name in rng.sample(names, rng.randint(0, len(names)))}
        file = lines(tmp_path, row)
        for format in (None, *FORMATS):
            try:
                assert load(file, format).read == 1
            except BadInput as wrong:
                assert str(wrong).startswith(f"{file}:1: ")


@pytest.mark.skipif("CHOREO_DATA" not in os.environ, reason="CHOREO_DATA names no folder of published data")
def test_the_published_pairs_are_read_whole():
    loaded = load(Path(os.environ["CHOREO_DATA"]) / "hh_rlhf_harmless_test_pairs.jsonl")
    assert loaded.format == "hh-rlhf" and loaded.read > 1000
    assert len(loaded.rows) > 0.9 * loaded.read
    assert all(pair.turns[-1][0] == "user" and pair.chosen != pair.rejected for pair in loaded.rows)
