"""What a run's folder holds, as its report reads it.

Reads recipe.toml, run.json, metrics.jsonl, summary.json and dialogues.json, each where present: a run that was
killed, or is still going, has a report of what it has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.files import toml
from choreo.files.json_file import read_array, read_object
from choreo.judges.resolve import names


@dataclass(frozen=True)
class Record:
    """metrics: the lines of metrics.jsonl in the order of their steps. summary, info: summary.json and run.json, or
    empty. dialogues: each as its turns in order, with what became of it. recipe: the text of recipe.toml."""

    folder: Path
    metrics: list[dict[str, Any]]
    summary: dict[str, Any]
    info: dict[str, Any]
    dialogues: list[dict[str, Any]]
    recipe: str

    @classmethod
    def read(cls, folder: str | Path) -> Record:
        """Raises BadInput, naming the file, when there is no such folder, or when run.json, summary.json or
        dialogues.json is not JSON. A line of metrics.jsonl that is not JSON (a run killed while it wrote) is left out.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise BadInput(f"{folder}: there is no such run folder")
        recipe = folder / "recipe.toml"
        return cls(
            folder,
            _metrics(folder / "metrics.jsonl"),
            _object(folder / "summary.json"),
            _object(folder / "run.json"),
            [_dialogue(item) for item in _array(folder / "dialogues.json")],
            recipe.read_text(encoding="utf-8", errors="replace") if recipe.exists() else "",
        )

    def array(self, name: str) -> list[Any]:
        """What the JSON file `name` of the folder holds; nothing where there is none. Raises BadInput."""
        return _array(self.folder / name)

    def common(self) -> dict[str, Any]:
        """What every run's page shows: its title, facts, recipe and versions."""
        return {
            "title": f"{self.folder.resolve().name}: report",
            "facts": _facts(self.summary, self.metrics),
            "recipe": self.recipe,
            "versions": [(".".join(keys), str(value)) for keys, value in toml.leaves(self.info).items()],
        }


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


def _dialogue(item: dict[str, Any]) -> dict[str, Any]:
    """A dialogue as its turns in order, what became of it, and its rank: changed ones first."""
    answers, reviews = list(item.get("answers") or []), list(item.get("reviews") or [])
    verdicts = [verdict_words(verdict) for verdict in item.get("verdicts") or []]
    turns = []
    for index, answer in enumerate(answers):
        verdict = verdicts[index] if index < len(verdicts) else None
        turns.append({"who": "answer" if index == 0 else "revision", "text": _text(answer), "verdict": verdict})
        if index < len(reviews):
            parsed = reviews[index].get("parsed")
            turns.append({"who": "feedback", "text": _text(reviews[index]), "parsed": parsed, "verdict": None})
    outcome = "unchanged"
    if len(answers) > 1:
        outcome = outcome_of([state for _, state, _ in verdicts])
    rank = ("repaired", "broken", "revised", "unchanged").index(outcome)
    fields = {name: str(item.get(name, "")) for name in ("prompt", "kind", "suite", "language", "system")}
    earlier = [
        {name: str(message.get(name, "")) for name in ("role", "content")} for message in item.get("earlier", [])
    ]
    return {**fields, "earlier": earlier, "turns": turns, "outcome": outcome, "rank": rank}


def outcome_of(states: Sequence[str]) -> str:
    """What became of a revised answer: repaired, broken or revised. states: of its verdicts, as `verdict_words` has
    them."""
    ends = (states[0], states[-1]) if states else ("", "")
    return {("bad", "good"): "repaired", ("good", "bad"): "broken"}.get(ends, "revised")


def _text(turn: Any) -> str:
    return str(turn.get("text", "")) if isinstance(turn, dict) else str(turn)


def verdict_words(verdict: dict[str, Any]) -> tuple[str, str, str]:
    """(words, good | bad | open, the judge's reason)"""
    unsafe, overrefuse = verdict.get("unsafe"), verdict.get("overrefuse")
    reason = str(verdict.get("reason") or "")
    named = [word for word, flag in (("unsafe", unsafe), ("over-refusing", overrefuse)) if flag]
    garbled = f"garbled ({verdict['garbled']})" if verdict.get("garbled") else ""
    named += [garbled or "degenerate"] if verdict.get("degenerate") else []
    if unsafe or overrefuse or garbled:
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
    elif isinstance(judges := summary.get("judges"), dict):
        facts += [(f"{which} judge", name) for which, name in names(judges).items()]
    if summary.get("failed"):
        why = summary.get("failures", {})
        kinds = [f"{turn}, {kind}: {count}" for turn, kinds in why.items() for kind, count in kinds.items()]
        facts.append(
            ("turns that failed", f"{summary['failed']} ({'; '.join(kinds)})" if kinds else str(summary["failed"]))
        )
    if isinstance(summary.get("seconds"), int | float):
        facts.append(("time", f"{summary['seconds'] / 60:.1f} min"))
    return facts
