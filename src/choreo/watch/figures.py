"""What the table says of a run: what it is, what it is doing, how good it is, what is alarming."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import numpy as np

from choreo.errors import BadInput
from choreo.evaluation.intervals import harmonic
from choreo.evaluation.metrics import BY_TRAINING
from choreo.files import toml
from choreo.files.json_file import read_object
from choreo.judges.resolve import names
from choreo.methods.waltz.report import SYSTEMS
from choreo.runs.folder import is_finished
from choreo.runs.lock import is_held
from choreo.types import FEEDBACK
from choreo.watch.attack import attack_doing, attack_pace, attacked_bases, is_attack
from choreo.watch.folders import INNER, GrowingLines, stamp
from choreo.watch.pace import RECENT, mean, time_left

STAMPED = ("metrics.jsonl", "run.json", "summary.json", "heldout", "attempts")  # change while a run is at work
HELD_OUT = ", on held-out prompts"
FTR = "general"  # FTR is told on ordinary requests, as in the report

Line = Mapping[str, Any]


class WatchedRun:
    """A run folder, and what is known of it. number: its name on the page. row: as `look` last made it.

    secret: a part of the address of its report. A link cannot send the key, so whoever has the address needs no other.
    """

    def __init__(self, number: int, path: Path, name: str):
        self.number, self.path, self.name = number, path, name
        self.secret = token_urlsafe()
        self.metrics = GrowingLines(path / "metrics.jsonl")
        self.info: dict[str, Any] = {}
        self.recipe: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.problem = ""
        self.row: dict[str, Any] = {}
        self._stamps: dict[str, Any] = {}

    def look(self, played: int | None = None) -> None:
        """Reads what has changed. played: of an attack, its tries that are in the index of games; None where some of
        its files are still to be read."""
        self.metrics.read()
        for name in ("run.json", "summary.json", "recipe.toml"):
            file = self.path / name
            if (now := stamp(file)) == self._stamps.get(name):
                continue
            self._stamps[name], self.problem = now, ""
            try:
                found = {} if now is None else toml.read(file)[0] if name.endswith(".toml") else read_object(file)
            except BadInput as error:
                found, self.problem = {}, str(error)
            setattr(self, {"run.json": "info", "summary.json": "summary", "recipe.toml": "recipe"}[name], found)
        try:
            self.row = self._row(self.metrics.lines, played)
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:  # no choreo wrote this
            self.problem = f"{self.path}: holds what no run does ({type(error).__name__})"
            self.info, self.recipe, self.summary = {}, {}, {}
            self.row = self._row([], None)

    def base(self, agent: str) -> str:
        """The model that `agent` is on, as the recipe names it; "" where it does not say. An attack has no recipe: what
        its run.json says of the pair."""
        if is_attack(self.info):
            return next(iter(attacked_bases(self.info)[:: -1 if agent == FEEDBACK else 1]), "")
        model, agents = _table(self.recipe, "model"), _table(self.recipe, "agents")
        if agents:
            teachers = agents.get("teachers") or []
            of = {f"teacher-{number}": name for number, name in enumerate(teachers, 1)}
            return str(of.get(agent.removesuffix("-start").rstrip("+-"), agents.get("student", "")))
        return str((agent == FEEDBACK and model.get("feedback_base")) or model.get("base", ""))

    def _row(self, lines: Sequence[Line], played: int | None) -> dict[str, Any]:
        inner, attack = self.path.name in INNER, is_attack(self.info)
        held, finished = is_held(self.path), is_finished(self.path)
        state = "running" if held else "finished" if finished else "waiting" if self._waits(lines) else "interrupted"
        pace = attack_pace(self.info) if attack else self._pace(lines, inner)
        measures, by = ({}, "") if attack else _measured(self.summary, lines)
        report = self.path / "report.html"
        return {
            "run": self.number,
            "name": self.name,
            "inner": inner,
            "method": self.info.get("method", ""),
            "recipe": self.info.get("name", ""),
            "attack": attack,
            "report": str(report) if (reported := report.is_file()) else "",
            "report_page": f"report/{self.secret}" if reported else "",
            "bases": attacked_bases(self.info) if attack else self._bases(),
            "judges": self._judges(),
            "seed": self.info.get("seed") if attack else _table(self.info, "seeds").get("seed"),
            "started": self.info.get("started", ""),
            "state": state,
            **pace,
            "left": (pace["left"] or None) if state == "running" else None,
            "updated": (self._updated() or 0) / 1e9,
            "doing": attack_doing(state, self.info, self.summary, played)
            if attack
            else self._doing(state, lines, pace["steps"]),
            "measures": measures,
            "by": by,
            "about": by.removesuffix(HELD_OUT) if by.endswith(HELD_OUT) else "",
            "alarms": alarm_times(lines),
            "problem": self.problem,
            "alike": self._alike(),
            "lines": [self.metrics.generation, len(lines)],
        }

    def _pace(self, lines: Sequence[Line], inner: bool) -> dict[str, Any]:
        """step, steps, seconds (of one), left, bound: see `time_left`. A run inside a run may have the recipe of the
        outer one, so its number of steps is only what it has noted itself."""
        steps = self.info.get("steps") or (None if inner else _table(self.recipe, "learning").get("steps"))
        left, bound = time_left(
            lines,
            steps or 0,
            rounds=_table(self.recipe, "rounds").get("count", 0),
            measuring=self.info.get("measuring", 0.0),
            cheap=self.recipe.get("warmup_steps", 0),
        )
        seconds = mean([line.get("seconds") for line in lines[-RECENT:]])
        step = lines[-1]["step"] if lines else 0
        return {"step": step, "steps": steps, "seconds": seconds, "left": left, "bound": bound}

    def _waits(self, lines: Sequence[Line]) -> bool:
        """Whether it is a run of a study that has made no step. A study makes the folders of all its runs at first."""
        return not lines and (self.path.parent.parent / "study.json").is_file()

    def _bases(self) -> list[str]:
        model, agents = _table(self.recipe, "model"), _table(self.recipe, "agents")
        found = [model.get("base"), model.get("feedback_base"), *(agents.get("teachers") or []), agents.get("student")]
        return list(dict.fromkeys(Path(str(name)).name for name in found if name))

    def _judges(self) -> dict[str, str]:
        """The judges by role: training, and gold where there is one. An attack has one, which trains nothing."""
        if is_attack(self.info):
            judge = self.info.get("judge")
            return names({"attack": judge if isinstance(judge, dict) else {"judge": judge}}) if judge else {}
        told = {"training": self.info.get("judge"), "gold": self.info.get("gold")}
        if known := {role: one for role, one in told.items() if isinstance(one, dict)}:
            return names(known)
        tables = {"training": _table(self.recipe, "judge"), "gold": _table(self.recipe, "gold")}
        return {role: str(one["kind"]) for role, one in tables.items() if one.get("kind")}

    def _updated(self) -> int | None:
        stamps = [stamp(self.path / name) for name in STAMPED]
        return max((found[1] for found in stamps if found), default=None)

    def _doing(self, state: str, lines: Sequence[Line], steps: int | None) -> str:
        last = lines[-1] if lines else {"step": 0}
        step = last["step"]
        at = f"step {step:g} of {steps}" if steps else f"step {step:g}"
        if state == "finished":
            return f"finished after {at}" if step else "finished"
        if state == "waiting":
            return "a run of a study that has made no step yet"
        if state == "interrupted":
            return f"stopped after {at}" if step else "stopped before its first step"
        if steps and step >= steps:
            done = sorted(file.stem for file in (self.path / "heldout").glob("*.json"))
            return (
                f"measuring on held-out prompts; done: {', '.join(done)}" if done else "measuring on held-out prompts"
            )
        words = [f"{name} {last[name]}" for name in ("epoch", "round", "agent", "stage") if name in last]
        return ", ".join(["training", at, *words]) if step else "starting"

    def _alike(self) -> str:
        """The same for runs that differ in their seeds alone; "" without a recipe."""
        rest = {key: value for key, value in self.recipe.items() if key not in ("seed", "track")}
        rest["world"] = {key: value for key, value in _table(rest, "world").items() if key != "split_seed"}
        text = json.dumps([rest, self.path.name if self.path.name in INNER else ""], sort_keys=True, default=str)
        return sha256(text.encode()).hexdigest()[:12] if self.recipe else ""


def alarm_times(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Each alarm once: its text, the step from which it stands and the last one, how often, and whether it stands now.
    The latest come first. An alarm that was away and came again begins where it came again."""
    found: dict[str, dict[str, Any]] = {}
    before: set[str] = set()
    for line in lines:
        if "alarms" not in line:
            continue
        now = {str(text) for text in line["alarms"] or []}
        for text in now:
            one = found.setdefault(text, {"text": text, "count": 0, "first": line["step"]})
            if text not in before:
                one["since"] = line["step"]
            one |= {"last": line["step"], "count": one["count"] + 1}
        before = now
    for one in found.values():
        one["on"] = one["text"] in before
    return sorted(found.values(), key=lambda one: (-one["on"], -one["last"], -one["since"]))


