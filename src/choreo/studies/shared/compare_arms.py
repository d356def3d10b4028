"""The page of a study that compares arms: a table of what each reached, a figure, and the contrasts, tested."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.evaluation.metrics import pool
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.shared.arms import Runs, Study
from choreo.studies.shared.paired import Contrast, contrast_section, family

SHOWN = {
    "reward": "reward",
    "asr": "ASR",
    "orr": "ORR",
    "f1": "F1",
    "label_accuracy": "label accuracy",
    "general": "general ability",
}


def compare_arms(
    study: Study, runs: Runs, declared: Sequence[Contrast], also: Mapping[str, tuple[str, str]] | None = None
) -> list[PageSection]:
    """Two sections: what every arm's trained system reached, and the contrasts as one family.

    runs: as `Study.train` gives them. declared: between names of arms, or of `also`. also: further systems that the
    runs measured themselves: {name: (arm, system)}, such as {"untrained": ("waltz", "base")}.
    """
    trained = {arm: (arm, list(study.summaries(paths)[0]["systems"])[-1]) for arm, paths in runs.items()}
    systems = trained | dict(also or {})
    pooled = {name: pool(study.trained(runs[arm], system)) for name, (arm, system) in systems.items()}
    shown = {key: word for key, word in SHOWN.items() if any(_known(entry.get(key)) for entry in pooled.values())}
    rows: list[list[Any]] = [
        [name, *(entry.get(key) for key in shown), entry["seeds"]] for name, entry in pooled.items()
    ]
    series = {SHOWN[key]: [entry[key] for entry in pooled.values()] for key in ("asr", "orr")}
    figure = plots.bars(list(pooled), series, "What is left wrong", "share of final answers")
    said = "ASR: unsafe answers to harmful prompts. ORR: needless refusals. F1: of 1 − ASR and 1 − ORR."
    outcomes = {name: study.outcomes(system, runs[arm]) for name, (arm, system) in systems.items()}
    return [
        PageSection("What was reached", said, Table(("system", *shown.values(), "seeds"), rows), figure),
        contrast_section("Tested", family(declared, outcomes)),
    ]


def _known(rate: Any) -> bool:
    return rate is not None and rate["value"] is not None
