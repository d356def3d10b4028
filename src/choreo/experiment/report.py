"""The report of a run: one self-contained page made from its folder, at any moment of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.config.reading import METHODS
from choreo.errors import BadInput
from choreo.evaluation.dialogues import dialogue_records
from choreo.files import durable
from choreo.methods.base import Method
from choreo.report import page
from choreo.report.record import Record
from choreo.report.run_pages import systems_page
from choreo.types import Episode


def write_report(run_dir: str | Path) -> Path:
    """Writes report.html into the run folder and returns its path.

    An evaluation, and a run whose method is not here any more, have the page of the systems that were measured.
    Raises BadInput as `Record.read` does.
    """
    record = Record.read(run_dir)
    method = _method(record.info.get("method"))
    text = method.report(record) if method else systems_page(record, published_too=True)
    return page.write(record.folder / "report.html", text)


def write_evaluation(folder: Path, summary: Mapping[str, Any], played: Mapping[str, Sequence[Episode[Any]]]) -> Path:
    """Writes the summary of an evaluation, the games that its report shows, and the report, whose path it returns."""
    records = [record for system, episodes in played.items() for record in dialogue_records(system, episodes)]
    durable.write_json(folder / "dialogues.json", records)
    durable.write_json(folder / "summary.json", summary)
    return write_report(folder)


def _method(name: object) -> Method | None:
    try:
        return METHODS.get(name) if isinstance(name, str) else None
    except BadInput:
        return None
