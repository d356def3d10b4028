"""Pairs that ship with choreo: run folders with what playing and measuring needs, and no more.

A name such as smollm2 stands for one wherever a run of a pair is asked for, unless there is a folder of that name.
"""

from __future__ import annotations

from pathlib import Path

PAIRS = Path(__file__).parents[1] / "data" / "pairs"


def pairs() -> list[str]:
    """The names of all shipped pairs."""
    return sorted(folder.parent.name for folder in PAIRS.glob("*/run.json"))


def placed(run: str | Path) -> Path:
    """The run folder that `run` names: itself, or a shipped pair's. It need not exist."""
    return PAIRS / run if not Path(run).exists() and str(run) in pairs() else Path(run)
