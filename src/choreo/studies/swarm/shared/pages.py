"""The report of a SWARM study: Markdown, JSON and one self-contained page, made from results.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from choreo.files import durable
from choreo.report.page import write_study
from choreo.studies.swarm.shared import results
from choreo.studies.swarm.shared.results import ClaimResult, interval_of, judge_claims, measured
from choreo.studies.swarm.shared.sections import CITATIONS, study_sections
from choreo.swarm.contrasts import MeanInterval


def write(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Writes study.html, study.md with its figures, and report.json; returns the page and what report.json holds.

    Raises BadInput where the folder holds no finished study.
    """
    study = results.load(folder)
    verdicts = judge_claims(study)
    page = write_study(folder / "study.html", study.title, study.intro, study_sections(study, verdicts))
    report = {
        "schema": 1,
        "study": study.name,
        "seeds": study.seeds,
        "plan": study.plan,
        "claims": [_claim(j) for j in verdicts],
        "arms": {
            arm: {metric: _numbers(interval_of(study, arm, metric)) for metric in measured(study, arm)}
            for arm in study.results
        },
        "calibration": study.calibration,
        "versions": study.versions,
        "citations": CITATIONS,
        "page": str(page),
    }
    durable.write_json(folder / "report.json", report)
    return page, report


def _claim(j: ClaimResult) -> dict[str, Any]:
    found = j.contrast and {
        **_numbers(j.contrast.difference),
        "effect": j.contrast.effect,
        "p": j.contrast.p,
        "p_holm": j.adjusted,
        "detectable": j.detectable,
    }
    outcome = {"difference": found, "verdict": j.verdict, "why": j.why, "scope": j.scope, "exploratory": j.exploratory}
    return {**j.claim.model_dump(), **outcome}


def _numbers(found: MeanInterval) -> dict[str, Any]:
    return {
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "n": found.n,
        "groups": found.groups,
        "played": found.played,
    }
