"""What hears of a run while it goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.types import Episode


class Callback:
    """Hears of a run while it goes on. Every method here does nothing: a subclass writes those that it wants.

    The methods are called in the process and the thread that trains. An exception that one raises stops the run.
    """

    def on_phase(self, label: str, total: int, done: int) -> None:
        """A phase of `total` steps begins ("training", "measuring base"). `done` of them were done before a resume."""

    def on_progress(self, done: int, figures: Mapping[str, float]) -> None:
        """`done` steps of the phase are done. figures: the few that a person wants to watch, by their shown names."""

    def on_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """All figures of training step `step` (1, 2, …), as metrics.jsonl keeps them."""

    def on_episodes(self, step: int, episodes: Sequence[Episode], rewards: Sequence[Mapping[str, float]]) -> None:
        """What step `step` sampled, after its metrics. rewards[i]: the rewards of episode i, by component."""

    def on_message(self, text: str) -> None:
        """One line for people. One that begins with "!" is a warning."""

    def on_end(self) -> None:
        """The work is over: done, stopped or failed."""

    def wants_stop(self) -> bool:
        """True asks the run to stop at its next safe point: its state is saved, and `Interrupted` is raised."""
        return False


def notify(callbacks: Sequence[Callback], event: str, *arguments: Any) -> None:
    """Calls the method `event` of every callback, in order."""
    for callback in callbacks:
        getattr(callback, event)(*arguments)
