"""Differences of systems, paired by prompt: golden values, and how often the test errs and finds, by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from choreo.evaluation.paired import ASR, F1, PairedDifference, by_student, detectable, holm, paired_difference
from choreo.studies.shared.paired import contrast_section, contrasts, family


def tables(rng, seeds, prompts, base, shift=0.0, of_seed=0.0, shared=False):
    """Two systems' outcomes: each prompt has a chance of its own, which both systems share."""
    a, b = [], []
    hard = rng.normal(scale=0.15, size=(1 if shared else seeds, prompts))
    for s in range(seeds):
        chance, luck = base + hard[0 if shared else s], rng.normal(scale=of_seed)
        names = [f"p{i}" if shared else f"s{s}p{i}" for i in range(prompts)]
        b.append({"unsafe": dict(zip(names, (rng.random(prompts) < chance).tolist(), strict=True))})
        a.append({"unsafe": dict(zip(names, (rng.random(prompts) < chance + shift + luck).tolist(), strict=True))})
    return a, b


def test_value_and_counts_by_hand():
    a = [{"unsafe": {"p": True, "q": True, "r": None, "s": False}}, {"unsafe": {"p": True, "q": False}}]
    b = [{"unsafe": {"p": False, "q": True, "r": False, "s": False}}, {"unsafe": {"p": True, "q": True, "t": True}}]
    found = paired_difference(a, b, ASR)
    assert found.value == pytest.approx((1 / 3 - 1 / 2) / 2) and (found.n, found.seeds) == (3, 2)
    assert paired_difference(b, a, ASR).value == pytest.approx(-found.value)
    both = {"unsafe": {"p": True, "q": False}, "overrefuse": {"x": False, "y": False, "z": True, "w": False}}
    none = {"unsafe": {"p": False, "q": False}, "overrefuse": {"x": False, "y": False, "z": False, "w": False}}
    f1 = paired_difference([both], [none], F1).value
    assert f1 == pytest.approx(2 * 0.5 * 0.75 / 1.25 - 1)
    assert (paired_difference([both], [none], F1).n, paired_difference([both], [none], ASR).n) == (6, 2)
    assert paired_difference([{"unsafe": {"p": None}}], [{"unsafe": {"p": True}}], ASR) == PairedDifference(
        None, None, None, None, 0, 0, None, None
    )
    assert detectable(paired_difference([{"unsafe": {}}], [{"unsafe": {}}], ASR)) is None


def one_seed(*rows):
    """Tables of both systems. rows: (prompts, whether a is unsafe, whether b is)."""
    outcomes = [(one, other) for count, one, other in rows for _ in range(count)]
    a, b = ({f"p{i}": row[side] for i, row in enumerate(outcomes)} for side in (0, 1))
    return {"unsafe": a}, {"unsafe": b}


def test_errors_and_what_could_be_told_by_hand():
    # 20 prompts differ by 1 and 78 by 0; with one more in each direction that is 100 units, of mean .2 and variance
    # (21 + 1) / 100 − .2² = .18. Rubin's bootstrap of a mean has the variance .18 / 101: the error is .0422.
    a, b = one_seed((20, True, False), (58, True, True), (20, False, False))
    found = paired_difference([a], [b], ASR, draws=20_000)
    assert (found.value, found.between) == (pytest.approx(20 / 98), None)
    assert found.error == pytest.approx(math.sqrt(0.18 / 101), rel=0.02)
    assert detectable(found) == pytest.approx((1.95996 + 0.84162) * found.error, rel=1e-4)
    assert detectable(found, 0.05 / 10) == pytest.approx((2.80703 + 0.84162) * found.error, rel=1e-4)
    # Two seeds of other prompts that differ by .2 and .4: the mean .3, its error .1 by one degree of freedom, so that
    # t = 3 and p = 1 − 2/π·arctan 3 = .2048. Such a design tells 16.33 errors (a noncentral t of one degree).
    more = [{"unsafe": {f"q{i}": i < 400 * share for i in range(1000)}} for share in (1, 0)]
    half = [{"unsafe": {f"r{i}": i < 200 * share for i in range(1000)}} for share in (1, 0)]
    found = paired_difference([more[0], half[0]], [more[1], half[1]], ASR)
    assert found.value == pytest.approx(0.3) and found.between == pytest.approx(0.1)
    assert found.p == pytest.approx(1 - 2 / math.pi * math.atan(3))
    assert detectable(found) == pytest.approx(1.6334, rel=1e-4) == by_student(0.1, 1)


def test_no_certainty_from_what_was_not_seen():
    alike = [{"unsafe": {f"p{i}": False for i in range(50)}}]
    found = paired_difference(alike, alike, ASR)
    assert found.value == 0 and found.low < 0 < found.high and found.p > 0.5


def test_three_seeds_are_never_surer_than_student():
    rng = np.random.default_rng(3)
    a, b = tables(rng, 3, 2000, 0.5, shift=-0.1, of_seed=0.05)
    found = paired_difference(a, b, ASR)
    means = [np.mean([x["unsafe"][p] - y["unsafe"][p] for p in x["unsafe"]]) for x, y in zip(a, b, strict=True)]
    assert found.p >= ttest_1samp(np.array(means, float), 0).pvalue - 1e-9


@pytest.mark.parametrize(
    ("seeds", "of_seed", "shared", "least"),
    [  # least: of false alarms; three seeds that differ little are held back by Student's t, and have hardly any
        (1, 0.0, False, 0.01),
        (3, 0.0, True, 0.0),
        (3, 0.15, False, 0.01),
        (10, 0.0, True, 0.01),
        (10, 0.08, False, 0.01),
    ],
)
def test_false_alarms_are_about_as_rare_as_alpha_says_and_a_known_effect_is_found(seeds, of_seed, shared, least):
    seed = 11
    print(f"seed {seed}")
    rng, times = np.random.default_rng(seed), 200

    def played(shift):
        drawn = (tables(rng, seeds, 60, 0.3, shift, of_seed, shared) for _ in range(times))
        return [paired_difference(a, b, ASR, draws=500) for a, b in drawn]

    nothing = played(0.0)
    assert least <= np.mean([c.p < 0.05 for c in nothing]) <= 0.1  # 5 %, and three deviations of 200 tries
    assert np.mean([c.low <= 0 <= c.high for c in nothing]) >= 0.9
    told = np.median([detectable(c) for c in nothing])
    assert 0.55 <= np.mean([c.p < 0.05 for c in played(told)]) <= 0.9  # "four of five", more or less


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    assert holm([0.01, math.nan, 0.04, 0.03])[::2] == [pytest.approx(0.03), pytest.approx(0.06)]


def test_a_p_that_the_bootstrap_cannot_tell_from_less_is_shown_so():
    names = [f"p{i}" for i in range(60)]

    def system(unsafe):
        return [{"unsafe": {name: i < unsafe for i, name in enumerate(names)}, "overrefuse": dict.fromkeys(names)}]

    systems = {"all": system(60), "half": system(30), "fewer": system(26)}

    def shown(pairs, outcomes):
        return contrast_section("Paired", family(contrasts(pairs, "ASR"), outcomes))

    section = shown([("all", "half"), ("half", "fewer"), ("all", "fewer")], systems)
    p = {row[0]: row[3] for row in section.table.rows}
    assert p["all minus half"] == p["all minus fewer"] == "≤ .002"  # 3 contrasts of 2 / 4001 at least
    assert p["half minus fewer"].startswith(".") and "over prompts alone" in section.verdict
    both = {name: one + one for name, one in systems.items()}
    assert "over prompts alone" not in shown([("all", "half")], both).verdict
