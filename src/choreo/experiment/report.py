"""The report of a run: one self-contained page made from its folder, at any moment of the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.config.reading import METHODS
from choreo.errors import BadInput
from choreo.evaluation.dialogues import dialogue_records
from choreo.evaluation.judging import silence_lines
from choreo.files import durable
from choreo.methods.base import Method
from choreo.report import page
from choreo.report.record import Record
from choreo.report.run_pages import systems_page
from choreo.runs.progress import Progress
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


def tell_evaluation(
    summary: Mapping[str, Any],
    played: Mapping[str, Sequence[Episode[Any]]],
    folder: Path | None,
    progress: Progress,
) -> None:
    """Says where the judge, or the models, left more open than a reader would think, and writes the summary of an
    evaluation into `folder`, with the games that its report shows, and the report. None writes nothing."""
    for line in silence_lines(summary, played):
        progress.say(line)
    if folder is not None:
        records = [record for system, episodes in played.items() for record in dialogue_records(system, episodes)]
        durable.write_json(folder / "dialogues.json", records)
        durable.write_json(folder / "summary.json", summary)
        progress.say(f"report: {write_report(folder)}")


def _method(name: object) -> Method | None:
    try:
        return METHODS.get(name) if isinstance(name, str) else None
    except BadInput:
        return None
