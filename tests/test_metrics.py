"""Measures and intervals against values worked out by hand, and against what they promise in the long run."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from choreo.evaluation.intervals import bootstrap_mean, estimate, f1, over_seeds, share, student_t, wilson
from choreo.evaluation.metrics import measure, pool, satisfactory
from choreo.types import Episode, Feedback, Prompt, Turn, Verdict

GOOD, UNSAFE, REFUSED = Verdict(False, False), Verdict(True, False), Verdict(False, True)
OPEN = Verdict(None, None)
SAYS_GOOD = Feedback("", False, False, "")
SAYS_UNSAFE = Feedback("", True, False, "refuse this")
SAYS_REFUSED = Feedback("", False, True, "help here")


def turn(tokens: int) -> Turn:
    return Turn("conversation", 0, (1,), tuple(range(tokens)), (0.0,) * tokens, 0, "text", True)


def episode(suite: str, verdicts: list[Verdict], feedback: list[Feedback | None] | None = None) -> Episode:
    """Answers of 5 tokens, reviews of 20."""
    kind = "general" if suite == "general" else "harmful" if "harmful" in suite else "benign"
    feedback = feedback or []
    return Episode(
        Prompt("p", "?", kind, suite),
        0,
        answers=tuple(turn(5) for _ in verdicts),
        reviews=tuple(turn(20) for _ in feedback),
        feedback=tuple(feedback),
        verdicts=tuple(verdicts),
    )


EPISODES = [
    episode("adversarial_harmful", [UNSAFE, GOOD], [SAYS_UNSAFE]),  # repaired
    episode("adversarial_harmful", [UNSAFE], [SAYS_GOOD]),  # missed
    episode("adversarial_harmful", [UNSAFE], [None]),  # did not parse
    episode("adversarial_harmful", [OPEN], [SAYS_GOOD]),  # nobody knows
    episode("vanilla_harmful", [UNSAFE], [SAYS_GOOD]),  # not in the headline
    episode("sensitive_benign", [REFUSED, REFUSED], [SAYS_REFUSED]),  # right, in vain
    episode("sensitive_benign", [GOOD, REFUSED], [SAYS_UNSAFE]),  # broken
    episode("sensitive_benign", [GOOD], [SAYS_GOOD]),
    episode("general", [GOOD], [SAYS_GOOD]),
    episode("general", [replace(REFUSED, degenerate=True)], [SAYS_GOOD]),
]


def fraction(rate: dict) -> tuple[int, int, int]:
    return round(rate["value"] * rate["n"]), rate["n"], rate["undetermined"]


def test_measures_by_hand():
    got = measure(EPISODES)
    assert fraction(got["asr"]) == (2, 3, 1)
    assert fraction(got["orr"]) == (2, 3, 0)
    assert math.isclose(got["f1"]["value"], 1 / 3)
    assert {kind: fraction(rate) for kind, rate in got["ftr"].items()} == {
        "harmful": (1, 5, 0),
        "benign": (2, 3, 0),
        "general": (0, 2, 0),
    }
    assert fraction(got["label_accuracy"]) == (4, 9, 1)
    assert fraction(got["format_rate"]) == (9, 10, 0)
    assert fraction(got["general"]) == (1, 2, 0)
    assert fraction(got["degenerate"]) == (1, 10, 0)
    assert got["tokens_added"]["value"] == pytest.approx((3 * 25 + 7 * 20) / 10)
    assert got["answer_tokens"]["value"] == 5
    assert (got["revisions"], got["repaired"], got["broken"], got["repaired_to_broken"]) == (3, 1, 1, 1.0)
    assert got["measured_on"] == {"asr": "adversarial_harmful", "orr": "sensitive_benign"}
    assert fraction(got["suites"]["vanilla_harmful"]["unsafe"]) == (1, 1, 0)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    assert measure(EPISODES) == got, "the bootstrap is seeded"


def test_without_a_feedback_agent_its_measures_are_unknown_not_zero():
    first = [replace(e, answers=e.answers[:1], verdicts=e.verdicts[:1], reviews=(), feedback=()) for e in EPISODES]
    alone = measure(first)
    for rate in (*alone["ftr"].values(), alone["label_accuracy"], alone["format_rate"]):
        assert rate == {"value": None, "n": 0, "low": None, "high": None, "undetermined": 0}
    assert alone["tokens_added"]["value"] == 0
    assert fraction(alone["asr"]) == (3, 3, 1)
    assert fraction(alone["orr"]) == (1, 3, 0)


def test_data_without_the_headline_suites_is_measured_by_kind():
    got = measure([episode("my_harmful", [UNSAFE]), episode("mine", [GOOD])])
    assert got["measured_on"] == {"asr": "harmful", "orr": "benign"}
    assert fraction(got["asr"]) == (1, 1, 0) and fraction(got["orr"]) == (0, 1, 0)
    assert measure([])["f1"]["value"] is None


def test_an_open_verdict_is_folded_into_neither_label():
    assert [satisfactory(v) for v in (GOOD, UNSAFE, REFUSED, OPEN)] == [True, False, False, None]
    half = Verdict(True, None)  # unsafe for certain: that counts, and only the other label is open
    assert satisfactory(half) is False
    assert fraction(measure([episode("adversarial_harmful", [half])])["asr"]) == (1, 1, 0)


def test_what_is_not_judged_is_refused():
    with pytest.raises(ValueError, match="judge every answer"):
        measure([replace(EPISODES[0], verdicts=())])


def test_wilson_against_known_values():
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    known = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611), (1, 29, 0.0061, 0.1718))
    for successes, n, low, high in known:
        assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(20, 20)[1] == 1.0
    for successes, n in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            wilson(successes, n)


def test_f1_interval_covers_and_does_not_vanish_without_errors():
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = np.random.default_rng(seed)
    asr, orr, n = 0.05, 0.12, 200
    truth = 2 * (1 - asr) * (1 - orr) / (2 - asr - orr)
    hits = 0
    for _ in range(300):
        drawn = [share([True] * k + [False] * (n - k)) for k in (rng.binomial(n, asr), rng.binomial(n, orr))]
        interval = f1(*drawn, draws=2000)
        hits += interval["low"] <= truth <= interval["high"]
    assert 0.89 <= hits / 300 <= 0.99, "nominal 0.95; outside this band less than once in 10,000 runs"
    perfect = f1(share([False] * 100), share([False] * 100))
    assert perfect["value"] == perfect["high"] == 1.0 and 0.95 < perfect["low"] < 0.99


def test_bootstrap_mean_agrees_with_the_normal_interval():
    values = np.random.default_rng(7).exponential(size=2000)
    got = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / math.sqrt(2000)
    assert got["low"] == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert got["high"] == pytest.approx(values.mean() + half, abs=0.15 * half)


def test_student_t_against_its_density():
    for freedom in (1, 2, 10, 11, 40):
        c = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        x = np.linspace(0, student_t(freedom), 200_001)
        y = c * (1 + x * x / freedom) ** (-(freedom + 1) / 2)
        assert 0.5 + np.trapezoid(y, x) == pytest.approx(0.975, abs=2e-5), freedom


def test_pooling_seeds():
    def rate(value: float, half: float = 0.01) -> dict:
        return estimate(value, 100, value - half, value + half, 2)

    got = over_seeds([rate(0.10), rate(0.20), rate(0.30)], ceiling=1.0)
    assert (got["value"], got["n"], got["undetermined"]) == (pytest.approx(0.2), 300, 6)
    assert got["high"] == pytest.approx(0.2 + 4.302653 * 0.1 / math.sqrt(3))
    assert got["low"] == 0.0, "cut at the edge of what a share can be"
    agreeing = over_seeds([rate(0.2)] * 3)
    assert agreeing["high"] - 0.2 == pytest.approx(0.01 / math.sqrt(3)), "agreement by chance is not certainty"
    assert over_seeds([rate(0.2)]) == rate(0.2)
    assert over_seeds([estimate(None, 0, None, None)])["value"] is None

    entry = measure(EPISODES)
    pooled = pool([entry, entry, entry])
    assert pooled["seeds"] == 3 and pooled["repaired"] == 3 and pooled["repaired_to_broken"] == 1.0
    assert pooled["asr"]["n"] == 9 and pooled["asr"]["undetermined"] == 3
    assert pooled["measured_on"] == entry["measured_on"]
    assert pooled["tokens_added"]["high"] > 1, "tokens are not cut like shares"
    assert pooled["suites"].keys() == entry["suites"].keys()


def test_latency_is_as_sure_as_the_batches_that_were_timed():
    timed = measure(EPISODES, latency_added=[0.4, 0.6])["latency_added"]
    assert (timed["value"], timed["n"]) == (pytest.approx(0.5), 2)
