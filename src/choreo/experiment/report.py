"""The report of a run: one self-contained page made from its folder, at any moment of the run.

Reads recipe.toml, run.json, metrics.jsonl, summary.json and dialogues.json, each where present: a run that was
killed, or is still going, has a report of what it has.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from choreo.errors import BadInput
from choreo.evaluation.intervals import separated
from choreo.files.json_file import read_array, read_object
from choreo.methods.macpo import report_sections
from choreo.methods.macpo.report_sections import said_by
from choreo.report import page, plots, published

# Which system a run is about: the first of these that it has, else its last.
TRAINED = ("waltz", "waltz-frozen-conversation", "single-agent", "oracle-feedback", "collaboration-untrained")
DIALOGUES = 300  # more would make the page heavy; the page says how many it leaves out

# (title, unit, {field of metrics.jsonl: name}); a figure is drawn where at least one field has values.
CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Reward", "", {"reward/conversation": "conversation agent", "reward/feedback": "feedback agent"}),
    (
        "Reward of the feedback agent, by component",
        "",
        {"part/dir": "improvement (DIR)", "part/label": "labels", "part/format": "format"},
    ),
    (
        "ASR, ORR and FTR on the step's episodes",
        "%",
        {
            "asr": "ASR",
            "orr": "ORR",
            "ftr_harmful": "FTR harmful",
            "ftr_benign": "FTR benign",
            "ftr_general": "FTR general",
        },
    ),
    ("Labels and format of the feedback", "%", {"label_accuracy": "label accuracy", "format_rate": "format rate"}),
    (
        "KL from the reference",
        "nats per token",
        {"kl/conversation": "conversation agent", "kl/feedback": "feedback agent"},
    ),
    (
        "Entropy of the policies",
        "nats per token",
        {"entropy/conversation": "conversation agent", "entropy/feedback": "feedback agent"},
    ),
    (
        "Watched for collapse",
        "%",
        {
            "refusal_share": "refusals",
            "degenerate": "degenerate answers",
            "groups_without_gradient": "groups without gradient",
        },
    ),
    ("Speed", "tokens per second", {"tokens_per_second": "whole step"}),
)

# (measure, name, what it is in plain words, True where more is better)
CARDS = (
    ("asr", "ASR", "unsafe answers to harmful requests", False),
    ("orr", "ORR", "refusals of benign requests", False),
    ("f1", "F1", "harmless and helpful at once", True),
    ("ftr", "FTR", "ordinary requests on which a revision was asked for", False),
)


def write_report(run_dir: str | Path) -> Path:
    """Write report.html into the run folder and return its path.

    Raises BadInput, naming the file, when there is no such folder, or when run.json, summary.json or dialogues.json
    is not JSON. A line of metrics.jsonl that is not JSON (a run killed while it wrote) is left out.
    """
    run = Path(run_dir)
    if not run.is_dir():
        raise BadInput(f"{run}: there is no such run folder")
    metrics = _metrics(run / "metrics.jsonl")
    summary = _object(run / "summary.json")
    info = _object(run / "run.json")
    recipe = run / "recipe.toml"
    common = {
        "title": f"{run.resolve().name}: report",
        "facts": _facts(summary, metrics),
        "recipe": recipe.read_text(encoding="utf-8", errors="replace") if recipe.exists() else "",
        "versions": _flat(info),
    }
    shown = [_dialogue(item) for item in _array(run / "dialogues.json")]
    macpo = info.get("method") == "macpo"
    text = _macpo(run, metrics, summary, shown, common) if macpo else _waltz(metrics, summary, shown, common)
    return page.write(run / "report.html", text)


Rows = list[dict[str, Any]]


def _macpo(run: Path, metrics: Rows, summary: dict[str, Any], shown: Rows, common: dict[str, Any]) -> str:
    rounds = _array(run / "rounds.json")
    sections = report_sections.sections(rounds, metrics, summary)
    return page.render(
        "macpo.html",
        sections=[(section, Markup(section.figure)) for section in sections],
        warnings=said_by(rounds),
        dialogues=shown[:DIALOGUES],
        left_out=max(0, len(shown) - DIALOGUES),
        **common,
    )


def _waltz(metrics: Rows, summary: dict[str, Any], shown: Rows, common: dict[str, Any]) -> str:
    systems = {name: system for name, system in summary.get("systems", {}).items() if isinstance(system, dict)}
    trained = next((name for name in TRAINED if name in systems), next(reversed(systems), ""))
    cards = [_card(systems, trained, *card) for card in CARDS] if systems else []
    # Those of the system that the report is about first, so that the limit never hides them.
    shown = sorted(shown, key=lambda item: (item["system"] != trained, item["rank"]))
    figures = {"plane": Markup(_plane(systems)) if systems else "", "curves": [Markup(svg) for svg in _curves(metrics)]}
    return page.render(
        "report.html",
        trained=trained,
        cards=cards,
        verdict=" ".join(card["sentence"] for card in cards if card["sentence"]),
        systems=systems,
        published=published.SYSTEMS,
        alarms=_alarms(metrics),
        figures=figures,
        dialogues=shown[:DIALOGUES],
        left_out=max(0, len(shown) - DIALOGUES),
        **common,
    )


def _object(file: Path) -> dict[str, Any]:
    return read_object(file) if file.exists() else {}


def _array(file: Path) -> list[Any]:
    return read_array(file) if file.exists() else []


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The steps in order; of a step that was logged again after a resume, the later line."""
    steps: dict[Any, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int | float):
            steps[entry["step"]] = entry
    return [steps[step] for step in sorted(steps)]


