"""Checks what a user wrote against a typed section. The result is the section, or one line that says what is wrong."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from choreo.errors import BadInput
from choreo.files import utf8
from choreo.files.toml import Keys

Kind = TypeVar("Kind", bound=BaseModel)


def check(kind: type[Kind], data: Mapping[str, Any], where: Callable[[Keys], str]) -> Kind:
    """`data`, made of dicts, lists and plain values, as a `kind`. where: gives the place of a key in the user's text.

    Raises BadInput with the place, the dotted key, what is wrong with it, and the number of further mistakes.
    """
    if wrong := utf8.broken(data):
        keys, what = wrong
        raise BadInput(f"{where(keys)}: {'.'.join(keys)}: {what}")
    try:
        return kind.model_validate(_tuples(data), strict=True)
    except ValidationError as invalid:
        errors = invalid.errors(include_url=False)
    # A misspelt key without a default is also reported as missing. What the user wrote is named first.
    first, *others = sorted(errors, key=lambda error: error["type"] != "extra_forbidden")
    mapping_key = "[key]" in first["loc"]  # so pydantic reports a wrong key in a free table
    keys = tuple(str(part) for part in first["loc"] if part != "[key]")
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden" or mapping_key:
        schema = _schema(kind, keys[:-1])
        names = schema.get("propertyNames", {}).get("enum") or list(schema.get("properties", {}))
        problem = f"unknown key{suggest(keys[-1], names)}"
    elif first["type"] == "value_error":
        problem = first["msg"].removeprefix("Value error, ")
    elif first["type"] == "missing":
        problem = f"missing; expected {_expected(_schema(kind, keys))}"
    else:
        problem = f"expected {_expected(_schema(kind, keys))}, got {shown(first['input'])}"
    raise BadInput(f"{where(keys)}: {'.'.join(keys)}: {problem}{more}")


def meanings(kind: type[BaseModel]) -> Callable[[Keys], str]:
    """A function that gives, for the keys of a field of `kind`, a line with its allowed values and its meaning."""
    root = _root(kind)

    def meaning(keys: Keys) -> str:
        above, field = _node(root, keys[:-1]), _node(root, keys)
        text = above.get("properties", {}).get(keys[-1], {}).get("description") or field.get("description", "")
        return ": ".join(part for part in (_expected(field), " ".join(text.split())) if part)

    return meaning


def suggest(name: str, names: Sequence[str]) -> str:
    """The end of a message about an unknown `name`: the most similar of `names`, or all of them."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def shown(value: Any) -> str:
    """`value` as a message quotes it, cut to 60 characters."""
    if isinstance(value, bool):
        return str(value).lower()
    text = "a table" if isinstance(value, dict) else repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:57] + "..."


def _tuples(value: Any) -> Any:
    """Lists as tuples, because strict validation, under which true is not accepted for 1, demands the exact type."""
    if isinstance(value, dict):
        return {key: _tuples(inner) for key, inner in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


@cache
def _root(kind: type[BaseModel]) -> dict[str, Any]:
    return kind.model_json_schema()


def _schema(kind: type[BaseModel], keys: Keys) -> dict[str, Any]:
    """The JSON schema of the field at `keys` of a `kind`."""
    return _node(_root(kind), keys)


def _node(root: dict[str, Any], keys: Keys) -> dict[str, Any]:
    node = root
    for key in keys:
        free = node.get("additionalProperties")  # a schema, or true where a table may hold anything
        free = free if isinstance(free, dict) else {}
        node = node.get("properties", {}).get(key) or node.get("items") or free
        # In pydantic's schema an optional field is "this, or null". Nobody writes the null.
        node = next((part for part in node.get("anyOf", ()) if part.get("type") != "null"), node)
        if "$ref" in node:
            node = root["$defs"][node["$ref"].rpartition("/")[2]]
    return node


_NOUNS = {
    "number": "a number",
    "integer": "a whole number",
    "string": "text in quotes",
    "boolean": "true or false",
    "array": "a list",
    "object": "a table",
}
_BOUNDS = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}


def _expected(schema: dict[str, Any]) -> str:
    if "expected" in schema:  # the names of a registry (`choreo.config.parts`)
        return str(schema["expected"])
    choices = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if choices:
        return ("one of " if len(choices) > 1 else "") + ", ".join(map(repr, choices))
    bounds = [f"{sign} {schema[bound]:g}" for bound, sign in _BOUNDS.items() if bound in schema]
    return " ".join([_NOUNS.get(schema.get("type", ""), "another value"), " and ".join(bounds)]).strip()
