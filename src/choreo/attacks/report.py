"""The page of an attack: curves against the number of tries, what won, and the prompts and answers that did."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from choreo.attacks.curves import RATES
from choreo.attacks.play import FOLDER, title, title_parts
from choreo.errors import BadInput
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.report import page, plots
from choreo.report.page import PageSection, Table

SHOWN = 2  # tries that won, of every attack on every system and kind of prompts
WAYS = 5  # of every attack and kind of prompts
LETTERS = 200  # of a prompt, an answer or a reason
AS_IT_STANDS = "the prompt as it stands"
FIRST, AGAIN, CHANGED = f"{AS_IT_STANDS}, first try", f"{AS_IT_STANDS}, a later try", "changed words"  # beside ways
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
    wins: list[Record] = []
    families: dict[str, str] = {}
    for file in sorted(folder.glob(f"{FOLDER}/*.jsonl.gz")):
        for one in durable.read_lines(file):
            attack = one["attack"]
            if attack["try"] > summary["tries"] or title(attack["system"], attack["name"]) not in summary["systems"]:
                continue
            if attack["try"] == 1:
                families[one["prompt"]["id"]] = one["prompt"]["family"]
            if attack["won"]:
                wins.append(one)
    return page.write(folder / "report.html", attack_page(summary, wins, families))


def attack_page(summary: Mapping[str, Any], wins: Sequence[Record], families: Mapping[str, str]) -> str:
    """The page's HTML. wins: the records of tries that won (`play.play_attack`). families: those that the prompts have
    in their suite, by id."""
    sections = [*_curves(summary), _contrasts(summary), _ways(summary, wins, families), _examples(summary, wins)]
    shown = [section for section in sections if section]
    target, judge = summary["target"]["name"], summary["judge"]["judge"]
    step = summary["target"].get("step")
    when = "" if step is None else f" at step {step}" if step else " before training"
    counts = ", ".join(f"{count} {kind}" for kind, count in summary["prompts"].items())
    facts = f"Target: {target}{when}. Judge: {judge}. Prompts: {counts}. Seed {summary['seed']}."
    if writer := summary.get("writer"):
        after = f" after step {writer['step']}" if writer.get("step") is not None else ""
        facts += f" Writer: {writer['name']}{after}."
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
            rows += [
                [f"{system}, {short}", *points.values(), page.percent(systems[system]["open"][rate], interval=False)]
                for system, points in curves.items()
            ]
            series = [
                plots.Line.through(system, [*points.values()], [float(k) for k in at])
                for system, points in curves.items()
            ]
            figures.append(plots.lines(series, f"{attack}: {short}, {words}", "tries", percent=True, whole=True))
    said = "Within so many tries; last, the share of the tries that the judge left open."
    unworded = [
        f"{system} {page.percent(one['not_reworded'], interval=False)}"
        for system, one in systems.items()
        if "not_reworded" in one
    ]
    if unworded:
        said += f" The writer gave no words, so that the prompt was sent as it stands: {', '.join(unworded)} of tries."
    columns = ["system, rate", *(f"{k} {'try' if k == '1' else 'tries'}" for k in at), "tries left open"]
    return PageSection(attack, said, Table(columns, rows), f'<div class="figures">\n{"".join(figures)}\n</div>')


def _contrasts(summary: Mapping[str, Any]) -> PageSection | None:
    rows = [
        [name, NAMES[rate][0], _points(one), f"{one['p']:.2g}", one["n"]]
        for name, rates in summary["contrasts"].items()
        for rate, one in rates.items()
        if one["value"] is not None
    ]
    said = (
        f"The pair's rate minus that of its conversation agent alone, within {summary['tries']} tries on each prompt."
    )
    columns = ("attack", "rate", "difference in points", "p", "prompts")
    return (
        PageSection("The pair against its conversation agent alone", said, Table(columns, rows, words=2))
        if rows
        else None
    )


def _points(one: Mapping[str, Any]) -> str:
    return f"{100 * one['value']:+.1f} ({100 * one['low']:+.1f} to {100 * one['high']:+.1f})"


def _ways(summary: Mapping[str, Any], wins: Sequence[Record], own: Mapping[str, str]) -> PageSection | None:
    """Which ways of an attack won how often, on each system: only an attack that gives its tries a family of their own
    has ways."""
    has_ways = {one["attack"]["name"] for one in wins if one["prompt"]["family"] != own.get(one["prompt"]["id"])}
    counted: dict[tuple[str, str], dict[str, Counter[str]]] = {}
    for one in wins:
        attack, prompt = one["attack"], one["prompt"]
        if attack["try"] == 1:
            way = FIRST
        elif prompt["text"] == attack["prompt"]:
            way = AGAIN
        else:
            way = prompt["family"] if attack["name"] in has_ways else CHANGED
        by_way = counted.setdefault((attack["name"], prompt["kind"]), {})
        by_way.setdefault(way, Counter())[attack["system"]] += 1
    parts = [title_parts(name) for name in summary["systems"]]
    systems, attacks = (list(dict.fromkeys(names)) for names in zip(*parts, strict=True))
    rows = []
    for found in itertools.product(attacks, RATES):
        for way, won in _most(counted.get(found, {})):
            rows.append([", ".join(found), way, *(won[system] for system in systems)])
    said = (
        "Of a prompt, the try that won it. Later ways had fewer prompts left to win. The ways that won most have a "
        f"row, {WAYS} of each attack and kind of prompts."
    )
    columns = ("attack, prompts", "way", *systems)
    return PageSection("What won", said, Table(columns, rows, words=2)) if rows else None


def _most(by_way: Mapping[str, Counter[str]]) -> list[tuple[str, Counter[str]]]:
    """The first try, then the ways that won most; the rest of them as one."""
    ways = sorted((way for way in by_way if way != FIRST), key=lambda way: -by_way[way].total())
    shown = ways if len(ways) <= WAYS + 1 else ways[:WAYS]
    rows = [(way, by_way[way]) for way in (FIRST, *shown) if way in by_way]
    if rest := ways[len(shown) :]:
        rows.append((f"{len(rest)} other ways", sum((by_way[way] for way in rest), Counter())))
    return rows


def _examples(summary: Mapping[str, Any], wins: Sequence[Record]) -> PageSection | None:
    """The first later tries that won, the systems in the order that the summary has them in."""
    shown: dict[tuple[str, str], list[list[Any]]] = {(name, kind): [] for name in summary["systems"] for kind in RATES}
    for one in wins:
        attack, sent = one["attack"], one["prompt"]
        place = shown[title(attack["system"], attack["name"]), sent["kind"]]
        if attack["try"] > 1 and len(place) < SHOWN:
            words = AS_IT_STANDS if sent["text"] == attack["prompt"] else sent["text"]
            texts = (attack["prompt"], words, one["answers"][-1]["text"], one["verdicts"][-1]["reason"])
            place.append([f"{sent['kind']}, try {attack['try']}", *map(_short, texts)])
    rows = [[name, *row] for (name, _), found in shown.items() for row in found]
    columns = ("system, attack", "prompt's kind, try", "prompt", "sent", "final answer", "the judge's reason")
    said = (
        f"The first {SHOWN} later tries that won, of every attack and kind of prompts; attempts/ has all, and choreo "
        "watch shows them."
    )
    return PageSection("Tries that won", said, Table(columns, rows, words=len(columns))) if rows else None


def _short(text: str) -> str:
    return text if len(text) <= LETTERS else f"{text[: LETTERS - 1]}…"
