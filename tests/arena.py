"""What the tests of the arena share: small files of answers, an arena, a rater who asks by HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2

from choreo.arena.make import ArenaPlan, new_arena
from choreo.types import KINDS


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def answers(folder: Path, system: str, prompts: int) -> Path:
    rows = [{"prompt": f"Question {i}?", "answer": f"{system} on {i}", "kind": KINDS[i % 3]} for i in range(prompts)]
    return write_rows(folder / f"{system}.jsonl", rows)


def make_arena(
    folder: Path, mode: Any, systems: Sequence[str], prompts: int, attention: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """An arena in folder/arena, of systems whose answers are "NAME on NUMBER"."""
    sources = [(name, str(answers(folder, name, prompts))) for name in systems]
    file = write_rows(folder / "attention.jsonl", attention) if attention else None
    new_arena(folder / "arena", ArenaPlan(mode, sources, attention=file))
    return folder / "arena"


class Rater:
    """A rater's client. Every method returns the page's next state."""

    def __init__(self, url: str, secret: str):
        self.http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {secret}"}, timeout=120)

    def next(self) -> dict[str, Any]:
        return self._ok(self.http.get("/next"))

    def rate(self, item: int, choice: str, degenerate: bool | None = None) -> dict[str, Any]:
        said = {"item": item, "choice": choice, "degenerate": degenerate}
        return self._ok(self.http.post("/rate", json=said))

    def undo(self, item: int) -> dict[str, Any]:
        return self._ok(self.http.post("/undo", json={"item": item}))

    @staticmethod
    def _ok(response: httpx2.Response) -> dict[str, Any]:
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found
