"""What a run's report says of the warm start. It loads no PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choreo.report import plots
from choreo.report.page import PageSection, Table, percent
from choreo.report.record import Record

FOLDER = "warmup"  # in a run's folder: the warm start as a run of its own

Figures = Mapping[str, Any]
"""As `measure.measure_reviews` gives them."""


def warmup_sections(record: Record) -> list[PageSection]:
    """The section on the warm start of a run; none where it has none."""
    folder = record.folder / FOLDER
    if not folder.is_dir():
        return []
    inner = Record.read(folder)
    before = inner.info.get("before")
    after = inner.summary.get("after")
    lines = [_learnt(inner)] if inner.summary else ["The warm start is not finished."]
    if before and after:
        lines.append(
            f"On {after['n']} answers to prompts that were kept aside, reviews that parse went from "
            f"{percent(before['format_rate'])} to {percent(after['format_rate'])}, right labels from "
            f"{percent(before['label_accuracy'])} to {percent(after['label_accuracy'])}, and the loss from "
            f"{before['loss']:.3g} to {after['loss']:.3g} nats a token."
        )
    table = _confusion(before or {}, after or {}) if before or after else None
    loss = plots.Line.of_field("loss", inner.metrics, "loss")
    figure = plots.lines([loss], "Warm start: loss of the reviews learnt", "update", "nats per token") if loss.x else ""
    return [PageSection("Warm start of the feedback agent", "\n\n".join(lines), table, figure)]


def in_words(figures: Figures) -> str:
    """The figures in one line, for the progress."""
    each = ", ".join(f"{name} {percent(own, False)}" for name, own in figures["by_verdict"].items())
    return (
        f"on {figures['n']} answers kept aside, format rate {percent(figures['format_rate'], False)}, label accuracy "
        f"{percent(figures['label_accuracy'], False)} ({each}), loss {figures['loss']:.3g}"
    )


def _learnt(inner: Record) -> str:
    found = inner.summary
    verdicts = ", ".join(f"{count} {name}" for name, count in found["verdicts"].items())
    return (
        f"Before RL the feedback agent learnt from reviews of {sum(found['verdicts'].values())} answers ({verdicts}), "
        f"in {found['updates']} updates and {found['seconds'] / 60:.1f} min, with what was got ready for it."
    )


def _confusion(before: Figures, after: Figures) -> Table:
    """Rows: a true verdict, before and after. Columns: how many reviews gave which, and the share that is right."""
    pairs = [(when, found) for when, found in (("before", before), ("after", after)) if found]
    names = list(dict.fromkeys(name for _, found in pairs for row in found["confusion"].values() for name in row))
    rows = [
        [f"{verdict}, {when}", *(counts.get(name, 0) for name in names), found["by_verdict"][verdict]]
        for verdict in dict.fromkeys(verdict for _, found in pairs for verdict in found["confusion"])
        for when, found in pairs
        if (counts := found["confusion"].get(verdict)) is not None
    ]
    return Table(("true verdict", *(f"review: {name}" for name in names), "right"), rows)
