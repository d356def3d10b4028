"""TensorBoard: event files in RUN/trackers/tensorboard. `tensorboard --logdir RUN/trackers` shows them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from choreo.trackers.base import Tracked

TRACKERS = {"tensorboard": "choreo.trackers.tensorboard:TensorBoard"}


class TensorBoard:
    LIBRARY = "tensorboard"

    def __init__(self, tracked: Tracked):
        from torch.utils.tensorboard import SummaryWriter

        # What a run logged after its last checkpoint is hidden: it logs these steps again.
        self._writer = SummaryWriter(str(tracked.folder / "tensorboard"), purge_step=tracked.step)
        if tracked.step == 1:
            recipe = json.dumps(tracked.recipe, indent=2, ensure_ascii=False)
            self._writer.add_text("recipe", "\n".join(f"    {line}" for line in recipe.splitlines()), 1)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def table(self, step: int, name: str, rows: Sequence[Mapping[str, str]]) -> None:
        if rows:
            lines = [[*rows[0]], ["---"] * len(rows[0]), *([_cell(text) for text in row.values()] for row in rows)]
            self._writer.add_text(name, "\n".join(f"| {' | '.join(line)} |" for line in lines), step)

    def close(self) -> None:
        self._writer.close()


def _cell(text: str) -> str:
    """Text as a cell of a table in Markdown."""
    return text.replace("|", "\\|").replace("\n", "<br>")
