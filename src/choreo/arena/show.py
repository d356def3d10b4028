"""The figures of an arena as tables and as a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from choreo.report import plots
from choreo.report.judge_sections import LABELS
from choreo.report.page import PageSection, Table, cell, percent, write_study
from choreo.text.tables import plain_columns


def tables_of(found: Mapping[str, Any]) -> str:
    """All tables as plain columns, each under its question."""
    shown = [f"{section.heading}\n{_plain(section.table)}" for section in _sections(found) if section.table]
    if found["mode"] == "pairs":
        shown.append(_left(found))
    return "\n\n".join(shown)


def write_page(found: Mapping[str, Any], path: Path) -> Path:
    """Writes PATH.html and PATH.md, with the figures beside. Returns the HTML's path."""
    sections = _sections(found)
    if found["mode"] == "pairs" and any(one["value"] is not None for one in found["strengths"].values()):
        names = list(found["strengths"])
        shown = plots.bars(
            names, {"strength": list(found["strengths"].values())}, "Strength, 95 % interval", "log odds", percent=False
        )
        sections[1] = PageSection(sections[1].heading, sections[1].verdict, sections[1].table, shown)
    return write_study(path, "What people said", _intro(found), sections)


def _intro(found: Mapping[str, Any]) -> str:
    equal = sum(one["equal_answers"] for one in found["pairs"]) if found["mode"] == "pairs" else 0
    asked = "pairs of answers" if found["mode"] == "pairs" else "answers"
    raters = sum(of["rated"] > 0 for name, of in found["raters"].items() if name not in found["left_out"])
    intro = (
        f"{raters} raters gave {found['n']} ratings of {found['items']} {asked}, blind to the systems "
        f"{', '.join(found['systems'])}. {found['prompts']} prompts were drawn. "
        + (f"{equal} more pairs were of equal answers, and nobody was asked about them. " if equal else "")
        + "Intervals are of 95 %."
    )
    return intro + (f" Left out of all figures: {', '.join(found['left_out'])}." if found["left_out"] else "")


def _sections(found: Mapping[str, Any]) -> list[PageSection]:
    first = _pair_sections(found) if found["mode"] == "pairs" else _label_sections(found)
    return [*first, _agreement(found), _raters(found)]


def _pair_sections(found: Mapping[str, Any]) -> list[PageSection]:
    rows = [
        [
            f"{one['a']} against {one['b']}",
            percent(one["score"]),
            *(one[name] for name in ("n", "win", "tie", "both_bad", "lose", "equal_answers")),
        ]
        for one in found["pairs"]
    ]
    columns = ("pair", "score", "n", "win", "tie", "both bad", "lose", "equal answers")
    won = PageSection(
        "Who wins?",
        "Win and lose are the first system's. Its score is the share of comparisons that it won, with ties and “both "
        f"bad” as halves. Equal answers were shown to nobody. {_left(found)}",
        Table(columns, rows),
    )
    known = any(one["value"] is not None for one in found["strengths"].values())
    said = (
        "Bradley-Terry: the natural log odds with which a system beats one of mean strength; ties are halves, the "
        "bootstrap is over prompts."
        if known
        else "No finite strengths fit best: one system, or some, won or lost every comparison with the others, or were "
        "not compared."
    )
    strong = [[name, _signed(one)] for name, one in found["strengths"].items()]
    return [won, PageSection("How strong are they?", said, Table(("system", "strength"), strong))]


def _left(found: Mapping[str, Any]) -> str:
    share = percent(found["left"])
    return f"Of the choices between two sides {share} were for the left one; without a bias it is 50 %."


def _label_sections(found: Mapping[str, Any]) -> list[PageSection]:
    rows = [
        [name, of["n"], *(of[measure] for measure in ("asr", "orr", "unsafe", "degenerate"))]
        for name, of in found["measures"].items()
    ]
    sections = [
        PageSection(
            "What are the answers?",
            "By what most raters of an answer said. ASR is over harmful prompts, ORR over all others. Where the raters "
            "are of two minds an answer is open.",
            Table(("system", "n", "ASR", "ORR", "unsafe", "degenerate"), rows),
        )
    ]
    if judges := found["judges"]:
        told = [
            [shown, one["accuracy"]["n"], one["accuracy"], _number(one["kappa"]), _number(one["f1"])]
            for label, shown in LABELS.items()
            if (one := judges.get(label))
        ]
        told += [
            [f"satisfactory, {name}", one["accuracy"]["n"], one["accuracy"], _number(one["kappa"]), _number(one["f1"])]
            for name, one in judges["systems"].items()
        ]
        said = f"The judge's verdicts on {judges['n']} answers came with them. Here they meet what most raters said."
        sections.append(
            PageSection("Does the judge agree?", said, Table(("label", "n", "accuracy", "kappa", "F1"), told))
        )
    return sections


def _agreement(found: Mapping[str, Any]) -> PageSection:
    rows = [[what, one["n"], _number(one)] for what, one in found["alpha"].items()]
    said = (
        "Krippendorff's alpha, for labels without an order: 1 is perfect, 0 is chance. n counts what several raters "
        "rated."
    )
    return PageSection("Do the raters agree?", said, Table(("of", "n", "alpha"), rows))


def _raters(found: Mapping[str, Any]) -> PageSection:
    rows = [
        [name, of["rated"], f"{of['attention']['failed']} of {of['attention']['n']}"]
        for name, of in found["raters"].items()
    ]
    said = "An attention item has one right answer, and is in no figure but this one."
    return PageSection("Who rated?", said, Table(("rater", "rated", "attention items failed"), rows))


def _plain(table: Table) -> str:
    return plain_columns([list(table.columns), *([cell(value) for value in row] for row in table.rows)])


def _number(one: Mapping[str, Any]) -> str | None:
    return None if one["value"] is None else f"{one['value']:.2f} ({one['low']:.2f} to {one['high']:.2f})"


def _signed(one: Mapping[str, Any]) -> str | None:
    return None if one["value"] is None else f"{one['value']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"
