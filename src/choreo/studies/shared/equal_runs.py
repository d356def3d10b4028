"""Which runs of a study are already there: in its own folder, or in the folder of another study."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from choreo import config
from choreo.errors import BadInput
from choreo.experiment.paths import rooted
from choreo.experiment.run import bases
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.runs.folder import is_finished, read_info
from choreo.studies.shared import kept

Found = Mapping[str, Sequence[Path]]  # finished runs by what they were trained with


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


def finished_elsewhere(studies: Iterable[Path], own: Path) -> Found:
    """The finished runs of other studies that may be copied: of this microworld, and with every setting of now.

    studies: their folders. own: the folder of the study that asks. Raises BadInput where a folder holds no study, or is
    the own one.
    """
    found: dict[str, list[Path]] = {}
    for study in (folder.resolve() for folder in studies):
        if not (study / "study.json").is_file():
            raise BadInput(f"--reuse {study}: holds no study (no study.json), so no run can be taken from it")
        if study == own.resolve():
            raise BadInput(f"--reuse {study}: is the folder of this study itself; --resume keeps its runs")
        world = kept.world()
        for path in sorted((study / "runs").glob("*-seed*")):
            if is_finished(path) and read_info(path).get("source", {}).get("world") == world and _is_of_now(path):
                found.setdefault(_what_trained(path), []).append(path)
    return found


def copy_equal(wanted: Mapping[Path, config.Recipe], found: Found) -> dict[Path, Path]:
    """Copies finished runs to the paths of `wanted` where nothing is yet, if their recipes are equal but for their
    names, and their bases are those of now. A copy that is interrupted leaves nothing at its path.

    wanted: the recipe of each path. Returns the original of every path that was filled. Raises BadInput where a run
    cannot be copied.
    """
    copied: dict[Path, Path] = {}
    for path, recipe in wanted.items():
        originals = () if os.path.lexists(path) else found.get(_depends_on(recipe), ())
        original = next((one for one in originals if not _base_that_changed(one, recipe)), None)
        if original is not None:
            _copy(original, path)
            copied[path] = original
    return copied


def copies(runs: Path) -> list[str]:
    """The names of those finished runs in a folder that `copy_equal` made."""
    return sorted(path.name for path in runs.glob("*-seed*") if is_finished(path) and "copy_of" in read_info(path))


def _copy(original: Path, path: Path) -> None:
    part = path.parent / ".copy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(original, part)
        origin = {"copy_of": f"{original.parent.parent.name}, {original.name}"}
        durable.write_json(part / "run.json", read_info(original) | origin)
        part.rename(path)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        raise BadInput(f"{original}: cannot be copied to {path}: {error}") from None


def _is_of_now(path: Path) -> bool:
    """Whether its recipe can be read and says everything. One of an older choreo may not."""
    try:
        config.load(path / "recipe.toml")
        return not config.unset(path / "recipe.toml")
    except BadInput:
        return False


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
