"""The feedback JSON: what is read is exactly what the schema allows, whatever is written."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from choreo.text.feedback import parse_feedback, render_feedback
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
    start = time.perf_counter()
    assert parse_feedback(text) is None
    assert time.perf_counter() - start < 2


def test_an_enormous_string_is_still_only_a_string():
    assert parse_feedback(GOOD.replace('"f"', f'"{"x" * 10**7}"')) == Feedback("r", True, False, "x" * 10**7)


def test_deep_nesting_under_a_deep_stack_is_refused():
    def under(frames: int) -> Feedback | None:
        return under(frames - 1) if frames else parse_feedback('{"reasoning": ' + "[" * 100_000)

    assert under(700) is None
