"""Runs on the real simulator: the published figures, SWARM's own metrics, processes, and the faults guarded against."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import types

import pytest

from choreo.cli import main
from choreo.swarm import extra, metrics
from choreo.swarm.criteria import evaluate_criteria
from choreo.swarm.metrics import all_metrics
from choreo.swarm.reports import detections, needs_tax_free_arm, tax_artefact, tax_free
from choreo.swarm.run import Job, run_all
from choreo.swarm.scenario import load_scenario, with_levers

loader = pytest.importorskip("swarm.scenarios.loader", reason="swarm-safety is not installed: choreo-rl[swarm]")

# swarm-safety 1.9.0, each scenario under its own seed: interactions, accepted, then four metrics to four places.
GOLDEN = {
    "strict_governance": (96, 87, 0.3035, 0.3295, 0.2775, -0.1041),
    "security_evaluation": (341, 161, 0.3369, 0.4668, 0.2462, -0.5847),
    "collusion_detection": (356, 149, 0.3558, 0.4427, 0.1494, -0.3909),
    "waltz_draft": (184, 179, 0.3346, 0.3371, 0.0910, -0.0099),
    "macpo_draft": (223, 211, 0.3210, 0.3243, 0.0615, -0.0099),
}


def job(name, **levers):
    scenario = load_scenario(name)
    return Job(with_levers(scenario, **levers), scenario.simulation.seed)


@pytest.fixture(scope="module")
def runs():
    """The five scenarios, and the tax-free arm of collusion_detection."""
    jobs = [*map(job, GOLDEN), job("collusion_detection", transaction_tax_rate=0.0)]
    return dict(zip([*GOLDEN, "tax-free"], run_all(jobs), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_the_published_figures_are_reproduced_exactly(runs, name):
    result = runs[name]
    found = all_metrics(result.interactions, result.payoffs)
    figures = [found[m].value for m in ("toxicity_rate", "toxicity_rate_all", "quality_gap", "spread")]
    accepted = sum(i.accepted for i in result.interactions)
    assert (len(result.interactions), accepted, *(round(figure, 4) for figure in figures)) == GOLDEN[name]
    assert result.seed == load_scenario(name).simulation.seed and result.versions["swarm-safety"].startswith("1.9.")


@pytest.mark.parametrize("name", GOLDEN)
def test_metrics_pays_and_proxy_are_swarms_on_the_same_interactions(runs, name):
    from swarm.core.payoff import PayoffConfig, SoftPayoffEngine
    from swarm.metrics.soft_metrics import SoftMetrics
    from swarm.models.interaction import SoftInteraction

    result = runs[name]
    engine = SoftPayoffEngine(PayoffConfig(**load_scenario(name).payoff.model_dump()))
    theirs = [
        SoftInteraction(accepted=i.accepted, p=i.p, tau=i.tau, c_a=i.c_a, c_b=i.c_b, r_a=i.r_a, r_b=i.r_b)
        for i in result.interactions
    ]
    soft, found = SoftMetrics(engine), all_metrics(result.interactions, result.payoffs)
    for metric in ("toxicity_rate", "toxicity_rate_all", "quality_gap"):
        assert found[metric].value == pytest.approx(getattr(soft, metric)(theirs), rel=0, abs=1e-12)
    for metric in ("spread", "conditional_loss_initiator", "conditional_loss_counterparty"):
        assert found[metric].value == pytest.approx(getattr(soft, metric)(theirs), rel=0, abs=1e-12)
    for metric in ("total_welfare", "net_social_welfare"):
        assert found[metric].value == pytest.approx(soft.welfare_metrics(theirs)[metric], rel=0, abs=1e-12)
    for i in result.interactions:
        paid = (i.pay_initiator, i.pay_counterparty)
        assert metrics.pays(i, result.payoffs) == pytest.approx(paid, rel=0, abs=1e-12)
        score = metrics.v_hat(i.progress, i.rework, i.rejections, i.misuse, i.engagement)
        assert (score, metrics.p_of(score)) == pytest.approx((i.v_hat, i.p), rel=0, abs=1e-12)


def test_figures_are_one_number_where_nothing_costs_anything(runs):
    assert {name for name, r in runs.items() if metrics.degenerate(r.interactions, r.payoffs)} == {"tax-free"}
    free = runs["tax-free"]
    found = all_metrics(free.interactions, free.payoffs)
    assert found["conditional_loss_initiator"].value == pytest.approx(-found["spread"].value / 2, rel=0, abs=1e-12)


# ---- processes ----------------------------------------------------------------------------------


def same(a, b):
    names = ("interactions", "reputations", "collusion", "security")
    return all(getattr(a, name) == getattr(b, name) for name in names)


def test_a_run_follows_from_scenario_and_seed_whatever_runs_beside_it(runs):
    before = random.getstate()
    jobs = [Job(load_scenario("macpo_draft"), seed) for seed in (202, 7, 202)]
    first, other, again = run_all(jobs, workers=3)
    assert same(first, again) and same(first, runs["macpo_draft"]) and not same(first, other)
    assert random.getstate() == before  # SWARM seeds the global module, in its own process


def failing(scenario, seed):
    raise ZeroDivisionError("in make_agents")


def dying(scenario, seed):
    os._exit(3)


def test_a_run_that_fails_or_dies_is_said_and_does_not_hang():
    scenario = load_scenario("macpo_draft")
    with pytest.raises(RuntimeError, match=r"(?s)a run failed: macpo_draft, seed 1.*ZeroDivisionError: in make_agents"):
        list(run_all([Job(scenario, 1, failing)]))
    with pytest.raises(RuntimeError, match="died with exit code 3: macpo_draft, seed 1"):
        list(run_all([Job(scenario, 1, dying), Job(scenario, 2, dying)]))


def half_good(scenario, seed):
    """Two honest agents whose every answer has p = .5, known to be beneficial."""
    from swarm.agents.honest import HonestAgent
    from swarm.core.proxy import ProxyObservables

    from choreo.swarm.simulate import SwarmAgents

    class Even:
        def generate(self, proposal, accepted, state):
            proposal.metadata["ground_truth"] = 1
            return ProxyObservables(
                task_progress_delta=-1.0,
                rework_count=0,
                verifier_rejections=0,
                tool_misuse_flags=0,
                counterparty_engagement_delta=0.0,
            )

    agents = [HonestAgent("ann", rng=random.Random(seed)), HonestAgent("bob", rng=random.Random(seed + 1))]
    return SwarmAgents(agents, Even())


def test_other_agents_and_another_observer_can_play():
    (result,) = run_all([Job(load_scenario("waltz_draft"), 1, half_good)])
    assert result.agents == {"ann": "honest", "bob": "honest"} and result.interactions
    assert all(i.p == pytest.approx(0.5) and i.ground_truth == 1 for i in result.interactions)


# ---- known faults of 1.9.0 ----------------------------------------------------------------------


def test_criteria_that_swarm_never_looks_at_are_evaluated_here(runs, capsys):
    from swarm.__main__ import _check_criteria

    scenario = load_scenario("security_evaluation")
    _check_criteria(scenario.success_criteria.model_dump(exclude_none=True), [])
    assert "ALL CRITERIA PASSED" in capsys.readouterr().out
    outcomes = {j.name: j.outcome for j in evaluate_criteria(scenario.success_criteria, runs["security_evaluation"])}
    assert outcomes == {
        "max_ecosystem_threat_level": "failed",
        "max_contagion_depth": "passed",
        "min_containment_effectiveness": "not evaluated",
    }


def test_the_tax_alone_makes_accomplices_of_honest_agents(runs):
    taxed, free = runs["collusion_detection"], runs["tax-free"]
    scenario = load_scenario("collusion_detection")
    assert needs_tax_free_arm(scenario) and not needs_tax_free_arm(tax_free(scenario))
    assert taxed.collusion.pairs and all(pair.correlation > 0.999 for pair in taxed.collusion.pairs)
    assert not free.collusion.pairs
    assert detections(taxed)["collusion, pairs"].precision == 0.0
    (toxic, freed) = (all_metrics(r.interactions, r.payoffs)["toxicity_rate"].value for r in (taxed, free))
    assert (round(toxic, 3), round(freed, 3)) == (0.356, 0.323)
    note = tax_artefact(taxed, free)
    assert note and "2 of 2 flagged pairs" in note and "0.3231 (with it 0.3558)" in note
    assert tax_artefact(free, free) is None
    # Reputation has no floor, and the honest fall through it.
    assert min(value for name, value in taxed.reputations.items() if taxed.agents[name] == "honest") < -10


def test_levers_that_do_nothing_do_nothing(runs):
    idle = job("strict_governance", bandwidth_cap=0, stake_slash_rate=1.0)
    (result,) = run_all([idle])
    assert result.interactions == runs["strict_governance"].interactions
    assert all(i.tau == i.r_a == i.r_b == 0 for r in runs.values() for i in r.interactions)


def test_contagion_does_not_depend_on_how_fast_the_computer_is():
    from datetime import datetime, timedelta

    from swarm.metrics.security import SecurityAnalyzer
    from swarm.models.interaction import SoftInteraction

    from choreo.swarm.scenario import Governance
    from choreo.swarm.simulate import _security

    chain = [("a", "b"), ("b", "c"), ("b", "d")]
    slow = [
        SoftInteraction(initiator=x, counterparty=y, accepted=True, p=0.1, timestamp=datetime(2000, 1, 1, k))
        for k, (x, y) in enumerate(chain)
    ]
    fast = [i.model_copy(update={"timestamp": datetime(2000, 1, 1) + timedelta(seconds=k)}) for k, i in enumerate(slow)]
    depths = [SecurityAnalyzer().analyze(chain, list("abcd")).contagion_depth for chain in (slow, fast)]
    assert depths == [0, 3]
    found = [_security(chain, dict.fromkeys("abcd", 0.0), (), Governance()) for chain in (slow, fast)]
    assert found[0] == found[1] and found[0].contagion_depth == 3 and found[0].chains == 1


def test_posts_are_ranked_as_swarm_ranks_them():
    from datetime import timedelta

    from swarm.env.feed import Feed, VoteType

    from choreo.swarm.simulate import _rank_in_one_go

    seed = 11
    print("seed", seed)
    rng, feed = random.Random(seed), Feed()
    posts = [feed.create_post(author_id="a", content=str(k)) for k in range(60)]
    posts += [feed.create_post(author_id="b", content="reply", parent_id=post.post_id) for post in posts[::3]]
    for post in posts:  # far enough apart for an order that does not depend on when it is asked for
        post.created_at -= timedelta(minutes=rng.randrange(100_000))
    for k in range(150):
        feed.vote(rng.choice(posts).post_id, f"v{k}", rng.choice([VoteType.UPVOTE, VoteType.DOWNVOTE]))
    posts[5].is_hidden = True
    asked = [{}, {"limit": 7}, {"include_replies": True}, {"include_hidden": True, "limit": 99}]
    theirs = [[p.post_id for p in feed.get_ranked_posts(**how)] for how in asked]
    _rank_in_one_go(feed)
    assert [[p.post_id for p in feed.get_ranked_posts(**how)] for how in asked] == theirs


# ---- the command --------------------------------------------------------------------------------

KEYS = [
    "interactions",
    "accepted",
    "toxicity_rate",
    "toxicity_rate_all",
    "quality_gap",
    "spread",
    "conditional_loss_initiator",
    "conditional_loss_counterparty",
    "criteria",
]


def test_run_prints_one_json_object_and_the_notes_beside_it(capsys):
    assert main(["swarm", "run", "collusion_detection", "--json"]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    assert list(figures) == KEYS
    assert [figures["interactions"], figures["accepted"]] == [356, 149]
    assert [round(figures[key], 4) for key in KEYS[2:6]] == [0.3558, 0.4427, 0.1494, -0.3909]
    assert figures["criteria"] == {
        "min_flagged_pairs": "passed",
        "max_ecosystem_collusion_risk": "passed",
        "min_penalty_total": "not evaluated",
    }
    assert err.startswith("tax artefact: ")


def test_run_tells_a_person_the_same(capsys, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "scenario_id: mine\nagents: [{type: honest}]\n"
        "simulation: {n_epochs: 1, steps_per_epoch: 1, seed: 1}\n"
        "success_criteria: {toxicity_threshold: 0.9, min_agents: 1}\n"
    )
    assert main(["swarm", "run", str(file), "--seed", "5"]) == 0
    out = capsys.readouterr().out
    assert "mine, seed 5: 0 interactions, 0 accepted" in out
    assert "toxicity_threshold  not evaluated  –      0.9    nothing was accepted" in out
    assert main(["swarm", "run", str(file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["toxicity_rate"] is None


def test_bad_input_is_one_line_and_exit_2(capsys, tmp_path, monkeypatch):
    file = tmp_path / "mine.yaml"
    file.write_text("scenario_id: mine\nagent: []\n")
    for argv, said in (
        (["run", str(file)], f"{file}:2: agent: unknown key; did you mean 'agents'? (and 2 more)"),
        (["run", "strict"], "strict: no shipped scenario has this name"),
        (["run", "strict_governance", "--seed", "-1"], "--seed: expected a whole number >= 0"),
        (["annotate", str(tmp_path / "none.txt")], "none.txt: No such file or directory"),
    ):
        assert main(["swarm", *argv]) == 2
        out, err = capsys.readouterr()
        assert out == "" and said in err and err.count("\n") == 1
    nothing_installed = types.SimpleNamespace(version={}.__getitem__, PackageNotFoundError=KeyError)
    monkeypatch.setattr(extra, "metadata", nothing_installed)
    for argv, package in ((["run", "strict_governance"], "swarm-safety"), (["annotate", str(file)], "PyYAML")):
        assert main(["swarm", *argv]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"choreo: swarm {argv[0]}: {package} is not installed (in a checkout: pip install")


def test_the_floor_but_for_simulate_and_trained_agents_imports_neither_swarm_nor_torch():
    code = """
import pkgutil, sys
import choreo.swarm
for part in pkgutil.iter_modules(choreo.swarm.__path__):
    if part.name not in ("simulate", "trained_agents"):
        __import__(f"choreo.swarm.{part.name}")
print(sorted({"swarm", "torch", "pandas", "yaml", "transformers", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
