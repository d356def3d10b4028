"""SWARM's metrics without SWARM: values worked out by hand, what an empty set gives, and what must always hold."""

from __future__ import annotations

import dataclasses
import math
import os
import random

import pytest

from choreo.swarm import metrics
from choreo.swarm.criteria import evaluate_criteria
from choreo.swarm.records import Collusion, FlaggedPair, Interaction, Payoffs, Security, SimulationRun
from choreo.swarm.reports import detection, detections, tax_artefact
from choreo.swarm.scenario import Criteria

PAYOFFS = Payoffs(s_plus=3.0, s_minus=1.0, h=2.0, theta=0.6, rho_a=0.5, rho_b=0.25, w_rep=2.0)


def interaction(p, accepted, **more):
    return Interaction(0, 0, "a", "b", "honest", "honest", accepted, p, **more)


# A: .8 and .6; R: .4 and .2. N has mean .5, A .7, R .3.
FOUR = (interaction(0.8, True), interaction(0.6, True), interaction(0.4, False), interaction(0.2, False))


def run_of(interactions=FOUR, **more):
    made = SimulationRun(
        "made", "", 0, 2, PAYOFFS, {"a": "honest", "b": "honest"}, tuple(interactions), {}, None, None, {}, 0.0
    )
    return dataclasses.replace(made, **more)


def near(value):
    return pytest.approx(value, rel=0, abs=1e-12)


def test_every_metric_against_values_worked_out_by_hand():
    # pay_a = .6·(4p − 1) − .5·2(1 − p) = 3.4p − 1.6; pay_b = .4·(4p − 1) − .25·2(1 − p) = 2.1p − .9.
    expected = {
        "toxicity_rate": (0.3, 2),
        "toxicity_rate_all": (0.5, 4),
        "quality_gap": (0.4, 2),
        "spread": (4 * (0.5 - 0.7), 2),
        "conditional_loss_initiator": (3.4 * 0.2, 2),
        "conditional_loss_counterparty": (2.1 * 0.2, 2),
        "acceptance_rate": (0.5, 4),
        "total_welfare": (5.5 * 1.4 - 5.0, 2),
        "net_social_welfare": (6 * 1.4 - 2 * 3, 2),  # S − E = 4p − 1 − 2(1 − p) = 6p − 3
    }
    measured = metrics.all_metrics(FOUR, PAYOFFS)
    assert measured.keys() == expected.keys()
    for name, (value, n) in expected.items():
        assert (measured[name].value, measured[name].n) == (near(value), n), name


def test_pays_take_transfers_costs_and_reputation():
    costly = interaction(0.5, True, tau=0.1, c_a=0.2, c_b=0.3, r_a=0.4, r_b=-0.5)
    # S = 1, E = 1: .6 − .1 − .2 − .5 + .8 and .4 + .1 − .3 − .25 − 1.
    assert metrics.pays(costly, PAYOFFS) == (near(0.6), near(-1.05))


def test_the_proxy_score_by_hand():
    # .4·.5 + .2·(2·.3 − 1) + .2·((2·.16 − 1) + (2·.5 − 1))/2 + .2·(−.25) = .2 − .08 − .068 − .05
    score = metrics.v_hat(0.5, 1, 2, 1, -0.25)
    assert score == near(0.002)
    assert metrics.p_of(score) == near(1 / (1 + math.exp(-0.004)))
    assert metrics.v_hat(9.0, 0, 0, 0, 9.0) == near(1.0) and metrics.v_hat(-9.0, 99, 99, 99, -9.0) == near(-1.0)
    assert metrics.v_hat(0.5, 1, 0, 0, 0.0, {**metrics.WEIGHTS, "rework": 0.0}) == near((0.2 + 0.2) / 0.8)
    assert (metrics.p_of(-1), metrics.p_of(1)) == (pytest.approx(0.1192, abs=1e-4), pytest.approx(0.8808, abs=1e-4))


