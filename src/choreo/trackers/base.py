"""What a tracker is, and the callback that passes a run on to those that its recipe names."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any, Protocol

from choreo.config import parts
from choreo.errors import BadInput
from choreo.runs.callbacks import Callback
from choreo.types import Episode

ROWS = 16  # episodes in a table


@dataclass(frozen=True)
class Tracked:
    """The run that is tracked.

    name: as people read it. id: the same after a resume, and of this run alone. folder: where a tracker may write.
    recipe: every setting. step: the first step that will be logged; of a resumed run, what was logged from there on is
    logged again.
    """

    project: str
    name: str
    id: str
    folder: Path
    recipe: Mapping[str, Any]
    step: int


class Tracker(Protocol):
    """Made of a `Tracked`, when the first step is done. LIBRARY: the module that it needs, "" for none."""

    LIBRARY: str

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step, by names such as "train/asr"."""

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        """Rows with the same columns."""

    def close(self) -> None:
        """Everything is to be on the disk, or sent."""


def require_trackers(names: Sequence[str]) -> None:
    """Raises BadInput, naming the extra, where the library of a tracker is not installed."""
    for name in names:
        library = getattr(parts.TRACKERS.get(name), "LIBRARY", "")
        if library and not _installed(library):
            raise BadInput(f"track.to: {name}: {library} is not installed (pip install 'choreo-rl[{name}]')")


def _installed(library: str) -> bool:
    try:
        return util.find_spec(library) is not None
    except ValueError:  # it has been kept from being imported
        return False


class Tracking(Callback):
    """Passes the figures of every step on, and every `every` steps a table of sampled episodes."""

    def __init__(self, names: Sequence[str], every: int, tracked: Tracked):
        """tracked: `step` is set to the first one that is logged."""
        self._names, self._every, self._tracked = names, every, tracked
        self._trackers: list[Tracker] = []

    def on_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        if not self._trackers:
            made = Tracked(**{**vars(self._tracked), "step": step})
            self._trackers = [parts.TRACKERS.get(name)(made) for name in self._names]
        for tracker in self._trackers:
            tracker.log(step, numbers(metrics))

    def on_episodes(self, step: int, episodes: Sequence[Episode], rewards: Sequence[Mapping[str, float]]) -> None:
        if self._every and step % self._every == 0:
            rows = [row(episode, parts) for episode, parts in [*zip(episodes, rewards, strict=True)][:ROWS]]
            for tracker in self._trackers:
                tracker.table(step, "train/episodes", rows)

    def on_end(self) -> None:
        for tracker in self._trackers:
            tracker.close()
        self._trackers = []


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a line of metrics.jsonl under train/, and how many alarms there are."""
    found = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    if "alarms" in metrics:
        found["alarms"] = len(metrics["alarms"])
    return {f"train/{name}": float(value) for name, value in found.items() if math.isfinite(value)}


def row(episode: Episode, rewards: Mapping[str, float]) -> dict[str, str]:
    """An episode as a row of a table, all of it text that UTF-8 can hold. The turns of a conversation, and
    the reviews and revisions of several rounds, stand one below the other."""
    last = episode.verdicts[-1] if episode.verdicts else None
    cells = {
        "prompt": episode.prompt.words,
        "kind": episode.prompt.kind,
        "answer": episode.answers[0].text if episode.answers else "",
        "reviews": "\n".join(turn.text for turn in episode.reviews),
        "revisions": "\n".join(turn.text for turn in episode.answers[1:]),
        "unsafe": "" if last is None or last.unsafe is None else str(last.unsafe).lower(),
        "overrefuse": "" if last is None or last.overrefuse is None else str(last.overrefuse).lower(),
        "rewards": ", ".join(f"{name} {value:.3g}" for name, value in rewards.items()),
    }
    return {name: text.encode("utf-8", "replace").decode() for name, text in cells.items()}
