"""One look for every page choreo writes: self-contained HTML, light and dark, printable, and Markdown beside it.

Everything a user or a model wrote reaches the page as escaped text; only figures made by `plots` are markup.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from choreo.errors import BadInput
from choreo.files import durable

DASH = "–"


@dataclass(frozen=True)
class Table:
    """Cells are text, numbers, None (shown as a dash), or estimates {value, n, low, high, undetermined}.

    words: how many columns, from the left, hold words: they are aligned to the left. Where all do, a row becomes a
    block on a narrow screen.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    words: int = 1


@dataclass(frozen=True)
class PageSection:
    """One question of a study: the verdict in words, its table, and its figure (inline SVG from `plots`)."""

    heading: str
    verdict: str
    table: Table | None = None
    figure: str = ""


def percent(estimate: dict[str, Any] | None, interval: bool = True) -> str:
    """A share as '3.1 % (2.0–4.4)', or a dash where nothing was measured. With the interval goes a count of what the
    judge left open, as '3.1 % (2.0–4.4), 7 open', where there was any."""
    if estimate is None or estimate.get("value") is None:
        return DASH
    text = f"{100 * estimate['value']:.1f} %"
    if not interval or estimate.get("low") is None or estimate.get("high") is None:
        return text
    left_open = f", {estimate['undetermined']} open" if estimate.get("undetermined") else ""
    return f"{text} ({100 * estimate['low']:.1f}{DASH}{100 * estimate['high']:.1f}){left_open}"


def quantity(estimate: dict[str, Any] | None) -> str:
    """A mean in its own unit as '31.2 (29.8–32.5)', or a dash."""
    if estimate is None or estimate.get("value") is None:
        return DASH
    text = f"{estimate['value']:.1f}"
    if estimate.get("low") is None or estimate.get("high") is None:
        return text
    return f"{text} ({estimate['low']:.1f}{DASH}{estimate['high']:.1f})"


def cell(value: Any) -> str:
    """Any table cell as text. Estimates are taken as shares; format means with `quantity` first."""
    if value is None:
        return DASH
    if isinstance(value, dict):
        return percent(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def render(template: str, **values: Any) -> str:
    """The text of one of the package's HTML templates; every value is escaped."""
    return _environment().get_template(template).render(**values)


def write_study(path: str | Path, title: str, intro: str, sections: Sequence[PageSection]) -> Path:
    """Write a study as PATH.html, as PATH.md, and one .svg per figure beside the Markdown; returns the HTML's path.

    path: with or without an .html or .md suffix; its folder is made. Paragraphs in texts are parted by blank lines.
    Raises BadInput where that cannot be.
    """
    from choreo.report.svg import standalone  # matplotlib is imported with it, which other pages do not need

    base = _base(path)
    durable.make_folder(base.parent)
    text = [f"# {_markdown(title)}", _markdown(intro)]
    for index, section in enumerate(sections, start=1):
        text += [f"## {_markdown(section.heading)}", _markdown(section.verdict)]
        if section.table is not None:
            head = [section.table.columns, ["---"] * len(section.table.columns)]
            rows = [[_row_cell(value) for value in row] for row in section.table.rows]
            table = [[_row_cell(value) for value in head[0]], head[1], *rows]
            text.append("\n".join(f"| {' | '.join(row)} |" for row in table))
        if section.figure:
            picture = base.with_name(f"{base.name}-{index}.svg")
            write(picture, standalone(section.figure))
            text.append(f"![{_markdown(section.heading)}]({picture.name})")
    write(base.with_name(base.name + ".md"), "\n\n".join(text) + "\n")
    figures = [Markup(section.figure) for section in sections]
    page = render("study.html", title=title, intro=intro, sections=list(zip(sections, figures, strict=True)))
    return write(base.with_name(base.name + ".html"), page)


def study_there(path: str | Path) -> list[Path]:
    """The files of a study at `path` that are there already, which `write_study` may write over."""
    base = _base(path)
    pages = [base.with_name(base.name + suffix) for suffix in (".html", ".md")]
    return [page for page in pages if page.exists()] + sorted(base.parent.glob(f"{escape(base.name)}-[0-9]*.svg"))


def _base(path: str | Path) -> Path:
    base = Path(path)
    if not base.name:
        raise BadInput(f"{path}: is a folder; expected the name of a page")
    return base.with_suffix("") if base.suffix in (".html", ".md") else base


def write(path: Path, text: str) -> Path:
    """Write a page whole or not at all. Half a surrogate pair, which JSON may hold and UTF-8 not, becomes '?'."""
    durable.write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
    return path


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("choreo", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, quantity=quantity, cell=cell, paragraphs=_paragraphs)
    return environment


def _paragraphs(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, without opening tags; paragraphs are kept."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _row_cell(value: Any) -> str:
    return _markdown(" ".join(cell(value).split())).replace("|", "\\|")
