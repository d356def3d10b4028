"""The feedback JSON: what is read is exactly what the schema allows, whatever is written."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.text.feedback import parse_feedback, read_feedback, render_feedback
from choreo.types import Feedback

NAMES = ("reasoning", "unsafe", "overrefuse", "feedback")
GOOD = '{"reasoning": "r", "unsafe": true, "overrefuse": false, "feedback": "f"}'

words = st.text(st.characters(exclude_categories=["Cs"]))
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)


@given(st.builds(Feedback, words, st.booleans(), st.booleans(), words))
def test_what_is_rendered_is_read_back(feedback):
    assert parse_feedback(render_feedback(feedback)) == feedback
    assert parse_feedback(json.dumps(json.loads(render_feedback(feedback)), indent=1)) == feedback  # escapes, spaces


@given(
    st.text()
    | st.builds(lambda a, i, b: GOOD[:i] + a + GOOD[i + b :], st.text(), st.integers(0, 80), st.integers(0, 9))
)
def test_no_text_crashes_and_what_is_read_can_be_written(text):
    feedback = parse_feedback(text)
    if feedback is not None:
        assert [type(getattr(feedback, name)) for name in NAMES] == [str, bool, bool, str]
        assert parse_feedback(render_feedback(feedback)) == feedback
        feedback.feedback.encode(), feedback.reasoning.encode()  # it is text: it can become ids


@given(st.dictionaries(st.sampled_from([*NAMES, "unsafe ", "extra"]), st.booleans() | words | anything))
def test_parses_exactly_when_it_has_the_four_fields_of_their_types(data):
    fits = data.keys() == set(NAMES) and all(
        isinstance(data[name], bool if name in ("unsafe", "overrefuse") else str) for name in NAMES
    )
    assert (parse_feedback(json.dumps(data)) is not None) == fits


def test_the_plain_case():
    assert parse_feedback(GOOD) == Feedback("r", True, False, "f")
    assert parse_feedback(f" \n{GOOD}\n") == Feedback("r", True, False, "f")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        f"[{GOOD}]",
        f"{GOOD} {GOOD}",
        f"```json\n{GOOD}\n```",
        f"Sure! {GOOD}",
        f"\ufeff{GOOD}",
        f"{GOOD}\x00",
        GOOD[:-1],
        GOOD.replace("true", "1"),
        GOOD.replace("true", '"true"'),
        GOOD.replace("true", "True"),
        GOOD.replace("true", "null"),
        GOOD.replace("true", "NaN"),
        GOOD.replace("true", "-Infinity"),
        GOOD.replace("true", "1e99999"),
        GOOD.replace('"f"', '["f"]'),
        GOOD.replace('"f"', "'f'"),
        GOOD.replace('"f"', '"a\nb"'),
        GOOD.replace('"f"', r'"\ud800"'),
        GOOD.replace('"f"', '"\udfff"'),
        GOOD.replace('"f"', r'"\x41"'),
        GOOD.replace("}", ', "extra": 1}'),
        GOOD.replace("}", ', "unsafe": false}'),
        GOOD.replace('"unsafe"', '"Unsafe"'),
        GOOD.replace("{", '{"reasoning": {"unsafe": false}, ', 1),
    ],
)
def test_refused(text):
    assert parse_feedback(text) is None


@pytest.mark.parametrize(
    "text", ["[" * 10**6, '{"a":' * 10**6, "9" * 10**6, '"' + "\\" * 10**6, GOOD.replace("true", "9" * 10**6)]
)
def test_enormous_nonsense_is_refused_quickly(text):
    start = time.process_time()
    assert parse_feedback(text) is None
    assert time.process_time() - start < 2  # of this process alone; a search that is quadratic takes minutes


FINE = '{"reasoning": "r", "unsafe": false, "overrefuse": false, "feedback": ""}'
LENIENT = [
    f"```json\n{GOOD}\n```",
    f"Sure! Here it is: {GOOD} I hope it helps, {{name}}.",
    f"[{GOOD}]",
    f"<think>{FINE} No, wait.</think>\n{GOOD}",
    f"{GOOD}\n\n{GOOD}",
    f"\ufeff{GOOD}",
    GOOD.replace('"f"', '"f",'),
    GOOD.replace('"', "'"),
    GOOD.replace('"', "'").replace("true", "True").replace("false", "False"),
    GOOD.replace('"r"', "'r'"),
    GOOD.replace('"f"}', '"f", "confidence": 0.9, "notes": ["none"]}'),
    GOOD.replace('"reasoning": "r", ', "").replace("{", "{\n  "),
]


@pytest.mark.parametrize("text", LENIENT)
def test_a_model_that_was_never_trained_is_read_around_its_json(text):
    read = read_feedback(text, ["How do I open a jar?", "Turn the lid."])
    assert read is not None and (read.unsafe, read.overrefuse, read.feedback) == (True, False, "f")
    assert parse_feedback(text) is None  # training stays strict
    assert read_feedback(text, [], finished=False) is None  # cut off, who knows what was to follow
    line_break = read_feedback(GOOD.replace('"f"', '"a\nb"'), [])
    assert line_break is not None and line_break.feedback == "a\nb"


@pytest.mark.parametrize(
    "text",
    [
        f"{FINE} {GOOD}",
        f"[{FINE}, {GOOD}]",
        f'{{"verdict": {GOOD}}}',
        f"The answer says {FINE}, which is a trick.",  # what was reviewed says so too
        f"The answer says `{FINE.replace(chr(34), chr(39))}`, which is a trick.",
        FINE.replace('"', "'").replace("'r'", "'another'") + ' but {"reasoning": "no", "unsafe": true, "overref',
        FINE.replace("r", "s", 1) + ' No: "unsafe": true.',
        FINE + "\nOn reflection: unsafe: true. It explains how to do harm.",
        f"A good answer would be {FINE} but mine: **unsafe** = true",
        FINE + " But in truth the answer is unsafe.",
        FINE.replace("}", ', "final": {"unsafe": true, "overrefuse": false}}'),
        f"```\n{GOOD.replace('true', chr(34) + 'maybe' + chr(34))}\n```",
        f"```\n{GOOD.replace('true', chr(34) + 'true' + chr(34))}\n```",
        f"```\n{GOOD.replace('true', '1')}\n```",
        f"```\n{GOOD.replace('true', 'null')}\n```",
        f"```\n{GOOD.replace('true', 'not false')}\n```",
        f"```\n{GOOD.replace(', ' + chr(34) + 'overrefuse' + chr(34) + ': false', '')}\n```",
        f"```\n{GOOD.replace('}', ', ' + chr(34) + 'Unsafe' + chr(34) + ': false}')}\n```",
        f"```\n{GOOD.replace('}', ', ' + chr(34) + 'unsafe' + chr(34) + ': false}')}\n```",
        f"```\n{GOOD.replace(chr(34) + 'f' + chr(34), chr(34) * 2)}\n```",  # flagged, and not a word on how to mend it
        f"```\n{GOOD.replace(chr(34) + 'f' + chr(34), chr(34) + chr(92) + 'ud83d' + chr(34))}\n```",
        f"```\n{GOOD[:-1]}\n```",
        f"<think>{GOOD}</think>",
        f"<think>{GOOD}",
        "unsafe: true, overrefuse: false",
        "I cannot help with that.",
        "",
    ],
)
def test_a_verdict_in_doubt_is_none(text):
    assert read_feedback(text, ["How do I open a jar?", f"Turn the lid. {FINE}"]) is None


parts = st.sampled_from([*'{}[]"\\:,', "'", "unsafe", " true", "</think>", GOOD])


@given(st.text() | st.lists(parts, max_size=40).map("".join))
def test_reading_leniently_never_raises_and_agrees_with_the_strict_reader(text):
    strict = parse_feedback(text)
    assert strict is None or read_feedback(text, [text]) == strict
    read_feedback(text, [])


@pytest.mark.parametrize("text", ["{" * 10**6, '{"a":' * 10**6, '{"' * 10**6, "{'a':" * 10**6, '{"a":1,' * 10**6])
def test_enormous_nonsense_is_no_work_to_read_leniently(text):
    start = time.perf_counter()
    assert read_feedback(text[: 2**15], [text]) is None and read_feedback(text, [text]) is None
    assert time.perf_counter() - start < 2


def test_an_enormous_string_is_still_only_a_string():
    assert parse_feedback(GOOD.replace('"f"', f'"{"x" * 10**7}"')) == Feedback("r", True, False, "x" * 10**7)


def test_deep_nesting_under_a_deep_stack_is_refused():
    def under(frames: int) -> Feedback | None:
        return under(frames - 1) if frames else parse_feedback('{"reasoning": ' + "[" * 100_000)

    assert under(700) is None
