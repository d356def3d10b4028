"""SWARM's collusion and security reports, held against what the agents truly are, and its tax artefact."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from choreo.swarm.metrics import toxicity_rate
from choreo.swarm.records import HARMFUL, SimulationRun
from choreo.swarm.scenario import Scenario, with_levers

Named = TypeVar("Named", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Detection:
    """flagged: what a detector named; harmful: what it should have; hits: both. by_type: (flagged, all) of each type.

    precision = hits/flagged and recall = hits/harmful, NaN where nothing was flagged or there was nothing to find.
    """

    flagged: int
    harmful: int
    hits: int
    by_type: Mapping[str, tuple[int, int]]

    @property
    def precision(self) -> float:
        return self.hits / self.flagged if self.flagged else math.nan

    @property
    def recall(self) -> float:
        return self.hits / self.harmful if self.harmful else math.nan


def detection(flagged: Collection[Named], types: Mapping[Named, str], harmful: Collection[str]) -> Detection:
    """How well `flagged` names, among the keys of `types`, those whose type is one of `harmful`."""
    wanted = {name for name, kind in types.items() if kind in harmful}
    by_type = {
        kind: (sum(name in flagged for name in types if types[name] == kind), list(types.values()).count(kind))
        for kind in sorted(set(types.values()))
    }
    return Detection(len(set(flagged)), len(wanted), len(wanted & set(flagged)), by_type)


def detections(run: SimulationRun) -> dict[str, Detection]:
    """Of the collusion report its agents and its pairs, of the security report its agents; those that there are.

    A pair counts as harmful when both its agents are: two scripted adversaries do not plot, but they are the only ones
    who could. Its type is the two types.
    """
    found = {}
    if run.collusion is not None:
        risky = {name for name, risk in run.collusion.agents.items() if risk >= run.collusion.threshold}
        found["collusion, agents"] = detection(risky, run.agents, HARMFUL)
        kinds = {
            tuple(sorted(pair)): "+".join(sorted(run.agents[name] for name in pair))
            for pair in combinations(run.agents, 2)
        }
        both = {"+".join(sorted((a, b))) for a in HARMFUL for b in HARMFUL}
        flagged = {tuple(sorted((pair.a, pair.b))) for pair in run.collusion.pairs}
        found["collusion, pairs"] = detection(flagged, kinds, both)
    if run.security is not None:
        risky = {name for name, score in run.security.agents.items() if score >= run.security.threshold}
        found["security, agents"] = detection(risky, run.agents, HARMFUL)
    return found


# ---- the tax artefact ---------------------------------------------------------------------------


def needs_tax_free_arm(scenario: Scenario) -> bool:
    """Whether the tax can make the collusion detector flag honest pairs here."""
    return scenario.governance.transaction_tax_rate > 0 and scenario.governance.collusion_detection_enabled


def tax_free(scenario: Scenario) -> Scenario:
    """The scenario without its tax on transactions."""
    return with_levers(scenario, transaction_tax_rate=0.0)


def tax_artefact(taxed: SimulationRun, free: SimulationRun) -> str | None:
    """A note where flagged pairs owe it to the tax; `free` is the same scenario and seed without it.

    SWARM's detector correlates the costs of a pair's two agents. A tax charges both in proportion to one number, so
    the correlation is 1 for whoever trades often, honest or not; penalties then lower honest agents' reputation, and
    with it the quality of what they do.
    """
    if taxed.collusion is None or free.collusion is None:
        return None
    alike = [pair for pair in taxed.collusion.pairs if pair.correlation > 0.999]
    if not alike:
        return None
    innocent = sum(taxed.agents[pair.a] not in HARMFUL and taxed.agents[pair.b] not in HARMFUL for pair in alike)
    toxic, freed = toxicity_rate(taxed.interactions), toxicity_rate(free.interactions)
    return (
        f"tax artefact: in {len(alike)} of {len(taxed.collusion.pairs)} flagged pairs the two agents' costs correlate "
        f"at 1.0, which the tax alone brings about; {innocent} of them hold no harmful agent. Without the tax "
        f"{len(free.collusion.pairs)} pairs are flagged, and toxicity_rate is {freed.value:.4f} (with it "
        f"{toxic.value:.4f})"
    )
