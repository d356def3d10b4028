"""Which runs of a study are already there: in its own folder, or in the folder of another study."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from choreo import config
from choreo.errors import BadInput
from choreo.experiment.paths import rooted
from choreo.experiment.run import bases
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.runs.folder import is_finished, read_info


def nameless(recipe: config.Recipe) -> str:
    """A recipe as TOML, without its name: equal for arms that train the same."""
    return config.to_toml(recipe.model_copy(update={"name": ""}))


def refuse_other(path: Path, recipe: config.Recipe) -> None:
    """Raises BadInput where the run at `path` was made with another recipe or on other bases. No run there is fine."""
    if not (path / "recipe.toml").is_file():
        return
    there, wanted = _what_trained(path), _depends_on(recipe)
    if there != wanted:
        lines = zip(there.splitlines(), wanted.splitlines(), strict=False)
        old, new = next((pair for pair in lines if pair[0] != pair[1]), ("another recipe", "this one"))
        raise BadInput(f"{path}: was made with {old}, now {new}; name another folder with --run")
    if is_finished(path) and (name := _base_that_changed(path, recipe)):
        raise BadInput(f"{path}: was trained on another base than {name} is now; name another folder with --run")


def copy_equal(wanted: Mapping[Path, config.Recipe], studies: Iterable[Path]) -> dict[Path, Path]:
    """Copies finished runs of other studies to the paths of `wanted` where no run is yet. Their recipes are equal but
    for their names, and their bases are the same. A copy that is interrupted leaves nothing at its path.

    wanted: the recipe of each path. studies: folders of studies. Returns the original of every path that was filled.
    Raises BadInput where a folder holds no study.
    """
    there: dict[str, Path] = {}
    for study in studies:
        if not (study / "study.json").is_file():
            raise BadInput(f"{study}: holds no study (no study.json), so no run can be taken from it")
        for path in filter(is_finished, sorted((study / "runs").iterdir())):
            there.setdefault(_what_trained(path), path)
    taken: dict[Path, Path] = {}
    for path, recipe in wanted.items():
        found = None if path.exists() else there.get(_depends_on(recipe))
        if found is not None and not _base_that_changed(found, recipe):
            copy = path.parent.parent / f"copy-of-{path.name}"
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(found, copy)
            durable.write_json(
                copy / "run.json", read_info(copy) | {"copy_of": f"{found.parent.parent.name}, {found.name}"}
            )
            path.parent.mkdir(exist_ok=True)
            copy.rename(path)
            taken[path] = found
    return taken


def copies(runs: Path) -> list[str]:
    """The names of those runs in a folder that `copy_equal` made."""
    return sorted(path.name for path in runs.glob("*-seed*") if "copy_of" in read_info(path))


def _what_trained(path: Path) -> str:
    return _depends_on(rooted(config.load(path / "recipe.toml")))


def _depends_on(recipe: config.Recipe) -> str:
    """What of a recipe a run depends on. Labels by readers of its answers can be there only after it."""
    gold = recipe.gold and recipe.gold.model_copy(update={"labels": ""})
    return nameless(recipe.model_copy(update={"gold": gold}))


def _base_that_changed(path: Path, recipe: config.Recipe) -> str | None:
    """The name of a base on which the finished run at `path` was trained and which is another one now."""
    trained_on = read_object(path / "summary.json").get("bases", {})
    return next((name for name, base in bases(recipe).items() if trained_on.get(name) != base), None)
