"""What was measured of a system on held-out prompts: a file of measures, and one of the games beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from choreo.errors import BadInput
from choreo.files import durable
from choreo.runs.episodes import record
from choreo.types import AGAIN, Episode


def heldout_games(path: str | Path, system: str, round: int | None = None) -> list[dict[str, Any]]:
    """The records of a system's judged games on held-out prompts, but for those that were played once more under a
    system message. Raises BadInput where the run has none of them."""
    if not (file := measured_file(path, system, round)).is_file():
        there = systems_of(path, round)
        which = f"there are {', '.join(there)}" if there else "the run has none"
        after = "" if round is None else f" after round {round}"
        raise BadInput(f"{path}: no held-out games of a system {system!r}{after}; {which}")
    return [game for game in durable.read_lines(games_of(file)) if not game["prompt"]["suite"].endswith(AGAIN)]


def systems_of(run: str | Path, round: int | None = None) -> list[str]:
    """The systems that were measured on held-out prompts, at the end or after a round of MACPO."""
    return sorted(unquote(one.stem) for one in measured_file(run, "any", round).parent.glob("*.json"))


def measured_file(run: str | Path, system: str, round: int | None = None) -> Path:
    """The measures of a system on held-out prompts. round: of a policy as it was after that round; None: at the end."""
    folder = Path(run, "heldout") if round is None else Path(run, "heldout", f"round-{round}")
    return folder / f"{quote(system, safe='+')}.json"


def games_of(file: Path) -> Path:
    """The games that the measures in `file` are of, as JSON lines."""
    return file.with_name(f"{file.stem}.jsonl.gz")


def write_measured(file: Path, figures: Mapping[str, Any], episodes: Sequence[Episode]) -> None:
    """Writes measures, and the games that they are of beside them."""
    durable.write_lines(games_of(file), (record(episode, {}) for episode in episodes))
    durable.write_json(file, figures)  # the last: where it is, so are the games
