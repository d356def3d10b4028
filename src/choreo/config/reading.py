"""Recipes from TOML and back: one typed tree per experiment, overridden by `--set a.b=c`."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from choreo import toml
from choreo.config.common import Common
from choreo.config.macpo import MacpoRecipe
from choreo.config.waltz import WaltzRecipe
from choreo.errors import BadInput

Recipe = WaltzRecipe | MacpoRecipe
METHODS: dict[str, type[WaltzRecipe] | type[MacpoRecipe]] = {"waltz": WaltzRecipe, "macpo": MacpoRecipe}

SHIPPED = Path(__file__).parents[1] / "recipes"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in `path`: a TOML file, or the bare name of a shipped recipe. Overrides are "a.b=c".

    The file is checked on its own first, so that a mistake is always blamed on the text that made it.
    Raises BadInput with one line that names the file and line, or the --set argument, and the field.
    """
    file = find(path)
    data, lines = toml.read(file)
    recipe = _check(data, lambda keys: f"{file}:{toml.line_of(lines, keys)}")
    if not overrides:
        return recipe
    merged: dict[str, Any] = recipe.model_dump()
    paths = {argument: toml.assign(merged, argument) for argument in overrides}
    return _check(merged, lambda keys: f"--set {_blame(paths, keys)}")


def find(path: str | Path) -> Path:
    """The recipe file that `path` means: a bare name without a suffix is a shipped recipe. Raises BadInput."""
    file = Path(path)
    if len(file.parts) == 1 and not file.suffix:
        shipped = sorted(p.stem for p in SHIPPED.glob("*.toml"))
        if file.name not in shipped:
            raise BadInput(f"{path}: no shipped recipe has this name{_suggest(file.name, shipped)}")
        return SHIPPED / f"{file.name}.toml"
    if not file.is_file():
        raise BadInput(f"{path}: no such recipe file")
    return file


def unsaid(file: Path) -> list[str]:
    """The settings that the recipe in `file` leaves to their defaults, as dotted keys."""
    data, _ = toml.read(file)
    said = set(_leaves(data))
    return [".".join(keys) for keys in _leaves(_check(data, lambda keys: str(file)).model_dump()) if keys not in said]


def to_toml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as TOML that `load` reads back to an equal recipe."""
    return toml.dumps(recipe.model_dump())


def _check(data: dict[str, Any], where: Callable[[toml.Keys], str]) -> Recipe:
    method = data.get("method", "waltz")
    kind = METHODS.get(method) if isinstance(method, str) else None
    if kind is None:
        expected = ", ".join(map(repr, METHODS))
        raise BadInput(f"{where(('method',))}: method: expected one of {expected}, got {_shown(method)}")
    try:
        return kind.model_validate(_tuples(data), strict=True)
    except ValidationError as invalid:
        first, *others = invalid.errors(include_url=False)
    mapping_key = "[key]" in first["loc"]  # pydantic's mark of a wrong key in a free table
    keys = tuple(str(part) for part in first["loc"] if part != "[key]")
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden" or mapping_key:
        schema = _schema(kind, keys[:-1])
        names = schema.get("propertyNames", {}).get("enum") or list(schema.get("properties", {}))
        problem = f"unknown key{_suggest(keys[-1], names)}"
    elif first["type"] == "value_error":
        problem = first["msg"].removeprefix("Value error, ")
    else:
        problem = f"expected {_expected(_schema(kind, keys))}, got {_shown(first['input'])}"
    raise BadInput(f"{where(keys)}: {'.'.join(keys)}: {problem}{more}")


def _leaves(table: Mapping[str, Any], above: toml.Keys = ()) -> Iterator[toml.Keys]:
    for key, value in table.items():
        yield from _leaves(value, (*above, key)) if isinstance(value, Mapping) else [(*above, key)]


def _tuples(value: Any) -> Any:
    """TOML arrays as tuples: strict validation, which keeps true from passing for 1, wants the very type."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _schema(kind: type[Common], keys: toml.Keys) -> dict[str, Any]:
    """The JSON schema of the field at `keys` of such a recipe."""
    root = kind.model_json_schema()
    node: dict[str, Any] = root
    for key in keys:
        node = node.get("properties", {}).get(key) or node.get("items") or node.get("additionalProperties") or {}
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rpartition("/")[2]]
    return node


_NOUNS = {
    "number": "a number", "integer": "a whole number", "string": "text in quotes",
    "boolean": "true or false", "array": "a list", "object": "a table",
}  # fmt: skip
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _expected(schema: dict[str, Any]) -> str:
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if choices:
        return ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices))
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in _BOUNDS.items() if bound in schema]
    return " ".join([_NOUNS.get(schema.get("type", ""), "another value"), " and ".join(bounds)]).strip()


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    shown = "a table" if isinstance(value, dict) else repr(list(value) if isinstance(value, tuple) else value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _suggest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def _blame(paths: dict[str, toml.Keys], wrong: toml.Keys) -> str:
    """The last argument whose path leads to, or lies under, the field that is wrong."""
    related = [text for text, keys in paths.items() if all(a == b for a, b in zip(keys, wrong, strict=False))]
    return (related or list(paths))[-1]
