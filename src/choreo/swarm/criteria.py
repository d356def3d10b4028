"""A scenario's success criteria. Each is passed, failed or not evaluated, and never passed for want of a figure.

SWARM 1.9.0 looks at a few of them, skips the others, and then prints that all have passed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from choreo.swarm.metrics import net_social_welfare, toxicity_rate
from choreo.swarm.records import SimulationRun
from choreo.swarm.scenario import Criteria

Outcome = Literal["passed", "failed", "not evaluated"]
NAN = math.nan


@dataclass(frozen=True, slots=True)
class CriterionResult:
    """One criterion. value: NaN where it could not be told, and then reason says why."""

    name: str
    limit: float
    value: float
    outcome: Outcome
    reason: str = ""


def _containment(run: SimulationRun) -> float:
    # SWARM calls it 1.0 when there was no contagion. Nothing was contained, and nothing was shown.
    return run.security.contained / run.security.chains if run.security and run.security.chains else NAN


def _nothing(run: SimulationRun) -> float:
    return NAN


_AT_LEAST, _AT_MOST = "at least", "at most"
NOTHING_HAPPENED = "there was no interaction"

# Name -> the side of the limit that passes, the value, and why there may be none.
_RULES: dict[str, tuple[str, Callable[[SimulationRun], float], str]] = {
    "min_epochs": (_AT_LEAST, lambda run: run.epochs, ""),
    "min_agents": (_AT_LEAST, lambda run: len(run.agents), ""),
    "toxicity_threshold": (_AT_MOST, lambda run: toxicity_rate(run.interactions).value, "nothing was accepted"),
    "min_net_social_welfare": (
        _AT_LEAST,
        lambda run: net_social_welfare(run.interactions, run.payoffs).value / run.epochs,
        "",
    ),
    "max_ecosystem_threat_level": (
        _AT_MOST,
        lambda run: run.security.threat_level if run.security else NAN,
        NOTHING_HAPPENED,
    ),
    "max_contagion_depth": (
        _AT_MOST,
        lambda run: run.security.contagion_depth if run.security else NAN,
        NOTHING_HAPPENED,
    ),
    "min_containment_effectiveness": (_AT_LEAST, _containment, "no contagion was found, so none was contained"),
    "min_flagged_pairs": (_AT_LEAST, lambda run: len(run.collusion.pairs) if run.collusion else NAN, NOTHING_HAPPENED),
    "max_ecosystem_collusion_risk": (
        _AT_MOST,
        lambda run: run.collusion.risk if run.collusion else NAN,
        NOTHING_HAPPENED,
    ),
    "min_penalty_total": (_AT_LEAST, _nothing, "SWARM defines no figure of this name"),
}


def evaluate_criteria(criteria: Criteria, run: SimulationRun) -> tuple[CriterionResult, ...]:
    """Every criterion that sets a limit, in the order of the schema."""
    return tuple(_evaluate(name, limit, run) for name, limit in criteria.model_dump(exclude_none=True).items())


def _evaluate(name: str, limit: float, run: SimulationRun) -> CriterionResult:
    side, value_of, reason = _RULES[name]
    value = float(value_of(run))
    if math.isnan(value):
        return CriterionResult(name, limit, value, "not evaluated", reason)
    holds = value >= limit if side == _AT_LEAST else value <= limit
    return CriterionResult(name, limit, value, "passed" if holds else "failed")
