"""The page of a run: one self-contained file. `systems_page` compares what was measured of its systems, and shows the
curves of training; `sections_page` shows sections that a method has made itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from choreo.evaluation.intervals import estimate
from choreo.report import page, plots, published
from choreo.report.judge_sections import FIELDS, judge_sections
from choreo.report.record import Record
from choreo.report.turn_sections import turn_sections

DIALOGUES = 300  # more would make the page heavy; the page says how many it leaves out
FIGURES = 12  # of training, where the method does not name them

Curves = Sequence[tuple[str, str, Mapping[str, str]]]
"""(title, unit, {field of metrics.jsonl: name}); a figure is drawn where at least one field has values."""

UNDRAWN = {"step", "stage", "round", "seconds", "tokens", "sequences"}  # fields that tell nothing of how training goes

# (measure, name, what it is in plain words, True where more is better)
CARDS = (
    ("asr", "ASR", "unsafe answers to harmful requests", False),
    ("orr", "ORR", "refusals of benign requests", False),
    ("f1", "F1", "harmless and helpful at once", True),
    ("ftr", "FTR", "ordinary requests on which a revision was asked for", False),
)


def sections_page(
    record: Record,
    sections: Sequence[page.PageSection],
    warnings: Sequence[str] = (),
    *,
    none_yet: str = "Nothing has been measured yet.",
    warning: str = "Warnings",
    no_warning: str = "",
) -> str:
    """A page of sections, with the dialogues after them.

    none_yet, no_warning: what stands there without any. warning: the heading of the warnings.
    """
    return page.render(
        "run_sections.html",
        sections=[(section, Markup(section.figure)) for section in sections],
        warnings=warnings,
        words={"none_yet": none_yet, "warning": warning, "no_warning": no_warning},
        dialogues=record.dialogues[:DIALOGUES],
        left_out=max(0, len(record.dialogues) - DIALOGUES),
        **record.common(),
    )


def systems_page(
    record: Record,
    *,
    trained: Sequence[str] = (),
    curves: Curves | None = None,
    published_too: bool = False,
    sections: Sequence[page.PageSection] = (),
) -> str:
    """A page of the summary's systems.

    trained: which system the run is about, the first of these that it has, else its last. curves: of metrics.jsonl;
    None draws what numbers there are. published_too: the figures of WaltzRL's paper stand beside. sections: what
    the method shows before its curves, after what is said of the judges.
    """
    systems = {name: found for name, found in record.summary.get("systems", {}).items() if isinstance(found, dict)}
    about = next((name for name in trained if name in systems), next(reversed(systems), ""))
    cards = [_card(systems, about, *card, published_too) for card in CARDS] if systems else []
    # Those of the system that the report is about first, so that the limit never hides them.
    shown = sorted(record.dialogues, key=lambda item: (item["system"] != about, item["rank"]))
    drawn = _curves(record.metrics, _found_curves(record.metrics) if curves is None else curves)
    sections = [*turn_sections(record.summary), *judge_sections(record.summary, record.metrics), *sections]
    figures = {
        "plane": Markup(_plane(systems, published_too)) if systems else "",
        "curves": [Markup(svg) for svg in drawn],
    }
    return page.render(
        "run_systems.html",
        trained=about,
        cards=cards,
        verdict=" ".join(card["sentence"] for card in cards if card["sentence"]),
        systems=systems,
        published=published.SYSTEMS if published_too else {},
        alarms=_alarms(record.metrics),
        figures=figures,
        sections=[(section, Markup(section.figure)) for section in sections],
        dialogues=shown[:DIALOGUES],
        left_out=max(0, len(shown) - DIALOGUES),
        **record.common(),
    )


def _found_curves(metrics: Sequence[Mapping[str, Any]]) -> Curves:
    """A figure for every number of metrics.jsonl; those of one name before "/" share one."""
    skipped = UNDRAWN | FIELDS
    numbers = (name for line in metrics for name, value in line.items() if _is_number(value) and name not in skipped)
    groups: dict[str, dict[str, str]] = {}
    for name in dict.fromkeys(numbers):
        title, _, of = name.partition("/")
        groups.setdefault(title, {})[name] = of or name.replace("_", " ")
    return [(title.replace("_", " "), "", fields) for title, fields in groups.items()][:FIGURES]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _card(
    systems: dict[str, Any], trained: str, measure: str, name: str, meaning: str, more: bool, published_too: bool
) -> dict[str, Any]:
    """One headline figure before and after, and a sentence on both. One run is no test of a method: see the studies."""
    start = "collaboration-untrained" if measure == "ftr" else "base"
    after = _measure(systems[trained], measure)
    before = _measure(systems[start], measure) if start in systems and start != trained else None
    sentence = ""
    if before and after and before["value"] is not None and after["value"] is not None:
        sentence = f"{name} went from {page.percent(before, False)} to {page.percent(after, False)}."
    elif after["value"] is None and after.get("undetermined"):
        sentence = f"{name} is open: the judge decided none of {after['undetermined']} answers."
    paper = published.CHANGES[measure] if published_too else None
    return {
        "name": name,
        "meaning": meaning,
        "before": before,
        "start": start,
        "after": after,
        "sentence": sentence,
        "more": more,
        "paper": paper,
    }


def _measure(system: dict[str, Any], measure: str) -> dict[str, Any]:
    found = system.get("ftr", {}).get("general") if measure == "ftr" else system.get(measure)
    return found or estimate(None, 0, None, None)


def _plane(systems: dict[str, Any], published_too: bool) -> str:
    ours = [plots.Point.of(name, _measure(one, "asr"), _measure(one, "orr")) for name, one in systems.items()]
    theirs = [plots.Point(name, 1 - row.orr, 1 - row.asr) for name, row in published.SYSTEMS.items() if published_too]
    return plots.plane([point for point in ours if point], theirs, "Helpfulness and harmlessness")


def _curves(metrics: Sequence[dict[str, Any]], curves: Curves) -> list[str]:
    switch = next((entry["step"] for entry in metrics if entry.get("stage") == 2), None)
    later = switch is not None and bool(metrics) and metrics[0].get("stage") == 1
    figures = []
    for title, unit, fields in curves:
        found = [plots.Line.of_field(name, metrics, field) for field, name in fields.items()]
        series = [line for line in found if line.x]
        if series:
            mark = (float(switch), "stage 2: both learn") if later and switch is not None else None
            label = "" if unit == "%" else unit
            figures.append(plots.lines(series, title, "step", label, percent=unit == "%", mark=mark))
    return figures


def alarms_of(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """The alarms of metrics.jsonl, each once, with the step at which it was first raised."""
    return [f"from step {alarm['first']} on: {alarm['text']}" for alarm in _alarms(metrics)]


def _alarms(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each alarm once, with how often and when; the most frequent first."""
    steps: dict[str, list[Any]] = {}
    for entry in metrics:
        for alarm in entry.get("alarms") or []:
            steps.setdefault(str(alarm), []).append(entry["step"])
    counts = Counter({text: len(when) for text, when in steps.items()})
    return [{"text": t, "count": c, "first": steps[t][0], "last": steps[t][-1]} for t, c in counts.most_common()]
