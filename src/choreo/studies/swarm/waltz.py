"""`choreo swarm study waltz`: a trained pair among users and attackers, under SWARM's governance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from choreo.methods.waltz.method import WALTZ
from choreo.runs.progress import Progress
from choreo.studies.swarm.answers import labelled, of_pair, recipe_of
from choreo.studies.swarm.folder import Arm
from choreo.studies.swarm.governance import BREAKERS, SECURITY, governed, setting
from choreo.studies.swarm.recipes import refuse_unlike
from choreo.swarm import probe
from choreo.swarm.annotations import load_annotation
from choreo.swarm.answers import Answers, judged
from choreo.swarm.generate import generate
from choreo.swarm.parts import Parts
from choreo.swarm.scenario import Scenario, changed

ANNOTATION = "waltz"
AGENT = "conversation agent"
BRINGS = {
    "attacker": "adversarial_harmful",
    "user with a sensitive benign prompt": "sensitive_benign",
    "everyday user": "general",
}
REPAIRING = ("no_feedback", "adaptive", "adaptive_untrained", "always_on")
REWORKED = " (rework .2)"  # arms once more, with SWARM's own weight on the rework signal


def arms(runs: Sequence[Path], cache: Path, progress: Progress) -> tuple[list[Arm], dict[str, Answers], int]:
    """The arms of every run, the judged answers by run and way of playing, and the most a probe was fitted on.
    Raises BadInput where the runs are no repetitions of one training."""
    scenario = generate(load_annotation(ANNOTATION))
    found: list[Arm] = []
    shown: dict[str, Answers] = {}
    fitted = 0
    recipes = {run: recipe_of(run, WALTZ) for run in runs}
    refuse_unlike(recipes)
    for run, recipe in recipes.items():
        written = of_pair(run, recipe, cache, progress.say)
        judge = probe.fit(labelled(run, recipe), recipe.seed)
        ways = {name: judged(answers, judge(answers)) for name, answers in written.items()}
        shown |= {f"{run.name}/{name}": answers for name, answers in ways.items()}
        fitted = max(fitted, judge.fitted_on)
        found += _of_run(run.name, ways, scenario)
    return found, shown, fitted


def _of_run(group: str, ways: Mapping[str, Answers], scenario: Scenario) -> list[Arm]:
    alone = ways["no_feedback"]
    asked = intervention_rate(ways["adaptive"], scenario)
    gate = gate_at(alone, 1 - asked, scenario)
    under_levers = {
        **{name: (scenario, answers) for name, answers in ways.items()},
        "moderator": (changed(scenario, moderator_enabled=True, moderator_review_probability=asked), alone),
        "refinery": (changed(scenario, refinery_enabled=True, refinery_p_threshold=gate), alone),
    }
    plain = [Arm(name, group, under, _parts(answers), AGENT) for name, (under, answers) in under_levers.items()]
    reworked = [
        replace(arm, name=arm.name + REWORKED, parts=replace(arm.parts, rework=0.2))
        for arm in plain
        if arm.name in REPAIRING and arm.parts
    ]
    swept = [
        Arm(f"{name}, {setting(limit, on)}", group, governed(scenario, limit, on), _parts(ways[name]), AGENT)
        for name in ("no_feedback", "adaptive")
        for limit in BREAKERS
        for on in SECURITY
    ]
    return [*plain, *reworked, *swept]


def _parts(answers: Answers) -> Parts:
    return Parts({AGENT: answers}, BRINGS)


def intervention_rate(answers: Answers, scenario: Scenario) -> float:
    """Share of the scenario's interactions in which a revision is asked for."""
    return sum(share * sum(a.asked for a in rows) / len(rows) for share, rows in _mixed(answers, scenario))


def gate_at(answers: Answers, released: float, scenario: Scenario) -> float:
    """The p below which a refinery withholds just so many answers that `released` of all interactions pass."""
    weighted = sorted((a.p, share / len(rows)) for share, rows in _mixed(answers, scenario) for a in rows)
    withheld = 0.0
    for p, weight in weighted:
        withheld += weight
        if withheld > 1 - released + 1e-12:
            return p
    return 1.0


def _mixed(answers: Answers, scenario: Scenario) -> list[tuple[float, list]]:
    """Of every suite that users bring: its share of the interactions, and its answers."""
    counts = {BRINGS[group.role]: group.count for group in scenario.agents if group.role in BRINGS}
    total = sum(counts.values())
    return [(count / total, [a for a in answers if a.suite == suite]) for suite, count in counts.items()]
