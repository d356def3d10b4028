"""`choreo study --list`: of every study, what is run, how long it took, with which commit, and what is stale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from choreo import studies
from choreo.errors import BadInput
from choreo.files.json_file import read_object
from choreo.runs.folder import is_finished
from choreo.runs.progress import Progress
from choreo.studies.shared import equal_runs, kept
from choreo.studies.shared.arms import SEEDS, Study

State = dict[str, Any]


def states(names: Iterable[str], runs: Path, results: Path) -> dict[str, State]:
    """The state of every study: {planned, seeds, begun, finished}, of its runs. Where answers are kept, also {made,
    stale, compared}: with what they were made (`kept.made`), what differs now, and whether recipes were compared.

    runs: a study's own folder is RUNS/NAME. results: answers may also be kept in RESULTS/NAME.json. A study of a user's
    own that was begun in RUNS stands under the name of its folder; what it plans is not known here.
    """
    shipped = {name: _state(studies.load(name), runs / name, results / f"{name}.json") for name in names}
    own = (file.parent for file in sorted(runs.glob("*/study.json")) if read_object(file).get("code"))
    return shipped | {folder.name: _state(None, folder, results / f"{folder.name}.json") for folder in own}


def words(state: Mapping[str, Any]) -> str:
    """A state in one line."""
    if "made" not in state:
        runs = state["planned"]
        if state["begun"]:
            return f"{state['finished']} of {runs or state['begun']} runs are done"
        return "not run here" if runs is None else f"not run here: {runs} runs, {state['seeds']} seeds"
    made = state["made"]
    how = f"stale, other now: {', '.join(state['stale'])}" if state["stale"] else "up to date"
    if not state["compared"]:
        how += " (its recipes are not compared)"
    return f"{kept.told(made)}: {how}"


def _state(module: ModuleType | None, folder: Path, kept_answers: Path) -> State:
    file = folder / "study.json"
    seeds = getattr(module, "SEEDS", SEEDS)
    if file.is_file():
        seeds = read_object(file).get("seeds", seeds)
    begun = list((folder / "runs").glob("*-seed*"))
    state: State = {
        "planned": _planned(module, seeds),
        "seeds": len(seeds),
        "begun": len(begun),
        "finished": sum(map(is_finished, begun)),
    }
    if answers := _latest(folder / "answers.json", kept_answers):
        study = Study(folder.name, Path(), (0,), tuple(answers["settings"]), Progress())
        try:
            recipes = [study.recipe(arm, 0) for arm in getattr(module, "ARMS", ())]
            stale = kept.changed(answers["made"], recipes)
        except BadInput as error:
            stale = [f"a setting ({error})"]
        state |= {"made": answers["made"], "stale": stale, "compared": hasattr(module, "ARMS")}
    return state


def _planned(module: ModuleType | None, seeds: Sequence[int]) -> int | None:
    """How many runs a study has. None where its module does not declare its arms (ARMS)."""
    if module is None or not hasattr(module, "ARMS"):
        return None
    study, runs = Study("", Path(), (0,), tuple(getattr(module, "SETTINGS", ())), Progress()), dict[str, int]()
    for arm in module.ARMS:  # of equal recipes one is trained
        recipe = equal_runs.nameless(study.recipe(arm, 0))
        runs[recipe] = max(runs.get(recipe, 0), min(arm.first or len(seeds), len(seeds)))
    return sum(runs.values())


def _latest(*files: Path) -> State | None:
    """The latest of the answers that are kept in these files; those of an older choreo do not say with what they were
    made."""
    found = [answers for file in files if file.is_file() and "made" in (answers := read_object(file))]
    return max(found, key=lambda answers: answers["made"]["date"], default=None)
