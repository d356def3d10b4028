"""Reads recipes from TOML and writes them: one typed tree per experiment, with overrides by `--set a.b=c`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from choreo.config.checking import check, meanings, shown, suggest
from choreo.config.recipe import Recipe
from choreo.errors import BadInput
from choreo.files import toml
from choreo.files.json_file import read_object
from choreo.registry import Registry

METHODS = Registry("method", "choreo.methods", "choreo.methods", "METHODS")

# Settings, and tables of them, that came after 0.1, and whose default is what every run had before.
LATER = {
    ("attack",),
    ("benign",),
    ("engine",),
    ("environment",),
    ("gold",),
    ("system_messages",),
    ("track",),
    ("world", "train_dialogues"),
    ("world", "heldout_dialogues"),
    ("warmup",),
    ("warmup", "run"),
    ("model", "temperature"),
    ("agents", "temperature"),
    ("learning", "feedback_lr"),
    ("protocol", "reasoning_tokens"),
    ("tuning", "student_epochs"),
}

SHIPPED = Path(__file__).parents[1] / "recipes"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`: a TOML file, or the bare name of a shipped recipe. Overrides are "a.b=c".

    The file is checked alone first, so that a message always names the text with the mistake.
    Raises BadInput with one line that names the file and line, or the --set argument, and the field.
    """
    file = find(path)
    data, lines = toml.read(file)
    return _checked(data, overrides, lambda keys: f"{file}:{toml.line_of(lines, keys)}")


def make(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `data`, nested as a TOML file would be. Raises BadInput with one line that names the field."""
    return _checked(data, overrides, lambda keys: "recipe")


def _checked(data: Mapping[str, Any], overrides: Sequence[str], where: Callable[[toml.Keys], str]) -> Recipe:
    recipe = _check(dict(data), where)
    if not overrides:
        return recipe
    # Overrides change what was written, not the whole recipe: a default may depend on a setting that is overridden. But
    # a table inside a section, such as learning.mix, is changed in part: it begins as its default.
    merged, whole = deepcopy(dict(data)), recipe.model_dump()
    for section, key, *inner in (toml.assign({}, argument) for argument in overrides if "." in argument):
        table = whole.get(section)
        if inner and isinstance(table, dict) and isinstance(table.get(key), dict):
            merged.setdefault(section, {}).setdefault(key, table[key])
    paths = {argument: toml.assign(merged, argument) for argument in overrides}
    return _check(merged, lambda keys: f"--set {_blame(paths, keys)}")


def find(path: str | Path) -> Path:
    """The recipe file that `path` means: a bare name without a suffix is a shipped recipe. Raises BadInput."""
    file = Path(path)
    if len(file.parts) == 1 and not file.suffix:
        if file.name not in (names := shipped_names()):
            raise BadInput(f"{path}: no shipped recipe has this name{suggest(file.name, names)}")
        return SHIPPED / f"{file.name}.toml"
    if not file.is_file():
        info = file.with_name("run.json")
        if file.name == "recipe.toml" and info.is_file() and read_object(info).get("method") == "attack":
            raise BadInput(f"{file.parent}: is the folder of an attack; expected a run")
        raise BadInput(f"{path}: no such recipe file")
    return file


def shipped_names() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted(file.stem for file in SHIPPED.glob("*.toml"))


def purpose(path: str | Path) -> str:
    """What a recipe is for: the comment that its file begins with, as one line; "" where it begins with none."""
    lines = find(path).read_text(encoding="utf-8").splitlines()
    return " ".join(line.removeprefix("#").strip() for line in itertools.takewhile(lambda line: line[:1] == "#", lines))


def unset(file: Path) -> list[str]:
    """The settings that the recipe in `file` leaves to their defaults, as dotted keys.

    Settings whose default is an empty text or off are not listed, nor those in LATER. A run that is older than such a
    setting can go on without it.
    """
    data, _ = toml.read(file)
    written = set(toml.leaves(data))
    whole = _check(data, lambda keys: str(file)).model_dump()
    on = [keys for keys, value in toml.leaves(whole).items() if value != "" and value is not False]
    missing = [keys for keys in on if keys not in written]
    return [".".join(keys) for keys in missing if not any(keys[: len(later)] == later for later in LATER)]


def differences(a: Recipe, b: Recipe, besides: tuple[str, ...] = ()) -> list[str]:
    """The settings in which two recipes differ, sorted, as dotted keys. besides: settings, or tables, to leave out."""
    one, other = (toml.leaves(recipe.model_dump()) for recipe in (a, b))
    found = sorted(".".join(keys) for keys in one.keys() | other.keys() if one.get(keys) != other.get(keys))
    return [key for key in found if not any(key == name or key.startswith(f"{name}.") for name in besides)]


def to_toml(recipe: Recipe) -> str:
    """The whole recipe as TOML, with defaults and a comment on every setting. `load` reads it back to an equal one."""
    return toml.dumps(recipe.model_dump(), meanings(type(recipe)))


def _check(data: dict[str, Any], where: Callable[[toml.Keys], str]) -> Recipe:
    method = data.get("method", "waltz")
    if not isinstance(method, str):
        raise BadInput(f"{where(('method',))}: method: expected a name, got {shown(method)}")
    try:
        kind = _recipe_of(method)
    except BadInput as error:
        raise BadInput(f"{where(('method',))}: {error}") from None
    return check(kind, data, where)


def _recipe_of(method: str) -> type[Recipe]:
    """The recipe class of a method. Raises BadInput where there is no such method."""
    found = METHODS.get(method)
    kind = getattr(found, "recipe", None)
    if isinstance(found, type) or not (isinstance(kind, type) and issubclass(kind, Recipe)):
        raise BadInput(f"method {method!r}: expected an object of a subclass of choreo.Method, with a recipe class")
    return kind


def _blame(paths: dict[str, toml.Keys], wrong: toml.Keys) -> str:
    """The last argument that sets the wrong field, a part of it, or a table around it."""
    related = [text for text, keys in paths.items() if all(a == b for a, b in zip(keys, wrong, strict=False))]
    return (related or list(paths))[-1]
