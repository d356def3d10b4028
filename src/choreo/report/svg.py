"""What every figure shares: its look, its axes and legend, and how it becomes inline SVG.

Colours of ink and grid are CSS variables with fallbacks, so a figure follows the page into the dark; the series
colours (Okabe and Ito's, safe for colour-blind readers) hold on both grounds. Text is kept as text, so that it can be
read and searched. No pyplot: nothing here has a state.
"""

from __future__ import annotations

import hashlib
import io
import re
from html import escape
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

# What is drawn with these colours becomes var(--name, colour).
INK, MUTED, GRID, GROUND = "#24292f", "#6a7079", "#dde1e6", "#fefefe"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", GROUND: "card"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b35c94", "#8a7a00", "#5b6bd6", "#7f7f7f", "#a5502a")
DASHES = ("-", (0, (5, 2)), (0, (1.2, 1.4)), (0, (6, 1.5, 1.2, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "choreo",
    "font.family": "DejaVu Sans",
    "font.size": 10.5,
    "text.color": INK,
    "text.parse_math": False,  # names are data: a dollar sign is a dollar sign
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
}


def standalone(svg: str) -> str:
    """An inline figure as the text of an .svg file: light colours, white ground."""
    plain = re.sub(r"var\(--[a-z]+, (#[0-9a-f]{6})\)", r"\1", svg)
    body = re.sub(r"^<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', plain, count=1)
    return re.sub(r"^(<svg [^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', body, count=1) + "\n"


def new_axes(title: str, x_label: str, y_label: str, width: float, height: float) -> tuple[Figure, Any]:
    """A transparent figure of width × height inches, and its one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    axes.set_title(plain_name(title, 70))
    axes.set_xlabel(plain_name(x_label, 70))
    axes.set_ylabel(plain_name(y_label, 50))
    axes.tick_params(length=3)
    return figure, axes


def plain_name(name: str, limit: int = 28) -> str:
    """A name as a figure can show it: printable, on one line, and not so long that the axes vanish."""
    clean = "".join(letter if letter.isprintable() else " " for letter in name)
    return clean if len(clean) <= limit else clean[: limit - 1] + "…"


def use_percent(axis: Any) -> None:
    """Shows the fractions on an axis of matplotlib as 0–100 %."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))


def add_legend(figure: Figure, axes: Any, entries: int) -> None:
    """A legend below the axes: one row of up to four entries, or rows of three; fewer in a row where names are long."""
    handles, labels = axes.get_legend_handles_labels()
    columns = entries if entries <= 4 else 3
    letters = 14 * figure.get_figwidth()  # that a row has room for
    while columns > 1 and columns * (max(map(len, labels)) + 8) > letters:
        columns -= 1
    rows = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.22 * max(0, rows - 2))  # or the axes would lose their height
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, handlelength=2.6, columnspacing=1.4)


def inline_svg(figure: Figure, alt: str) -> str:
    """The figure as an <svg> element to stand inside a page. alt: what a screen reader says of it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    viewbox = re.search(r'viewBox="([^"]+)"', text)
    assert viewbox is not None, "matplotlib writes a viewBox"
    start = text.index(">", text.index("<svg ")) + 1
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[start:], flags=re.DOTALL)
    # Several figures share a page: ids and references to them get a prefix of their own.
    key = "f" + hashlib.sha256(body.encode()).hexdigest()[:8]

    def own(tag: re.Match[str]) -> str:  # inside tags only: names shown as text stay as they are
        inner = re.sub(r'\bid="', f'id="{key}-', tag[0])
        inner = re.sub(r'(?:xlink:)?href="#', f'href="#{key}-', inner)
        inner = inner.replace("url(#", f"url(#{key}-").replace("'DejaVu Sans'", "system-ui, 'DejaVu Sans', sans-serif")
        for colour, name in _VARIABLES.items():
            inner = re.sub(rf"(fill|stroke): {colour}", rf"\1: var(--{name}, {colour})", inner)
        return inner

    body = re.sub(r"<[^>]*>", own, re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL))
    body = re.sub(r"\n\s*", "\n", body).strip()
    look = "stroke-linejoin: round; stroke-linecap: butt"
    return f'<svg viewBox="{viewbox[1]}" role="img" aria-label="{escape(plain_name(alt, 4000))}" style="{look}">{body}'
