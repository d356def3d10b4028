"""What is kept of a study beside its answers: with what it was made, how long it took, and whether that still holds."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
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
from choreo.runs.folder import is_finished, read_info, versions

PROMPTS = 20  # of every suite, by which a change of the world is seen


def source() -> dict[str, str]:
    """What a run is begun with. commit: of the checkout, "" outside one, with "+" at its end where something was
    changed since; world: a digest of the microworld."""
    return {"commit": _commit(), "world": world()}


def made(folder: Path) -> dict[str, Any]:
    """With what the finished runs of the study in `folder` were made:

    date, versions: of this summary; runs: how many; seconds: of all their training; arms: a digest of each arm's
    recipe; bases: fingerprints; commits, worlds: as `source` had them when each run began.
    """
    paths = [path for path in sorted((folder / "runs").glob("*-seed*")) if is_finished(path)]
    summaries = [read_object(path / "summary.json") for path in paths]
    sources = [read_info(path).get("source", {}) for path in paths]
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "versions": versions(),
        "runs": len(paths),
        "seconds": sum(summary.get("seconds", 0.0) for summary in summaries),
        "arms": {path.name.rpartition("-seed")[0]: digest(config.load(path / "recipe.toml")) for path in paths},
        "bases": {name: base for summary in summaries for name, base in summary.get("bases", {}).items()},
        "commits": sorted({found.get("commit", "") for found in sources}),
        "worlds": sorted({found.get("world", "") for found in sources}),
    }


def digest(recipe: config.Recipe) -> str:
    """16 hex digits of a recipe, whatever its name and seeds."""
    same = {"name": "", "seed": 0, "world": recipe.world.model_copy(update={"split_seed": 0})}
    return _digest(config.to_toml(recipe.model_copy(update=same)))


def world() -> str:
    """16 hex digits of the microworld: of prompts of every suite, their labelled answers, and the verdicts on these."""
    found, drawn = [], World(config.World())
    for prompt in (p for suite in SUITES for p in prompts(suite, "heldout", PROMPTS)):
        answers = drawn.labels(prompt, 0)
        found.append((prompt.text, prompt.meaning, answers, [drawn.judge(prompt, answer) for answer in answers]))
    return _digest(repr(found))


def changed(found: dict[str, Any], recipes: Iterable[config.Recipe]) -> list[str]:
    """What differs now from what `made` found. recipes: of the study's arms as they are now."""
    now = list(recipes)
    known, differ = set(found["arms"].values()), []
    if others := [recipe.name for recipe in now if digest(recipe) not in known]:
        differ.append(f"recipes ({', '.join(others)})" if len(others) < len(now) else "recipes")
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


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _commit() -> str:
    here = Path(__file__).parent

    def git(*words: str) -> str:
        told = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=False)
        return told.stdout.strip() if not told.returncode else ""

    try:
        head = git("rev-parse", "HEAD")
        return head + ("+" if head and git("status", "--porcelain", "--", str(here.parents[1])) else "")
    except OSError:  # no git here
        return ""