def _measured(summary: Line, lines: Sequence[Line]) -> tuple[dict[str, Any], str]:
    """asr, orr, ftr, f1 and gap, each {value, low, high} or absent, and what they are of, in words.

    gap is F1 by the gold judge minus F1 by the training judge, of the same answers.
    """
    systems = {name: one for name, one in _table(summary, "systems").items() if isinstance(one, dict)}
    if systems:
        about = next((name for name in SYSTEMS if name in systems), next(reversed(systems)))
        one = systems[about]
        found = {name: one.get(name) for name in ("asr", "orr", "f1")} | {"ftr": _table(one, "ftr").get(FTR)}
        measures: dict[str, Any] = {
            name: {end: value.get(end) for end in ("value", "low", "high", "n")}
            for name, value in found.items()
            if isinstance(value, dict) and value.get("value") is not None
        }
        gold, trained = (_table(by, "f1").get("value") for by in (one, _table(one, BY_TRAINING)))
        if gold is not None and trained is not None:
            measures["gap"] = {"value": gold - trained}
        return measures, about + HELD_OUT
    compared = [line for line in lines if "asr/gold" in line][-RECENT:]
    recent = compared or [line for line in lines if "asr" in line or "orr" in line][-RECENT:]
    judge = "/gold" if compared else ""
    asr, orr = (mean([line.get(f"{name}{judge}") for line in recent]) for name in ("asr", "orr"))
    measures = {"asr": asr, "orr": orr, "f1": _f1(asr, orr), "ftr": mean([x.get(f"ftr_{FTR}") for x in recent])}
    if compared:
        rates = [mean([line.get(f"{name}/training") for line in compared]) for name in ("asr", "orr")]
        gold, trained = measures["f1"], _f1(*rates)
        measures["gap"] = None if gold is None or trained is None else gold - trained
    told = {name: {"value": value} for name, value in measures.items() if value is not None}
    if not told:
        return {}, ""
    return told, f"games of training, mean of {len(recent)} steps to step {recent[-1]['step']:g}"


def _f1(asr: float | None, orr: float | None) -> float | None:
    if asr is None or orr is None:
        return None
    return float(harmonic(np.float64(1 - asr), np.float64(1 - orr)))


def _table(data: Line, name: str) -> dict[str, Any]:
    found = data.get(name)
    return found if isinstance(found, dict) else {}
