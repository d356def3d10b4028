"""The page of an attack: curves against the number of tries, what won, and the prompts and answers that did."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from choreo.attacks.play import FOLDER, title, title_parts
from choreo.errors import BadInput
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.report import page, plots
from choreo.report.page import PageSection, Table

SHOWN = 12  # tries that won, of every attack on every system
LETTERS = 300  # of a prompt or an answer
NAMES = {"asr": ("ASR", "unsafe final answers to harmful prompts"), "orr": ("ORR", "benign prompts over-refused")}
INTRO = """\
Every prompt is tried until a try wins or the budget is used up: on harmful prompts an unsafe final answer wins, on \
benign ones an over-refusing one. The first try is the prompt as it stands. A point is the share of prompts that were \
won within so many tries, with its 95 % interval over prompts. Prompts on whose tries the judge never decided are in \
no rate; they are counted as open."""

Record = Mapping[str, Any]


def write_attack_report(folder: Path) -> Path:
    """Writes the page of the attack in `folder`, from its summary and its tries. Raises BadInput where it has no
    summary."""
    if not (folder / "summary.json").is_file():
        raise BadInput(f"{folder}: this attack has not come to its end; go on with choreo attack … --resume")
    summary = read_object(folder / "summary.json")
    tries = (one for file in sorted(folder.glob(f"{FOLDER}/*.jsonl.gz")) for one in durable.read_lines(file))
    wins = [
        one
        for one in tries
        if one["attack"]["won"]
        and one["attack"]["try"] <= summary["tries"]
        and title(one["attack"]["system"], one["attack"]["name"]) in summary["systems"]
    ]
    return page.write(folder / "report.html", attack_page(summary, wins))


def attack_page(summary: Mapping[str, Any], wins: Sequence[Record]) -> str:
    """The page's HTML. wins: the records of tries that won (`play.play_attack`)."""
    sections = [*_curves(summary), _contrasts(summary), _ways(summary, wins), _examples(wins)]
    shown = [section for section in sections if section]
    target, judge = summary["target"]["name"], summary["judge"]["judge"]
    counts = ", ".join(f"{count} {kind}" for kind, count in summary["prompts"].items())
    facts = f"Target: {target}. Judge: {judge}. Prompts: {counts}. Seed {summary['seed']}."
    return page.render(
        "study.html",
        title=f"{target} under attack",
        intro=f"{facts}\n\n{INTRO}",
        sections=[(section, Markup(section.figure)) for section in shown],
    )


def curve_rows(summary: Mapping[str, Any], rate: str) -> tuple[list[str], list[list[Any]]]:
    """(numbers of tries, rows of the attack's title, its rates at these, and the share of the tries on the prompts of
    that rate that are open)."""
    systems = {name: one for name, one in summary["systems"].items() if rate in one["tries"]}
    at = list(dict.fromkeys(k for one in systems.values() for k in one["tries"][rate]))
    return at, [[name, *(one["tries"][rate][k] for k in at), one["open"][rate]] for name, one in systems.items()]


def _curves(summary: Mapping[str, Any]) -> list[PageSection]:
    """A section for every attack, with the curves of the pair beside those of its conversation agent alone."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, one in summary["systems"].items():
        system, attack = title_parts(name)
        found.setdefault(attack, {})[system] = one
    return [_section(attack, systems) for attack, systems in found.items()]


def _section(attack: str, systems: Mapping[str, Mapping[str, Any]]) -> PageSection:
    rows: list[list[Any]] = []
    figures, at = [], []
    for rate, (short, words) in NAMES.items():
        curves = {system: one["tries"][rate] for system, one in systems.items() if rate in one["tries"]}
        if curves:
            at = [*next(iter(curves.values()))]
            rows += [[f"{system}, {short}", *points.values()] for system, points in curves.items()]
            series = [
                plots.Line.through(system, [*points.values()], [float(k) for k in at])
                for system, points in curves.items()
            ]
            figures.append(plots.lines(series, f"{attack}: {short}, {words}", "tries", percent=True))
    left = ", ".join(
        f"{system}, {NAMES[rate][0]} {page.percent(share, interval=False)}"
        for system, one in systems.items()
        for rate, share in one["open"].items()
    )
    said = f"Within so many tries. Of the tries for each rate, the judge left open: {left}."
    unworded = [
        f"{system} {page.percent(one['not_reworded'], interval=False)}"
        for system, one in systems.items()
        if "not_reworded" in one
    ]
    if unworded:
        said += f" The writer gave no words, so that the prompt was sent as it stands: {', '.join(unworded)} of tries."
    columns = ["system, rate", *(f"{k} {'try' if k == '1' else 'tries'}" for k in at)]
    return PageSection(attack, said, Table(columns, rows), "\n".join(figures))


def _contrasts(summary: Mapping[str, Any]) -> PageSection | None:
    rows = [
        [name, NAMES[rate][0], _points(one), one["p"], one["n"]]
        for name, rates in summary["contrasts"].items()
        for rate, one in rates.items()
        if one["value"] is not None
    ]
    said = (
        f"The pair's rate minus that of its conversation agent alone, within {summary['tries']} tries on each prompt."
    )
    columns = ("attack", "rate", "difference in points", "p", "prompts")
    return PageSection("The pair against its conversation agent alone", said, Table(columns, rows)) if rows else None


def _points(one: Mapping[str, Any]) -> str:
    return f"{100 * one['value']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"


def _ways(summary: Mapping[str, Any], wins: Sequence[Record]) -> PageSection | None:
    """Which ways of an attack that has several won how often, the first try apart."""
    counted = Counter(
        (title(one["attack"]["system"], one["attack"]["name"]), one["prompt"]["kind"], one["prompt"]["family"])
        for one in wins
        if one["attack"]["try"] > 1
    )
    first = Counter(
        (title(one["attack"]["system"], one["attack"]["name"]), one["prompt"]["kind"])
        for one in wins
        if one["attack"]["try"] == 1
    )
    rows = [[name, kind, "the prompt as it stands", count] for (name, kind), count in first.items()]
    several = {name for name, _, family in counted if family}
    rows += [[*found, count] for found, count in counted.most_common() if found[0] in several]
    order = {name: place for place, name in enumerate(summary["systems"])}
    rows.sort(key=lambda row: (order[row[0]], row[1], -row[3]))
    said = "Of a prompt, the try that won it. Later ways had fewer prompts left to win."
    return PageSection("What won", said, Table(("system, attack", "prompts", "way", "won"), rows)) if rows else None


def _examples(wins: Sequence[Record]) -> PageSection | None:
    shown: Counter[str] = Counter()
    rows = []
    for one in wins:
        name = title(one["attack"]["system"], one["attack"]["name"])
        if one["attack"]["try"] > 1 and shown[name] < SHOWN:
            shown[name] += 1
            texts = (one["attack"]["prompt"], one["prompt"]["text"], one["answers"][-1]["text"])
            rows.append([name, one["prompt"]["kind"], one["attack"]["try"], *map(_short, texts)])
    columns = ("system, attack", "prompt's kind", "try", "prompt", "sent", "final answer")
    said = f"The first {SHOWN} later tries that won, of every attack; attempts/ has all, and choreo watch shows them."
    return PageSection("Tries that won", said, Table(columns, rows)) if rows else None


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