def _card(systems: dict[str, Any], trained: str, measure: str, name: str, meaning: str, more: bool) -> dict[str, Any]:
    """One headline figure before and after, and a sentence on whether it changed."""
    start = "collaboration-untrained" if measure == "ftr" else "base"
    after = _measure(systems[trained], measure)
    before = _measure(systems[start], measure) if start in systems and start != trained else None
    sentence = ""
    if before and after and before["value"] is not None and after["value"] is not None:
        moved = "rose" if after["value"] > before["value"] else "fell"
        change = f"from {page.percent(before, False)} to {page.percent(after, False)}"
        sentence = f"{name} {moved} {change}." if separated(before, after) else f"{name} went {change}: within error."
    elif after["value"] is None and after.get("undetermined"):
        sentence = f"{name} is open: the judge decided none of {after['undetermined']} answers."
    better = before is not None and separated(before, after) and (moved == "rose") is more
    paper = published.CHANGES[measure]
    return {
        "name": name,
        "meaning": meaning,
        "before": before,
        "start": start,
        "after": after,
        "sentence": sentence,
        "better": better,
        "more": more,
        "paper": paper,
    }


def _measure(system: dict[str, Any], measure: str) -> dict[str, Any]:
    found = system.get("ftr", {}).get("general") if measure == "ftr" else system.get(measure)
    return found or {"value": None, "n": 0, "low": None, "high": None, "undetermined": 0}


def _plane(systems: dict[str, Any]) -> str:
    ours = [
        plots.Point(name, 1 - orr["value"], 1 - asr["value"], _turned(orr), _turned(asr))
        for name, (asr, orr) in {n: (_measure(s, "asr"), _measure(s, "orr")) for n, s in systems.items()}.items()
        if asr["value"] is not None and orr["value"] is not None
    ]
    theirs = [plots.Point(name, 1 - row.orr, 1 - row.asr) for name, row in published.SYSTEMS.items()]
    return plots.plane(ours, theirs, "Helpfulness and harmlessness")


def _turned(rate: dict[str, Any]) -> tuple[float, float] | None:
    return None if rate.get("low") is None or rate.get("high") is None else (1 - rate["high"], 1 - rate["low"])


def _curves(metrics: Sequence[dict[str, Any]]) -> list[str]:
    switch = next((entry["step"] for entry in metrics if entry.get("stage") == 2), None)
    later = switch is not None and bool(metrics) and metrics[0].get("stage") == 1
    figures = []
    for title, unit, fields in CURVES:
        found = [_line(metrics, field, name) for field, name in fields.items()]
        series = [line for line in found if line.x]
        if series:
            mark = (float(switch), "stage 2: both learn") if later and switch is not None else None
            label = "" if unit == "%" else unit
            figures.append(plots.lines(series, title, "step", label, percent=unit == "%", mark=mark))
    return figures


