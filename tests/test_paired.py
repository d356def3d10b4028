"""Differences of systems, paired by prompt: golden values, and how often an interval holds the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from choreo.evaluation.paired import ASR, F1, PairedDifference, holm, paired_difference
from choreo.studies.shared.paired import paired


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
        None, None, None, None, 0, 0, None
    )


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


@pytest.mark.parametrize(("seeds", "of_seed", "shared"), [(1, 0.0, False), (10, 0.0, True), (10, 0.08, False)])
def test_the_interval_holds_the_truth_and_p_is_rarely_small_by_luck(seeds, of_seed, shared):
    seed = 11
    print(f"seed {seed}")
    rng, times = np.random.default_rng(seed), 80
    nothing = [paired_difference(*tables(rng, seeds, 80, 0.4, 0.0, of_seed, shared), ASR) for _ in range(times)]
    assert np.mean([c.p < 0.05 for c in nothing]) <= 0.12  # 5 %, and three deviations of 80 tries
    assert np.mean([c.low <= 0 <= c.high for c in nothing]) >= 0.88
    told = np.median([c.told for c in nothing])
    found = [paired_difference(*tables(rng, seeds, 80, 0.4, told, of_seed, shared), ASR) for _ in range(times)]
    assert 0.62 <= np.mean([c.p < 0.05 for c in found]) <= 0.95  # "four of five", more or less


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []
    assert holm([0.01, math.nan, 0.04, 0.03])[::2] == [pytest.approx(0.03), pytest.approx(0.06)]


def test_a_p_that_the_bootstrap_cannot_tell_from_less_is_shown_so():
    names = [f"p{i}" for i in range(60)]

    def system(unsafe):
        return [{"unsafe": {name: i < unsafe for i, name in enumerate(names)}, "overrefuse": dict.fromkeys(names)}]

    systems = {"all": system(60), "half": system(30), "fewer": system(26)}
    section = paired("Paired", [("all", "half"), ("half", "fewer"), ("all", "fewer")], systems)
    shown = {row[0]: row[3] for row in section.table.rows if row[1] == "ASR"}
    assert shown["all minus half"] == shown["all minus fewer"] == "≤ .002"  # 3 contrasts of 2 / 4001 at least
    assert shown["half minus fewer"].startswith(".") and "over prompts alone" in section.verdict
    both = {name: one + one for name, one in systems.items()}
    assert "over prompts alone" not in paired("Paired", [("all", "half")], both).verdict
