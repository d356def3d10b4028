"""What is kept of a study beside its answers: with what it was made, how long it took, and whether that still holds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

from choreo import config
from choreo.environments.microworld.suites import SUITES, prompts
from choreo.environments.microworld.world import World
from choreo.errors import BadInput
from choreo.experiment.run import bases
from choreo.files.json_file import read_object
from choreo.runs.bar import clock
from choreo.runs.folder import is_finished, read_info, versions

REPEATED = ("name", "seed", "world.split_seed")  # in which repetitions of one training may differ
PROMPTS = 20  # of every suite, by which a change of the world is seen


def source() -> dict[str, str]:
    """What a run is begun with. commit: of the checkout, "" outside one, with "+" at its end where something was
    changed since; world: a digest of the microworld."""
    return {"commit": commit(), "world": world()}


def made(folder: Path) -> dict[str, Any]:
    """With what the finished runs of the study in `folder` were made:

    date, versions: of this summary; runs: how many; seconds: of all their training; recipes: each arm's, of
    one of its seeds; bases: fingerprints; commits, worlds: as `source` had them when each run began.
    """
    paths = [path for path in sorted((folder / "runs").glob("*-seed*")) if is_finished(path)]
    summaries = [read_object(path / "summary.json") for path in paths]
    sources = [read_info(path).get("source", {}) for path in paths]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "runs": len(paths),
        "seconds": sum(summary.get("seconds", 0.0) for summary in summaries),
        "recipes": {path.name.rpartition("-seed")[0]: _recipe(path) for path in paths},
        "bases": {name: base for summary in summaries for name, base in summary.get("bases", {}).items()},
        "commits": sorted({found.get("commit", "") for found in sources}),
        "worlds": sorted({found.get("world", "") for found in sources}),
    }


def told(made: Mapping[str, Any]) -> str:
    """What `made` gives, in one line."""
    commits = ", ".join(commit[:8] + "+" * commit.endswith("+") for commit in made["commits"] if commit)
    took = f"{made['runs']} runs, {clock(made['seconds'])} of training, {made['date']}"
    return f"{took}, commit {commits or 'not known'}"


def world() -> str:
    """16 hex digits of the microworld: of prompts of every suite, their labelled answers, and the verdicts on these."""
    found, drawn = [], World(config.World())
    for prompt in (p for suite in SUITES for p in prompts(suite, "heldout", PROMPTS)):
        answers = drawn.labels(prompt, 0)
        found.append((prompt.text, prompt.meaning, answers, [drawn.judge(prompt, answer) for answer in answers]))
    return _digest(repr(found))


def changed(found: dict[str, Any], recipes: Iterable[config.Recipe]) -> list[str]:
    """What differs now from what `made` found. recipes: of the study's arms as they are now.

    A setting that is newer than the runs had its default in them.
    """
    now = list(recipes)
    differ = _other_recipes(found, now)
    there: dict[str, str] = {}
    for recipe in now:
        try:
            there |= bases(recipe)
        except BadInput:
            differ.append("a base is not there")
    if any(found["bases"].get(name, base) != base for name, base in there.items()):
        differ.append("bases")
    if found["worlds"] != [world()]:
        differ.append("the world")
    return list(dict.fromkeys(differ))


def _recipe(run: Path) -> dict[str, Any]:
    """The recipe of a run as JSON holds it."""
    return config.load(run / "recipe.toml").model_dump(mode="json", exclude_none=True)


def _other_recipes(found: dict[str, Any], now: Sequence[config.Recipe]) -> list[str]:
    """Which arms have other recipes now, and the first setting that differs; empty where none has."""
    if "recipes" not in found:  # kept by an older choreo
        return ["recipes are not known"]
    try:
        known = [config.make(recipe) for recipe in found["recipes"].values()]
    except BadInput as error:
        return [f"a setting ({error})"]
    others = []
    for recipe in now:
        differing = [config.differences(recipe, other, REPEATED) for other in known]
        if all(differing):
            nearest = min(differing, key=len, default=["new"])
            others.append(f"{recipe.name}: {nearest[0]}")
    return [f"recipes ({'; '.join(others)})"] if others else []


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def commit() -> str:
    """The commit of the checkout that runs, with "+" at its end where something was changed since; "" outside one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        told = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
        return told.stdout.strip() if not told.returncode else ""

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "--", str(here.parents[1])) else "")
    except OSError:  # no git here
        return ""
