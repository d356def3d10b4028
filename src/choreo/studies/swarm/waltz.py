"""`choreo swarm study waltz`: WaltzRL's claims, of a trained pair among users and attackers under governance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from choreo.methods.waltz.method import WALTZ
from choreo.runs.progress import Progress
from choreo.studies.swarm.shared.answers import load_recipe, training_answers, waltz_answers
from choreo.studies.swarm.shared.design import REPLAYED, Design, ReportText
from choreo.studies.swarm.shared.folder import ScenarioArm
from choreo.studies.swarm.shared.levers import BREAKERS, SECURITY, governed, grid, setting
from choreo.studies.swarm.shared.recipes import refuse_unlike, run_folders
from choreo.swarm import probe
from choreo.swarm.annotations import load_annotation
from choreo.swarm.answers import Answers, with_p
from choreo.swarm.generate import generate
from choreo.swarm.scenario import Scenario, with_levers
from choreo.swarm.trained_roles import TrainedRoles

ANNOTATION = "waltz"
AGENT = "conversation agent"
BRINGS = {
    "attacker": "adversarial_harmful",
    "user with a sensitive benign prompt": "sensitive_benign",
    "everyday user": "general",
}
REPAIRING = ("no_feedback", "adaptive", "adaptive_untrained", "always_on")
REWORKED = " (rework .2)"  # the same arms with SWARM's own weight on the rework signal
SWEPT = ("no_feedback", "adaptive")
REPORT = ReportText(
    title="WaltzRL under SWARM",
    lead=(
        "The claims of WaltzRL (arXiv 2510.08240) put to a trained pair that answers users and attackers "
        "under governance."
    ),
    methods=(
        f"{REPLAYED} "
        "Users and attackers accept whatever does not refuse them. The moderator reviews, and the refinery "
        "withholds, as large a share of the untrained model's answers as the trained pair asks to revise. The"
        " moderator and the security levers act after an answer was accepted, on costs and reputations: they "
        "withhold none, so that the moderator cannot move ASR, ORR or toxicity, nor the security levers but "
        "by shutting an agent out for what follows. Arms with rework .2 give SWARM's rework signal its own "
        "weight, by which a repaired answer looks worse than one that was right by luck."
    ),
    limitations=(
        "The prompts are a small closed language and the agents a million parameters. The probe errs, by arm "
        "and as tabled, and its errors are in every metric that has a p. Seeds draw from the same answers "
        "again, so that they say little about training; that is what several runs are for. Users judge by "
        "refusal alone and do not learn. SWARM's moderator and refinery stand for safeguards, and are none "
        "that the paper measured."
    ),
    next=(
        "A probe that is fitted on the trained pair's kind of answers as well; users that come back and "
        "remember; attacks on the feedback agent."
    ),
)


def design(what: Sequence[str], cache: Path, progress: Progress) -> Design:
    """The arms of the run folders in `what`, which must repeat one training. Raises BadInput."""
    found, shown, fitted = arms(run_folders("waltz", what), cache, progress)
    return Design(found, answers=shown, fitted=fitted, sweeps={name: grid(f"{name}, ") for name in SWEPT})


def arms(runs: Sequence[Path], cache: Path, progress: Progress) -> tuple[list[ScenarioArm], dict[str, Answers], int]:
    """The arms of every run, the judged answers by run and way of playing, and the most answers a probe was fitted on.

    Raises BadInput where the runs do not repeat one training.
    """
    scenario = generate(load_annotation(ANNOTATION))
    found: list[ScenarioArm] = []
    shown: dict[str, Answers] = {}
    fitted = 0
    recipes = {run: load_recipe(run, WALTZ) for run in runs}
    refuse_unlike(recipes)
    for run, recipe in recipes.items():
        written = waltz_answers(run, recipe, cache, progress.say)
        judge = probe.fit_probe(training_answers(run, recipe), recipe.seed)
        ways = {name: with_p(answers, judge(answers)) for name, answers in written.items()}
        shown |= {f"{run.name}/{name}": answers for name, answers in ways.items()}
        fitted = max(fitted, judge.fitted_on)
        found += _of_run(run.name, ways, scenario)
    return found, shown, fitted


def _of_run(group: str, ways: Mapping[str, Answers], scenario: Scenario) -> list[ScenarioArm]:
    alone = ways["no_feedback"]
    asked = intervention_rate(ways["adaptive"], scenario)
    gate = gate_at(alone, 1 - asked, scenario)
    under_levers = {
        **{name: (scenario, answers) for name, answers in ways.items()},
        "moderator": (with_levers(scenario, moderator_enabled=True, moderator_review_probability=asked), alone),
        "refinery": (with_levers(scenario, refinery_enabled=True, refinery_p_threshold=gate), alone),
    }
    plain = [ScenarioArm(name, group, under, _roles(answers), AGENT) for name, (under, answers) in under_levers.items()]
    reworked = [
        replace(arm, name=arm.name + REWORKED, roles=replace(arm.roles, rework=0.2))
        for arm in plain
        if arm.name in REPAIRING and arm.roles
    ]
    swept = [
        ScenarioArm(f"{name}, {setting(limit, on)}", group, governed(scenario, limit, on), _roles(ways[name]), AGENT)
        for name in SWEPT
        for limit in BREAKERS
        for on in SECURITY
    ]
    return [*plain, *reworked, *swept]


def _roles(answers: Answers) -> TrainedRoles:
    return TrainedRoles({AGENT: answers}, BRINGS)


def intervention_rate(answers: Answers, scenario: Scenario) -> float:
    """Share of the scenario's interactions in which a revision is asked for."""
    return sum(share * sum(a.asked for a in rows) / len(rows) for share, rows in _mixed(answers, scenario))


def gate_at(answers: Answers, released: float, scenario: Scenario) -> float:
    """The p below which a refinery has to withhold answers so that the share `released` of all interactions passes."""
    weighted = sorted((a.p, share / len(rows)) for share, rows in _mixed(answers, scenario) for a in rows)
    withheld = 0.0
    for p, weight in weighted:
        withheld += weight
        if withheld > 1 - released + 1e-12:
            return p
    return 1.0


def _mixed(answers: Answers, scenario: Scenario) -> list[tuple[float, list]]:
    """For every suite that users bring: its share of the interactions, and the answers to its prompts."""
    counts = {BRINGS[group.role]: group.count for group in scenario.agents if group.role in BRINGS}
    total = sum(counts.values())
    return [(count / total, [a for a in answers if a.suite == suite]) for suite, count in counts.items()]
