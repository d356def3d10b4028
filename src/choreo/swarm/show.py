"""A run as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from choreo.swarm.criteria import evaluate_criteria
from choreo.swarm.metrics import all_metrics
from choreo.swarm.records import SimulationRun
from choreo.swarm.reports import detections
from choreo.swarm.scenario import Scenario
from choreo.text.tables import plain_columns

PRINTED = (
    "toxicity_rate",
    "toxicity_rate_all",
    "quality_gap",
    "spread",
    "conditional_loss_initiator",
    "conditional_loss_counterparty",
)


def printed_figures(scenario: Scenario, run: SimulationRun) -> dict[str, object]:
    """What `choreo swarm run --json` prints. Rates are fractions; NaN where a figure is not defined."""
    measured = all_metrics(run.interactions, run.payoffs)
    return {
        "interactions": len(run.interactions),
        "accepted": sum(i.accepted for i in run.interactions),
        **{name: measured[name].value for name in PRINTED},
        "criteria": {judged.name: judged.outcome for judged in evaluate_criteria(scenario.success_criteria, run)},
    }


def as_text(scenario: Scenario, run: SimulationRun) -> str:
    """The same in words, with sizes, limits, and how well SWARM's detectors knew the agents."""
    accepted = sum(i.accepted for i in run.interactions)
    return "\n".join(
        [
            f"{run.scenario_id}, seed {run.seed}: {len(run.interactions)} interactions, {accepted} accepted",
            *_columns(_metrics(run), "metric", "value", "n"),
            *_columns(_criteria(scenario, run), "criterion", "outcome", "value", "limit", ""),
            *_columns(_detections(run), "detector of harmful", "precision", "recall", "flagged of each type"),
        ]
    )


def _metrics(run: SimulationRun) -> Iterator[tuple[str, ...]]:
    measured = all_metrics(run.interactions, run.payoffs)
    for name in PRINTED:
        yield name, _number(measured[name].value), str(measured[name].n)


def _criteria(scenario: Scenario, run: SimulationRun) -> Iterator[tuple[str, ...]]:
    for judged in evaluate_criteria(scenario.success_criteria, run):
        yield judged.name, judged.outcome, _number(judged.value), f"{judged.limit:g}", judged.reason


def _detections(run: SimulationRun) -> Iterator[tuple[str, ...]]:
    for name, found in detections(run).items():
        types = ", ".join(f"{kind} {hit}/{all_}" for kind, (hit, all_) in found.by_type.items() if hit)
        yield name, _number(found.precision), _number(found.recall), types or "none"


def _number(value: float) -> str:
    return "–" if math.isnan(value) else str(int(value)) if value == int(value) else f"{value:.4f}"


def _columns(rows: Iterator[tuple[str, ...]], *head: str) -> Sequence[str]:
    table = [head, *rows]
    if len(table) == 1:
        return []
    return ["", plain_columns(table)]
