"""The settings of several runs side by side, and what differs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.files import toml

NOTED = ("versions", "device", "threads", "judge", "gold", "machine")  # of run.json, beside the recipe


def side_by_side(recipes: Sequence[Mapping[str, Any]], infos: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each setting that any recipe has: {key, values, differs}; then those of run.json. A value is text as
    TOML or JSON writes it, or None where a run lacks the setting."""
    rows = _rows([_flat(recipe) for recipe in recipes])
    kept = [{f"run.json: {name}": info[name] for name in NOTED if name in info} for info in infos]
    return rows + _rows([_flat(info) for info in kept])


def said_of_settings(file: Path) -> dict[str, str]:
    """What a run's recipe.toml says of each setting, in the comment above it; nothing where it cannot be read."""
    try:
        _, lines = toml.read(file)
        text = file.read_text(encoding="utf-8-sig").split("\n")
    except (BadInput, OSError, ValueError):
        return {}
    above = {".".join(keys): text[line - 2] if line > 1 else "" for keys, line in lines.items()}
    return {key: line.removeprefix("#").strip() for key, line in above.items() if line.startswith("#")}


def _rows(columns: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    found = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key) for column in columns]
        found.append({"key": key, "values": values, "differs": len(set(values)) > 1})
    return found


def _flat(table: Mapping[str, Any]) -> dict[str, str]:
    leaves = toml.leaves(table).items()
    return {".".join(keys): json.dumps(value, ensure_ascii=False, default=str) for keys, value in leaves}
