"""Weights & Biases. Offline, in RUN/trackers/wandb, unless WANDB_MODE says otherwise; `wandb sync` sends it later."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from choreo.trackers.base import Tracked

TRACKERS = {"wandb": "choreo.trackers.wandb:WeightsAndBiases"}


class WeightsAndBiases:
    LIBRARY = "wandb"

    def __init__(self, tracked: Tracked):
        import wandb

        tracked.folder.mkdir(parents=True, exist_ok=True)
        self._table = wandb.Table
        self._run = wandb.init(
            project=tracked.project,
            name=tracked.name,
            id=tracked.id,
            resume="allow",
            dir=str(tracked.folder),
            mode=os.environ.get("WANDB_MODE") or "offline",  # type: ignore[arg-type]
            config=dict(tracked.recipe),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self._run.log(dict(figures), step=step)

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        if rows:
            self._run.log({name: self._table([*rows[0]], [[*row.values()] for row in rows])}, step=step)

    def close(self) -> None:
        self._run.finish()
