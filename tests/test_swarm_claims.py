"""Claims on paired seeds: contrasts and verdicts by hand, and plans that are hashed."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from choreo.errors import BadInput
from choreo.studies.swarm.shared.results import SwarmStudy, judge_claims
from choreo.studies.swarm.shared.sections import _cell, _sweep
from choreo.swarm.annotations import Claim
from choreo.swarm.contrasts import claim_verdict, contrast, mean_interval, smallest_told
from choreo.swarm.plan import Plan, register, terms

stats = pytest.importorskip("scipy.stats", reason="scikit-learn is not installed: choreo-rl[swarm]")
yaml = pytest.importorskip("yaml", reason="choreo-rl[swarm] brings PyYAML")

# ---- contrasts ----------------------------------------------------------------------------------

ARM = {"a": {0: 1.0, 1: 2.0, 2: 4.0}}
BASE = {"a": {0: 2.0, 1: 4.0, 2: 7.0}}  # differences −1, −2, −3


def test_a_contrast_by_hand():
    found = contrast(ARM, BASE, "lower", 0.5)
    error = 1 / math.sqrt(3)
    assert found.difference.value == -2 and found.effect == -2 and found.beyond
    assert found.difference.high == pytest.approx(-2 + stats.t.ppf(0.975, 2) * error)
    assert found.p == pytest.approx(2 * stats.t.sf(1.5 / error, 2))
    assert contrast(BASE, ARM, "higher", 0.5).p == pytest.approx(found.p)
    assert contrast(ARM, BASE, "same", 3.0).p == pytest.approx(2 * stats.t.sf(1 / error, 2))
    # The noncentral t of two degrees, at the two-sided 5 % point, has four fifths beyond it from 5.6535 errors on.
    assert found.errors == ((pytest.approx(error), 3),) and smallest_told(found, 0.05) == pytest.approx(
        5.6535 * error, 1e-4
    )
    assert not contrast(ARM, BASE, "same", 1.0).beyond and not contrast(ARM, BASE, "higher", 0.0).beyond


def test_several_trainings_widen_what_their_seeds_alone_would_say():
    seeds = range(10)
    arm = {f"run{k}": {s: k + 0.01 * s for s in seeds} for k in range(3)}  # run by run 0, 1, 2 above
    base = {f"run{k}": {s: 0.01 * s for s in seeds} for k in range(3)}
    found = contrast(arm, base, "higher", 0.0)
    assert found.difference.value == pytest.approx(1) and found.difference.groups == 3
    assert found.difference.low == pytest.approx(1 - stats.t.ppf(0.975, 2) / math.sqrt(3))
    assert found.p == pytest.approx(2 * stats.t.sf(math.sqrt(3), 2))


def test_what_is_missing_is_no_pair_and_nothing_is_not_testable():
    holed = {"a": {0: math.nan, 1: 2.0, 2: 4.0}, "b": {0: 1.0}}
    found = contrast(holed, BASE, "lower", 0.0).difference
    assert (found.n, found.played) == (2, 3)  # group b has no baseline
    assert _cell(found, "spread").endswith(", n = 2 of 3") and "n =" not in _cell(mean_interval(ARM), "spread")
    nothing = contrast({"a": {0: 1.0}}, BASE, "lower", 0.0)
    assert (
        math.isnan(smallest_told(nothing, 0.05))
        and math.isnan(nothing.p)
        and claim_verdict(nothing, nothing.p) == "not testable"
    )
    assert mean_interval({"a": {0: math.nan}}).n == 0


def test_a_difference_without_spread_is_what_it_is():
    one, two = {"a": {0: 1.0, 1: 1.0}}, {"a": {0: 2.0, 1: 2.0}}
    assert contrast(one, two, "lower", 0.5).p == 0 and contrast(one, one, "lower", 0.0).p == 1


def test_verdicts_by_side_and_strength():
    far = contrast(ARM, BASE, "lower", 0.5)
    assert [claim_verdict(far, p) for p in (0.01, 0.06, math.nan)] == ["supported", "inconclusive", "not testable"]
    assert claim_verdict(contrast(ARM, BASE, "higher", 0.5), 0.01) == "refuted"


def test_another_block_of_seeds_gives_the_same_verdicts_on_arms_that_clearly_differ():
    """As studies do: a seed draws 60 of 300 answers, the same ones in both arms."""
    rng = random.Random(11)
    worse = [min(1.0, max(0.0, rng.gauss(0.3, 0.2))) for _ in range(300)]
    better = [harm * rng.uniform(0.3, 0.8) for harm in worse]

    def block(answers, seeds):
        drawn = {s: random.Random(f"block/{s}").sample(range(300), 60) for s in seeds}
        return {"run": {s: math.fsum(answers[k] for k in some) / 60 for s, some in drawn.items()}}

    for seeds in (range(10), range(10, 20), range(20, 30)):
        arm, base = block(better, seeds), block(worse, seeds)
        told = [
            claim_verdict(found := contrast(arm, base, direction, margin), found.p)
            for direction, margin in (("lower", 0.01), ("higher", 0.01), ("same", 0.02), ("lower", 0.3))
        ]
        assert told == ["supported", "refuted", "refuted", "refuted"]
        assert contrast(base, base, "same", 0.01).beyond


def test_a_claim_added_later_changes_no_planned_verdict():
    rng = random.Random(5)
    rows = {name: {"run": {s: {"asr": rng.gauss(at, 1)} for s in range(10)}} for name, at in (("x", 0), ("y", 1.6))}
    claims = tuple(claim(margin=m) for m in (0.1, 0.2, 0.3))

    def found(count, exploratory):
        study = SwarmStudy(
            "waltz",
            "",
            "",
            tuple(range(10)),
            {"exploratory": exploratory},
            claims[:count],
            rows,
            (),
            {},
            (),
            (),
            {},
            "",
            "",
            "",
            {},
        )
        return [(j.adjusted, j.detectable) for j in judge_claims(study)]

    assert found(3, [False, True, True])[0] == found(1, [False])[0] < found(3, [False] * 3)[0]
    assert found(1, [False])[0][1] < found(3, [False] * 3)[0][1]  # the more claims, the less each can tell
    assert found(3, [False, True, True])[1:] == found(3, [False] * 3)[1:]


def test_a_sweep_says_which_levers_changed_no_run():
    grid = [["a", "b"], ["c", "d"]]

    def told(**toxicity):
        rows = {arm: {"run": {0: {"toxicity_rate": t, "quarantined": math.nan}}} for arm, t in toxicity.items()}
        return _sweep(
            SwarmStudy(
                "waltz", "", "", (0,), {}, (), rows, (), {"x": grid}, ("1", "2"), ("off", "on"), {}, "", "", "", {}
            )
        ).verdict

    assert told(a=0.1, b=0.1, c=0.1, d=0.1).endswith("settings: in x no setting changed any run.")
    assert told(a=0.1, b=0.1, c=0.2, d=0.2).endswith("by 10.00 points, and the security levers changed no run.")
    assert told(a=0.1, b=0.2, c=0.1, d=0.1).endswith("by 10.00 points.")


# ---- plans --------------------------------------------------------------------------------------


def claim(**more):
    said = {
        "claim": "C.",
        "evidence": "here",
        "metric": "asr",
        "arm": "x",
        "baseline": "y",
        "direction": "lower",
        "margin": 0.1,
        **more,
    }
    return Claim.model_validate(said)


def test_a_plan_is_kept_as_first_written_and_what_changes_is_exploratory(tmp_path):
    first = Plan("waltz", {"g/x": "1", "g/y": "2"}, (0, 1), ("asr",), (terms(claim()),))
    kept = register(tmp_path, first)
    assert kept.digest == first.digest and not kept.changes and not kept.exploratory(claim())
    assert not kept.exploratory(claim(note="words are no part of a plan"))
    moved = Plan("waltz", {"g/x": "1", "g/y": "2"}, (0, 1), ("asr",), (terms(claim(margin=0.05)),))
    again = register(tmp_path, moved)
    assert again.digest == first.digest and again.exploratory(claim(margin=0.05))
    assert again.changes == (
        "x against y in asr: a claim added, or changed",
        "x against y in asr: a claim left out, or changed",
    )
    more = register(tmp_path, replace(first, claims=(terms(claim()), terms(claim(metric="orr")))))
    assert more.exploratory(claim(metric="orr")) and not more.exploratory(claim())
    fewer = register(tmp_path, replace(first, claims=()))
    assert fewer.changes == ("x against y in asr: a claim left out, or changed",) and fewer.exploratory(claim())
    wider = register(tmp_path, Plan("waltz", {"g/x": "9"}, (0, 1, 2), ("asr",), (terms(claim()),)))
    assert wider.changes == ("seeds changed", "arm g/x changed", "arm g/y added or left out")
    assert wider.exploratory(claim())
    with pytest.raises(BadInput, match="holds the study waltz, not macpo"):
        register(tmp_path, Plan("macpo", {}, (0,), (), ()))
    file = tmp_path / "plan.json"
    file.write_text(file.read_text().replace("0.1", "0.05"))
    with pytest.raises(BadInput, match="was changed after it was hashed"):
        register(tmp_path, moved)
    file.write_text("[]")
    with pytest.raises(BadInput, match="not the plan of a study"):
        register(tmp_path, first)
