"""`choreo swarm study governance`: the circuit breaker's threshold × the security levers, on scripted scenarios."""

from __future__ import annotations

from collections.abc import Sequence

from choreo.errors import BadInput
from choreo.studies.swarm.folder import Arm
from choreo.swarm.annotations import Claim
from choreo.swarm.reports import needs_tax_free_arm, tax_free
from choreo.swarm.scenario import Scenario, changed, load_scenario

SCENARIOS = ("strict_governance", "security_evaluation", "collusion_detection")
BREAKERS, SECURITY = (0.35, 0.6, 0.8), (False, True)
BASELINE, TAX_FREE = "as published", "as published, tax-free"
MARGIN = 0.01  # of toxicity, as in the annotations of the papers


def scenarios(names: Sequence[str]) -> list[Scenario]:
    """Those asked for, the three named ones by default. Raises BadInput, also where two have one scenario_id, by
    which arms are named."""
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


def arms(found: Sequence[Scenario]) -> list[Arm]:
    """Of every scenario its six settings, itself, and itself without its tax where that misleads the detector."""
    made = []
    for scenario in found:
        beside = {BASELINE: scenario}
        if needs_tax_free_arm(scenario):
            beside[TAX_FREE] = tax_free(scenario)
        beside |= {setting(limit, on): governed(scenario, limit, on) for limit in BREAKERS for on in SECURITY}
        made += [Arm(f"{scenario.scenario_id}: {name}", scenario.scenario_id, s) for name, s in beside.items()]
    return made


def governed(scenario: Scenario, limit: float, security: bool) -> Scenario:
    return changed(scenario, circuit_breaker_enabled=True, freeze_threshold_toxicity=limit, security_enabled=security)


def grid(head: str) -> list[list[str]]:
    """The names of the six settings, each behind `head`: rows by breaker, columns by security."""
    return [[f"{head}{setting(limit, on)}" for on in SECURITY] for limit in BREAKERS]


def setting(limit: float, security: bool) -> str:
    return f"breaker {limit:g}, security {'on' if security else 'off'}"


def claims(found: Sequence[Scenario]) -> list[Claim]:
    """What governance is for, asked of every scenario: does the tightest setting lower harm, what does each lever do
    alone, and what does it cost?"""
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
