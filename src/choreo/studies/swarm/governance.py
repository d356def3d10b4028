"""`choreo swarm study governance`: what tighter governance does to harm and to welfare, on scripted scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from choreo.errors import BadInput
from choreo.runs.progress import Progress
from choreo.studies.swarm.shared.design import Design, ReportText
from choreo.studies.swarm.shared.folder import ScenarioArm
from choreo.studies.swarm.shared.levers import BREAKERS, SECURITY, governed, grid, setting
from choreo.swarm.annotations import Claim
from choreo.swarm.reports import needs_tax_free_arm, tax_free
from choreo.swarm.scenario import Scenario, load_scenario

SCENARIOS = ("strict_governance", "security_evaluation", "collusion_detection")
BASELINE, TAX_FREE = "as published", "as published, tax-free"
MARGIN = 0.01  # of toxicity, as in the annotations of the papers
REPORT = ReportText(
    title="Governance: baseline against modified",
    lead=("Does tighter governance make what is accepted less harmful, and what does it cost?"),
    methods=(
        "Scripted agents of SWARM, whose p follows from their type. Six settings, the circuit breaker's "
        "threshold (.35, .6, .8) by the security levers (off, on), beside each scenario as published and, "
        "where a tax misleads the collusion detector, without its tax."
    ),
    limitations=(
        "No trained agent takes part: SWARM draws p by an agent's type and reputation. The tightest and the "
        "loosest setting are this study's choice. 1.9.0 has levers without effect and a detector that a tax "
        "misleads; docs/architecture.md names what is guarded against."
    ),
    next=("The same sweep with trained agents is in `study waltz`; then levers that react within an epoch."),
)


def design(what: Sequence[str], cache: Path, progress: Progress) -> Design:
    """The six settings of every scenario in `what` (names or files), beside it as published. Raises BadInput."""
    found = scenarios(what)
    sweeps = {scenario.scenario_id: grid(f"{scenario.scenario_id}: ") for scenario in found}
    return Design(arms(found), claims(found), sweeps=sweeps)


def scenarios(names: Sequence[str]) -> list[Scenario]:
    """The scenarios of these names or files; without any, the three of SCENARIOS.

    Raises BadInput, also where two have the same scenario_id, which is in the names of their arms.
    """
    found: dict[str, tuple[str, Scenario]] = {}
    for name in names or SCENARIOS:
        scenario = load_scenario(name)
        if scenario.scenario_id in found:
            raise BadInput(
                f"{name}: scenario_id is {scenario.scenario_id}, as in {found[scenario.scenario_id][0]}; "
                "each scenario of a study needs one of its own"
            )
        found[scenario.scenario_id] = name, scenario
    return [scenario for _, scenario in found.values()]


def arms(found: Sequence[Scenario]) -> list[ScenarioArm]:
    """Of every scenario: as published, without its tax where that misleads the detector, and the six settings."""
    made = []
    for scenario in found:
        beside = {BASELINE: scenario}
        if needs_tax_free_arm(scenario):
            beside[TAX_FREE] = tax_free(scenario)
        beside |= {setting(limit, on): governed(scenario, limit, on) for limit in BREAKERS for on in SECURITY}
        made += [ScenarioArm(f"{scenario.scenario_id}: {name}", scenario.scenario_id, s) for name, s in beside.items()]
    return made


def claims(found: Sequence[Scenario]) -> list[Claim]:
    """The claims about each scenario: tight governance lowers harm, so does each lever alone, and it costs welfare."""
    made = []
    for scenario in found:
        name = scenario.scenario_id
        loose, tight = setting(BREAKERS[-1], False), setting(BREAKERS[0], True)
        for arm, baseline, text in (
            (
                tight,
                BASELINE,
                "The tightest breaker with the security levers makes what is accepted less harmful than "
                "the published governance does",
            ),
            (setting(BREAKERS[0], False), loose, "A tight breaker alone makes what is accepted less harmful"),
            (setting(BREAKERS[-1], True), loose, "The security levers alone make what is accepted less harmful"),
        ):
            made.append(_claim(name, text, "toxicity_rate", arm, baseline, "lower", MARGIN))
        if needs_tax_free_arm(scenario):
            text = "The tax, by way of the collusion detector, makes what is accepted more harmful"
            made.append(_claim(name, text, "toxicity_rate", BASELINE, TAX_FREE, "higher", MARGIN))
            text = "The tax, by way of the collusion detector, costs welfare"
            made.append(_claim(name, text, "net_social_welfare", BASELINE, TAX_FREE, "lower", 0.0))
        text = "The tightest governance costs welfare beside the published one"
        made.append(_claim(name, text, "net_social_welfare", tight, BASELINE, "lower", 0.0))
    return made


def _claim(scenario: str, text: str, metric: str, arm: str, baseline: str, direction: str, margin: float) -> Claim:
    return Claim.model_validate(
        {
            "claim": f"{scenario}: {text}.",
            "evidence": "this study",
            "metric": metric,
            "arm": f"{scenario}: {arm}",
            "baseline": f"{scenario}: {baseline}",
            "direction": direction,
            "margin": margin,
        }
    )
