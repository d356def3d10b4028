"""Everything that a run has written and will read again, by round, policy and purpose. It is saved with checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from choreo.types import Turn

_FIELDS = ("agent", "context", "ids", "version", "text", "finished", "failure")
# Of a saved book (`checkpoint.check`). One from before says nothing of failure.
EXAMPLE: dict[type, Any] = {str: [("", [], [], 0, "", True, ...)]}


class Book:
    """Lists of turns, one per prompt and in the prompts' order. What is in it is never written twice."""

    def __init__(self) -> None:
        self._pages: dict[str, list[Turn]] = {}
        self.fresh: dict[str, list[Turn]] = {}  # written since `fresh` was last emptied

    def page(self, name: str, write: Callable[[], list[Turn]]) -> list[Turn]:
        """The page `name`, written by `write` where it is not there."""
        if name not in self._pages:
            self._pages[name] = self.fresh[name] = write()
        return self._pages[name]

    def state_dict(self) -> dict[str, Any]:
        """Log-probabilities are left out: they are recorded with the episodes, and no loss here reads them."""
        return {
            name: [[getattr(turn, field) for field in _FIELDS] for turn in turns] for name, turns in self._pages.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._pages = {name: [_turn(row) for row in rows] for name, rows in state.items()}


def _turn(row: list[Any]) -> Turn:
    agent, context, ids, version, text, finished, *failure = row  # a run from before says nothing of failure
    return Turn(agent, 0, tuple(context), tuple(ids), (), version, text, finished, *failure)
