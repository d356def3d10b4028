"""What a SWARM study found, as results.json holds it, and the verdict on every claim."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.evaluation.paired import ALPHA, holm
from choreo.files import durable
from choreo.studies.swarm.shared.folder import Results, metric_sample
from choreo.swarm.annotations import Claim
from choreo.swarm.contrasts import ClaimContrast, MeanInterval, claim_verdict, contrast, mean_interval, smallest_told

FILE = "results.json"
ONE_RUN = "about this run and these prompts"


@dataclass(frozen=True)
class ClaimResult:
    """A claim and the verdict on it.

    contrast: None where the claim is not testable or an arm was not played; `why` then names the arm.
    adjusted: p, corrected for the number of claims. scope: of a verdict that is not about the method: with one run, the
    seeds draw from its answers to the same prompts, so the verdict says nothing of other runs or other prompts.
    detectable: how far from the margin a difference would have been told in four of five repetitions, at the strictest
    step of the correction; NaN without a contrast.
    """

    claim: Claim
    contrast: ClaimContrast | None
    adjusted: float
    verdict: str
    exploratory: bool
    why: str = ""
    scope: str = ""
    detectable: float = math.nan


@dataclass(frozen=True)
class SwarmStudy:
    """What results.json holds. sweeps: arms of each governance map, rows (breaker) by columns (security)."""

    name: str
    title: str
    intro: str
    seeds: tuple[int, ...]
    plan: Mapping[str, Any]
    claims: tuple[Claim, ...]
    results: Results
    main: tuple[str, ...]
    sweeps: Mapping[str, Sequence[Sequence[str]]]
    sweep_rows: tuple[str, ...]
    sweep_columns: tuple[str, ...]
    calibration: Mapping[str, Mapping[str, Any]]
    methods: str
    limitations: str
    next: str
    versions: Mapping[str, str]


def save(folder: Path, study: SwarmStudy) -> None:
    """Writes results.json."""
    content = {**vars(study), "claims": [claim.model_dump() for claim in study.claims]}
    durable.write_json(folder / FILE, content)


def load(folder: Path) -> SwarmStudy:
    """Raises BadInput where the folder holds no finished SWARM study."""
    file = folder / FILE
    if not file.is_file():
        raise BadInput(f"{folder}: holds no finished SWARM study (it has no {FILE})")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        results = {
            arm: {group: {int(seed): _numbers(row) for seed, row in seeds.items()} for group, seeds in groups.items()}
            for arm, groups in content["results"].items()
        }
        claims = tuple(Claim(**claim) for claim in content["claims"])
        return SwarmStudy(**{**content, "results": results, "claims": claims, "seeds": tuple(content["seeds"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{file}: not what a SWARM study writes: {str(error).splitlines()[0]}") from None


def judge_claims(study: SwarmStudy) -> list[ClaimResult]:
    """The verdict on every claim.

    p is corrected (Holm) for all planned claims that were tested, so that a claim added later changes no planned
    verdict; p of an exploratory claim is corrected for all claims that were tested.
    """
    found = [_contrast(study, claim) for claim in study.claims]
    ps, exploratory = [c.p if c else math.nan for c in found], study.plan["exploratory"]
    planned = holm([math.nan if open_ else p for p, open_ in zip(ps, exploratory, strict=True)])
    adjusted = [a if open_ else b for a, b, open_ in zip(holm(ps), planned, exploratory, strict=True)]
    tested = [not math.isnan(p) for p in ps]
    planned_tested = sum(one and not open_ for one, open_ in zip(tested, exploratory, strict=True))
    return [
        ClaimResult(
            claim,
            c,
            p,
            claim_verdict(c, p) if c else "not testable",
            open_,
            _missing(study, claim),
            _scope(study, c),
            smallest_told(c, ALPHA / max(1, sum(tested) if open_ else planned_tested)) if c else math.nan,
        )
        for claim, c, p, open_ in zip(study.claims, found, adjusted, exploratory, strict=True)
    ]


def interval_of(study: SwarmStudy, arm: str, metric: str) -> MeanInterval:
    """The mean of a metric over the runs of an arm, with its 95 % interval."""
    return mean_interval(metric_sample(study.results, arm, metric))


def measured(study: SwarmStudy, arm: str) -> list[str]:
    """The metrics that the arm's runs gave."""
    return sorted({name for seeds in study.results[arm].values() for row in seeds.values() for name in row})


def _contrast(study: SwarmStudy, claim: Claim) -> ClaimContrast | None:
    if not claim.testable or claim.arm not in study.results or claim.baseline not in study.results:
        return None
    arm, baseline = (metric_sample(study.results, name, claim.metric) for name in (claim.arm, claim.baseline))
    return contrast(arm, baseline, claim.direction, claim.margin)


def _scope(study: SwarmStudy, found: ClaimContrast | None) -> str:
    """ONE_RUN for a verdict on one training. With scripted agents (no calibration) every seed is another world."""
    return ONE_RUN if study.calibration and found and found.difference.groups == 1 else ""


def _missing(study: SwarmStudy, claim: Claim) -> str:
    absent = [name for name in (claim.arm, claim.baseline) if name not in study.results]
    return f"no run gives {' and '.join(absent)}" if claim.testable and absent else ""


def _numbers(row: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in row.items()}
