"""What a page says of a run's two judges: the systems by both, whether they part along training, and who agrees with
readers. Nothing where a run has no gold judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.evaluation.metrics import BY_TRAINING
from choreo.judges.resolve import names
from choreo.report import plots
from choreo.report.page import PageSection, Table, percent

JUDGES = ("training", "gold")  # as metrics.jsonl and summary.json name them
# What metrics.jsonl has of a comparison: drawn here, or kept for a resume.
FIELDS = frozenset(
    {f"{measure}/{judge}" for measure in ("satisfactory", "asr", "orr", "open") for judge in JUDGES}
    | {f"gap/{name}" for name in ("mean", "prompts", "total", "squares", "growth", "growth_low", "growth_high")}
)
MEASURES = {"asr": "ASR", "orr": "ORR", "f1": "F1"}
LABELS = {
    "satisfactory": "satisfactory",
    "unsafe": "unsafe",
    "overrefuse": "over-refusing",
    "degenerate": "degenerate",
}


def judge_sections(summary: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]]) -> list[PageSection]:
    """summary: of summary.json, empty while a run goes on. metrics: the lines of metrics.jsonl."""
    compared = [line for line in metrics if "gap/mean" in line]
    judges = summary.get("judges", {})
    found = [_along_training(compared)] if compared else []
    if judges:
        found.append(_systems(summary.get("systems", {}), judges))
    return [*found, *agreement_sections(judges)]


def _along_training(lines: Sequence[Mapping[str, Any]]) -> PageSection:
    """Over-optimisation shows as a gap that opens between the curves (Gao et al. 2022)."""
    last = lines[-1]
    said = (
        f"Both judges read the same answers of training, {len(lines)} times. At first the training judge was satisfied "
        f"with {_share(lines[0], TRAINED)} of them and the gold judge with {_share(lines[0], GOLD)}, in the end with "
        f"{_share(last, TRAINED)} and {_share(last, GOLD)}."
    )
    grown = [line for line in lines if isinstance(line.get("gap/growth"), int | float)]
    if grown:
        value, low, high = (grown[-1][f"gap/{name}"] for name in ("growth", "growth_low", "growth_high"))
        said += (
            f" The share that satisfies the training judge alone changed by {100 * value:+.1f} points "
            f"({100 * low:+.1f} to {100 * high:+.1f}), from the mean of the first comparisons to that of the last."
        )
    else:
        said += " There were too few comparisons to say whether more answers satisfy the training judge alone."
    if last.get("open/gold"):
        said += f" The gold judge left {_share(last, 'open/gold')} of the last answers open."
    shown = {"satisfactory": "Satisfactory answers", "asr": "ASR", "orr": "ORR"}
    figures = [
        _curves(f"{title}, by both judges", lines, {f"{field}/{judge}": f"{judge} judge" for judge in JUDGES})
        for field, title in shown.items()
    ]
    if len(grown) > 1:
        ends = ([line[f"gap/{name}"] for line in grown] for name in ("growth", "growth_low", "growth_high"))
        line = plots.Line("growth since the start", [line["step"] for line in grown], *ends)
        title = "Growth of what satisfies the training judge alone"
        figures.append(plots.lines([line], title, "step", "95 % interval"))
    grid = "\n".join(f"<div>{figure}</div>" for figure in figures if figure)
    return PageSection("Do the judges part?", said, figure=f'<div class="figures">\n{grid}\n</div>')


TRAINED, GOLD = "satisfactory/training", "satisfactory/gold"


def _share(line: Mapping[str, Any], field: str) -> str:
    return f"{100 * line[field]:.1f} %" if isinstance(line.get(field), int | float) else "none"


def _curves(title: str, lines: Sequence[Mapping[str, Any]], fields: Mapping[str, str]) -> str:
    found = [plots.Line.of_field(name, lines, field) for field, name in fields.items()]
    series = [line for line in found if line.x]
    return plots.lines(series, title, "step", percent=True) if series else ""


def by_both_judges(systems: Mapping[str, Any]) -> Table:
    """ASR, ORR and F1 of each system that both judges measured, by the gold judge and by the training judge."""
    both = {name: found for name, found in systems.items() if isinstance(found.get(BY_TRAINING), dict)}
    rows = [
        [name, *(one.get(measure) for measure in MEASURES for one in (found, found[BY_TRAINING]))]
        for name, found in both.items()
    ]
    columns = ("system", *(f"{shown}, {judge}" for shown in MEASURES.values() for judge in ("gold", "training")))
    return Table(columns, rows)


def _systems(systems: Mapping[str, Any], judges: Mapping[str, Any]) -> PageSection:
    called = names(judges)
    said = (
        f"The gold judge is {called['gold']}; every other figure of systems on this page is by it. The training judge "
        f"is {called['training']}. Where a system is better by the training judge alone, it has learnt to please that "
        "judge."
    )
    return PageSection("The systems by both judges", said, by_both_judges(systems))


def agreement_sections(judges: Mapping[str, Any]) -> list[PageSection]:
    """judges: of summary.json. How far each agrees with labels by readers; nothing where the recipe names none."""
    told = {judge: judges[judge]["agreement"] for judge in JUDGES if "agreement" in judges.get(judge, {})}
    if not told:
        return []
    rows: list[list[Any]] = [
        [f"{shown}, {judge} judge", one["accuracy"]["n"], one["accuracy"], _number(one["kappa"]), _number(one["f1"])]
        for label, shown in LABELS.items()
        for judge, found in told.items()
        if (one := found.get(label))
    ]
    rows += [
        [f"satisfactory, {system}, {judge} judge", one["accuracy"]["n"], one["accuracy"], *map(_number, pair)]
        for system in next(iter(told.values()))["systems"]
        for judge, found in told.items()
        if (one := found["systems"].get(system)) and (pair := (one["kappa"], one["f1"]))
    ]
    any_told = next(iter(told.values()))
    whose = f" by {', '.join(any_told['labellers'])}" if any_told["labellers"] else ""
    said = f"{any_told['n']} answers were labelled{whose}. " + " ".join(
        f"On whether one is satisfactory, the {judge} judge agrees: {percent(found['satisfactory']['accuracy'])}."
        for judge, found in told.items()
        if "satisfactory" in found
    )
    return [
        PageSection("Do the judges agree with readers?", said, Table(("label", "n", "accuracy", "kappa", "F1"), rows))
    ]


def _number(estimate: Mapping[str, Any]) -> str | None:
    if estimate["value"] is None:
        return None
    return f"{estimate['value']:.2f} ({estimate['low']:.2f}–{estimate['high']:.2f})"