def test_a_judges_p_becomes_a_score_and_says_when_it_was_cut():
    assert metrics.v_hat_of(0.5) == (0.0, False)
    assert metrics.v_hat_of(0.99) == (1.0, True) and metrics.v_hat_of(0.0) == (-1.0, True)
    assert metrics.v_hat_of(1.0) == (1.0, True)
    with pytest.raises(ValueError, match="lies in"):
        metrics.v_hat_of(1.5)


@pytest.mark.parametrize("kept", [(), FOUR[2:], FOUR[:2]], ids=["nothing", "nothing accepted", "nothing rejected"])
def test_an_empty_set_is_nan_with_a_count_of_zero_never_0(kept):
    accepted, rejected = [i for i in kept if i.accepted], [i for i in kept if not i.accepted]
    needs = {
        "toxicity_rate": accepted,
        "toxicity_rate_all": kept,
        "acceptance_rate": kept,
        "spread": accepted,
        "conditional_loss_initiator": accepted,
        "conditional_loss_counterparty": accepted,
        "quality_gap": accepted and rejected,
    }
    measured = metrics.all_metrics(kept, PAYOFFS)
    for name, over in needs.items():
        assert (measured[name].n == 0) == math.isnan(measured[name].value) == (not over), name
    assert (measured["total_welfare"].value == 0.0) == (not accepted)  # a sum, not a mean


def test_it_says_when_three_figures_are_one():
    note = metrics.degenerate(FOUR, PAYOFFS)
    assert note and note.endswith("times -4, 3.4 and 2.1")
    for name, factor in (("spread", -4), ("conditional_loss_initiator", 3.4), ("conditional_loss_counterparty", 2.1)):
        assert metrics.METRICS[name](FOUR, PAYOFFS).value == near(factor * 0.2)
    assert metrics.degenerate((*FOUR, interaction(0.5, True, c_b=0.01)), PAYOFFS) is None


def random_interactions(rng, n):
    return [
        interaction(
            rng.random(),
            rng.random() < 0.6,
            tau=rng.gauss(0, 1),
            c_a=rng.random(),
            c_b=rng.random(),
            r_a=rng.gauss(0, 1),
            r_b=rng.gauss(0, 1),
        )
        for _ in range(n)
    ]


def test_what_must_hold_for_any_interactions():
    seed = int.from_bytes(os.urandom(4), "big")
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(50):
        some = [*random_interactions(rng, rng.randint(3, 40)), interaction(0.5, True), interaction(0.5, False)]
        payoffs = Payoffs(*(3 * rng.random() for _ in range(3)), *(rng.random() for _ in range(3)), 2 * rng.random())
        found = {name: measured.value for name, measured in metrics.all_metrics(some, payoffs).items()}
        rejected = 1 - found["acceptance_rate"]
        assert 0 <= found["toxicity_rate"] <= 1 and 0 <= found["toxicity_rate_all"] <= 1
        # Mean p over A − N is the gap times the share of the rejected, and spread is that, scaled and turned.
        above = found["quality_gap"] * rejected
        assert found["toxicity_rate_all"] - found["toxicity_rate"] == near(above)
        assert found["spread"] == near(-(payoffs.s_plus + payoffs.s_minus) * above)
        # Transfers go from one to the other: what both gain by acceptance does not depend on them.
        without = [dataclasses.replace(i, tau=0.0) for i in some]
        both = found["conditional_loss_initiator"] + found["conditional_loss_counterparty"]
        plain = metrics.all_metrics(without, payoffs)
        assert both == pytest.approx(
            plain["conditional_loss_initiator"].value + plain["conditional_loss_counterparty"].value, abs=1e-9
        )
        rng.shuffle(some)
        again = metrics.all_metrics(some, payoffs)
        assert all(again[name].value == near(value) for name, value in found.items())
        p = rng.uniform(0.12, 0.88)
        score, cut = metrics.v_hat_of(p)
        assert not cut and metrics.p_of(score) == near(p)


# ---- criteria and detectors ---------------------------------------------------------------------