def _line(metrics: Sequence[dict[str, Any]], field: str, name: str) -> plots.Line:
    pairs = [(entry["step"], entry[field]) for entry in metrics if isinstance(entry.get(field), int | float)]
    finite = [(step, value) for step, value in pairs if math.isfinite(value)]
    return plots.Line(name, [step for step, _ in finite], [value for _, value in finite])


def _alarms(metrics: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each alarm once, with how often and when; the most frequent first."""
    steps: dict[str, list[Any]] = {}
    for entry in metrics:
        for alarm in entry.get("alarms") or []:
            steps.setdefault(str(alarm), []).append(entry["step"])
    counts = Counter({text: len(when) for text, when in steps.items()})
    return [{"text": t, "count": c, "first": steps[t][0], "last": steps[t][-1]} for t, c in counts.most_common()]


def _dialogue(item: dict[str, Any]) -> dict[str, Any]:
    """A dialogue as its turns in order, what became of it, and its rank: changed ones first."""
    answers, reviews = list(item.get("answers") or []), list(item.get("reviews") or [])
    verdicts = [_verdict(verdict) for verdict in item.get("verdicts") or []]
    turns = []
    for index, answer in enumerate(answers):
        verdict = verdicts[index] if index < len(verdicts) else None
        turns.append({"who": "answer" if index == 0 else "revision", "text": _text(answer), "verdict": verdict})
        if index < len(reviews):
            parsed = reviews[index].get("parsed")
            turns.append({"who": "feedback", "text": _text(reviews[index]), "parsed": parsed, "verdict": None})
    outcome = "unchanged"
    if len(answers) > 1:
        ends = verdicts[0][1] if verdicts else "", verdicts[-1][1] if verdicts else ""
        outcome = {("bad", "good"): "repaired", ("good", "bad"): "broken"}.get(ends, "revised")
    rank = ("repaired", "broken", "revised", "unchanged").index(outcome)
    fields = {name: str(item.get(name, "")) for name in ("prompt", "kind", "suite", "language", "system")}
    return {**fields, "turns": turns, "outcome": outcome, "rank": rank}


def _text(turn: Any) -> str:
    return str(turn.get("text", "")) if isinstance(turn, dict) else str(turn)


def _verdict(verdict: dict[str, Any]) -> tuple[str, str, str]:
    """(words, good | bad | open, the judge's reason)"""
    unsafe, overrefuse = verdict.get("unsafe"), verdict.get("overrefuse")
    reason = str(verdict.get("reason") or "")
    named = [word for word, flag in (("unsafe", unsafe), ("over-refusing", overrefuse)) if flag]
    named += ["degenerate"] if verdict.get("degenerate") else []
    if unsafe or overrefuse:
        return " and ".join(named), "bad", reason
    if unsafe is None or overrefuse is None:
        return "undetermined", "open", reason
    return ("satisfactory" if not named else "satisfactory, degenerate"), "good", reason


def _facts(summary: dict[str, Any], metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    facts = [(name, str(summary[name])) for name in ("method", "seed", "device") if summary.get(name) is not None]
    if metrics:
        facts.append(("steps", f"{metrics[-1]['step']:g}"))
    if isinstance(judge := summary.get("judge"), dict):
        facts.append(("judge", str(judge.get("judge"))))
    if summary.get("failed"):
        why = summary.get("failures", {})
        kinds = [f"{turn}, {kind}: {count}" for turn, kinds in why.items() for kind, count in kinds.items()]
        facts.append(
            ("turns that failed", f"{summary['failed']} ({'; '.join(kinds)})" if kinds else str(summary["failed"]))
        )
    if isinstance(summary.get("seconds"), int | float):
        facts.append(("time", f"{summary['seconds'] / 60:.1f} min"))
    return facts


def _flat(data: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for key, value in data.items():
        name = f"{prefix}{key}"
        rows += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, str(value))]
    return rows
