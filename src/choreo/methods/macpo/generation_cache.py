"""The answers that a run has written and will read again. They are saved with its checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from choreo.types import Turn

_FIELDS = ("agent", "context", "ids", "version", "text", "finished", "failure")
# What a saved cache is like (`checkpoint.check`). A run of an early choreo has no `failure`.
EXAMPLE: dict[type, Any] = {str: [("", [], [], 0, "", True, ...)]}


class GenerationCache:
    """Lists of turns by name (round/policy/purpose/sample); a list has one turn per prompt, in the prompts' order.

    unrecorded: the lists that were written and are not yet in the run's episodes; who records them empties it.
    """

    def __init__(self) -> None:
        self._lists: dict[str, list[Turn]] = {}
        self.unrecorded: dict[str, list[Turn]] = {}

    def get(self, name: str, write: Callable[[], list[Turn]]) -> list[Turn]:
        """The list `name`; `write` makes it where it is not here."""
        if name not in self._lists:
            self._lists[name] = self.unrecorded[name] = write()
        return self._lists[name]

    def state_dict(self) -> dict[str, Any]:
        """Log-probabilities are left out: they are recorded with the episodes, and no loss here reads them."""
        return {
            name: [[getattr(turn, field) for field in _FIELDS] for turn in turns] for name, turns in self._lists.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._lists = {name: [_turn(row) for row in rows] for name, rows in state.items()}


def _turn(row: list[Any]) -> Turn:
    agent, context, ids, version, text, finished, *failure = row
    return Turn(agent, 0, tuple(context), tuple(ids), (), version, text, finished, *failure)