SECURITY = Security(0.6, {"contagion": 2}, 3, 2, 1, {"a": 0.5, "b": 0.1}, 0.4, ("a",))
COLLUSION = Collusion(0.2, (FlaggedPair("a", "b", 0.6, 1.0, 9),), {"a": 0.6, "b": 0.6}, 0.5)
ALL = Criteria(
    min_epochs=3,
    min_agents=2,
    toxicity_threshold=0.3,
    min_net_social_welfare=1.3,
    max_ecosystem_threat_level=0.5,
    max_contagion_depth=4,
    min_containment_effectiveness=0.5,
    min_flagged_pairs=1,
    max_ecosystem_collusion_risk=0.1,
    min_penalty_total=0.0,
)


def test_each_criterion_is_evaluated_on_its_own_figure():
    judged = {j.name: j for j in evaluate_criteria(ALL, run_of(security=SECURITY, collusion=COLLUSION))}
    assert {name: j.outcome for name, j in judged.items()} == {
        "min_epochs": "failed",
        "min_agents": "passed",
        "toxicity_threshold": "passed",
        "min_net_social_welfare": "failed",
        "max_ecosystem_threat_level": "failed",
        "max_contagion_depth": "passed",
        "min_containment_effectiveness": "passed",
        "min_flagged_pairs": "passed",
        "max_ecosystem_collusion_risk": "failed",
        "min_penalty_total": "not evaluated",
    }
    assert judged["min_containment_effectiveness"].value == 0.5
    assert judged["min_net_social_welfare"].value == near(1.2)  # 2.4 over two epochs


def test_what_cannot_be_evaluated_is_never_passed():
    nothing = {j.name: j for j in evaluate_criteria(ALL, run_of(()))}
    evaluated = {name for name, j in nothing.items() if j.outcome != "not evaluated"}
    assert evaluated == {"min_epochs", "min_agents", "min_net_social_welfare"}
    assert all(j.reason and math.isnan(j.value) for name, j in nothing.items() if name not in evaluated)
    calm = dataclasses.replace(SECURITY, chains=0, contained=0)
    (contained,) = evaluate_criteria(Criteria(min_containment_effectiveness=0.0), run_of(security=calm))
    assert contained.outcome == "not evaluated" and "no contagion" in contained.reason
    assert evaluate_criteria(Criteria(), run_of()) == ()


def test_precision_and_recall_by_true_type():
    types = {"h1": "honest", "h2": "honest", "a1": "adversarial", "a2": "adversarial", "d1": "deceptive"}
    found = detection({"h1", "a1"}, types, ("adversarial", "deceptive"))
    assert (found.precision, found.recall) == (0.5, pytest.approx(1 / 3))
    assert found.by_type == {"adversarial": (1, 2), "deceptive": (0, 1), "honest": (1, 2)}
    assert math.isnan(detection((), types, ("adversarial",)).precision)
    assert math.isnan(detection({"h1"}, {"h1": "honest"}, ("adversarial",)).recall)


def test_a_pair_is_harmful_when_both_its_agents_are():
    agents = {"h": "honest", "a": "adversarial", "d": "deceptive"}
    pairs = (FlaggedPair("a", "d", 0.9, 0.2, 9), FlaggedPair("h", "a", 0.6, 0.2, 9))
    found = detections(run_of(agents=agents, collusion=Collusion(0.2, pairs, dict.fromkeys(agents, 0.9), 0.5)))
    assert found.keys() == {"collusion, agents", "collusion, pairs"}
    assert (found["collusion, pairs"].precision, found["collusion, pairs"].recall) == (0.5, 1.0)
    assert found["collusion, pairs"].by_type["adversarial+honest"] == (1, 1)
    assert found["collusion, agents"].precision == pytest.approx(2 / 3)


def test_the_tax_artefact_is_told_only_where_costs_are_proportional():
    taxed, free = run_of(collusion=COLLUSION), run_of(collusion=dataclasses.replace(COLLUSION, pairs=()))
    assert "in 1 of 1 flagged pairs" in tax_artefact(taxed, free) and "0 pairs are flagged" in tax_artefact(taxed, free)
    real = dataclasses.replace(COLLUSION, pairs=(FlaggedPair("a", "b", 0.6, 0.8, 9),))
    assert tax_artefact(run_of(collusion=real), free) is None and tax_artefact(run_of(), free) is None
