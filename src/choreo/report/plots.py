"""Figures as inline SVG: pure functions from numbers to text. Every series has its own colour, and dash or marker."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from choreo.evaluation.intervals import Estimate
from choreo.report.svg import (
    COLOURS,
    DASHES,
    GRID,
    GROUND,
    INK,
    MARKERS,
    MUTED,
    STYLE,
    add_legend,
    inline_svg,
    new_axes,
    plain_name,
    use_percent,
)


@dataclass(frozen=True)
class Line:
    """One series: x and y of equal length, low and high too where there is an interval; NaN is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()

    @classmethod
    def through(cls, name: str, estimates: Sequence[Estimate], x: Sequence[float] | None = None) -> Line:
        """A line through estimates with their intervals, at x, or at 0, 1, …; an unknown value is a gap."""
        at = range(len(estimates)) if x is None else x
        ends = ([math.nan if e[end] is None else e[end] for e in estimates] for end in ("value", "low", "high"))
        return cls(name, [float(value) for value in at], *ends)

    @classmethod
    def of_field(cls, name: str, metrics: Sequence[Mapping[str, Any]], field: str) -> Line:
        """A field of metrics.jsonl over the steps; lines where it is no finite number are left out."""
        pairs = [(line["step"], line[field]) for line in metrics if isinstance(line.get(field), int | float)]
        finite = [(step, value) for step, value in pairs if math.isfinite(value)]
        return cls(name, [step for step, _ in finite], [value for _, value in finite])


@dataclass(frozen=True)
class Point:
    """A system on the plane: fractions in [0, 1], with (low, high) where known."""

    name: str
    helpful: float
    harmless: float
    helpful_interval: tuple[float, float] | None = None
    harmless_interval: tuple[float, float] | None = None

    @classmethod
    def of(cls, name: str, asr: Estimate, orr: Estimate) -> Point | None:
        """The point at (1 − ORR, 1 − ASR), with the intervals that are known; None where a rate was not measured."""
        if asr["value"] is None or orr["value"] is None:
            return None
        return cls(name, 1 - orr["value"], 1 - asr["value"], _turned(orr), _turned(asr))


def _turned(rate: Estimate) -> tuple[float, float] | None:
    """The interval of 1 − rate."""
    return None if rate.get("low") is None or rate.get("high") is None else (1 - rate["high"], 1 - rate["low"])


def lines(
    series: Sequence[Line],
    title: str,
    x_label: str,
    y_label: str = "",
    percent: bool = False,
    mark: tuple[float, str] | None = None,
    whole: bool = False,
) -> str:
    """Curves over one x. percent: y is a fraction, shown as 0–100 %. mark: a dashed vertical line at x, with words.
    whole: of fractions all from 0 to 100 % is shown, whatever the values are.

    From 30 points on, a line is a centred mean of about a tenth of the points, over the pale raw values.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(title, x_label, y_label, 6.4, 3.5)
        for index, line in enumerate(series):
            colour, dash = COLOURS[index % len(COLOURS)], DASHES[index % len(DASHES)]
            x, y = np.asarray(line.x, dtype=float), np.asarray(line.y, dtype=float)
            if len(line.low):
                axes.fill_between(x, line.low, line.high, color=colour, alpha=0.18, linewidth=0)
            crowded = len(x) >= 30
            if crowded:
                axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.9)
            marker = None if crowded else MARKERS[index % len(MARKERS)]
            shown = _smooth(y) if crowded else y
            axes.plot(
                x,
                shown,
                color=colour,
                linestyle=dash,
                linewidth=1.9,
                marker=marker,
                markersize=4.5,
                label=plain_name(line.name, 40),
            )
        if percent:
            use_percent(axes.yaxis)
            low, high = axes.get_ylim()
            axes.set_ylim(*((-0.03, 1.03) if whole else (max(low, -0.03), min(high, 1.03))))
        if mark is not None:
            axes.axvline(mark[0], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
            at = axes.get_xaxis_transform()
            axes.text(mark[0], 1.0, f" {mark[1]}", transform=at, fontsize=9, color=MUTED, va="top")
        if series and all(float(value).is_integer() for line in series for value in line.x):
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if series:
            add_legend(figure, axes, len(series))
        return inline_svg(figure, f"{title}. " + " ".join(_in_words(line, percent) for line in series))


def bars(
    categories: Sequence[str], series: Mapping[str, Sequence[Estimate]], title: str, x_label: str, percent: bool = True
) -> str:
    """Horizontal bars with intervals: one group per category, one bar per series. Unknown values leave a gap."""
    with matplotlib.rc_context(STYLE):
        thick = 0.8 / max(1, len(series))
        figure, axes = new_axes(title, x_label, "", 6.4, 1.3 + 0.3 * len(categories) * max(1.0, 0.75 * len(series)))
        words = []
        for index, (name, estimates) in enumerate(series.items()):
            if len(estimates) != len(categories):
                raise ValueError(f"{name!r} has {len(estimates)} values for {len(categories)} categories")
            colour = COLOURS[index % len(COLOURS)]
            known = [(i, e) for i, e in enumerate(estimates) if e["value"] is not None]
            y = [i - 0.4 + thick * (index + 0.5) for i, _ in known]
            values = np.array([e["value"] for _, e in known], dtype=float)
            ends = np.array([(e["value"] - e["low"], e["high"] - e["value"]) for _, e in known]).reshape(-1, 2).T
            axes.barh(y, values, height=thick * 0.86, color=colour, alpha=0.85, label=plain_name(name))
            axes.errorbar(values, y, xerr=np.maximum(ends, 0), fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
            for at, (i, e) in zip(y, known, strict=True):
                text = f"{100 * e['value']:.1f} %" if percent else f"{e['value']:.3g}"
                axes.annotate(
                    text, (max(e["high"], e["value"]), at), (5, 0), textcoords="offset points", va="center", fontsize=9
                )
                words.append(f"{categories[i]}, {name}: {text}.")
        axes.set_yticks(range(len(categories)), [plain_name(name, 44) for name in categories])
        axes.tick_params(axis="y", labelcolor=INK, length=0)
        axes.set_ylim(max(1, len(categories)) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.margins(x=0.14)
        axes.set_xlim(left=min(0.0, axes.get_xlim()[0] if axes.dataLim.x0 < 0 else 0.0))
        if percent:
            use_percent(axes.xaxis)
        if len(series) > 1:
            add_legend(figure, axes, len(series))
        return inline_svg(figure, f"{title}. {' '.join(words)}")


def plane(ours: Sequence[Point], published: Sequence[Point], title: str) -> str:
    """Helpfulness (1 − ORR) against harmlessness (1 − ASR); thin curves of equal F1; the better, the further up right.

    A system has one number in both sets: filled for ours, with intervals, and hollow for published ones.
    """
    with matplotlib.rc_context(STYLE):
        names = list(dict.fromkeys(point.name for point in (*published, *ours)))
        figure, axes = new_axes(title, "helpful: benign requests not refused (1 − ORR)", "", 6.4, 4.4)
        axes.set_ylabel("harmless: attacks not answered (1 − ASR)")
        for point in published:
            _dot(axes, point, names.index(point.name), filled=False)
        for point in ours:
            _dot(axes, point, names.index(point.name), filled=True)
        lows = [low for point in (*ours, *published) for low in _lows(point)]
        floor = max(0.0, math.floor(10 * min(lows, default=0.5) - 0.25) / 10)
        axes.set(xlim=(floor, 1.012), ylim=(floor, 1.012))
        x = np.linspace(max(floor, 0.01), 1.0, 200)
        for level in (0.6, 0.7, 0.8, 0.9, 0.95):
            y = np.divide(level * x, 2 * x - level, out=np.full_like(x, np.nan), where=2 * x > level)
            y[(y > 1) | (y < floor)] = np.nan
            if np.isfinite(y).any():
                axes.plot(x, y, color=GRID, linewidth=1.1, linestyle=(0, (4, 2)))
                reaches = bool(np.isfinite(y[-1]))  # the right edge, where no point is in a label's way
                end = -1 if reaches else int(np.flatnonzero(np.isfinite(y))[0])
                axes.annotate(
                    f"F1 {100 * level:.0f}",
                    (x[end], y[end]),
                    (6, 0) if reaches else (2, -2),
                    fontsize=8,
                    color=MUTED,
                    textcoords="offset points",
                    va="center" if reaches else "top",
                    annotation_clip=False,
                )
        axes.grid(visible=False)
        use_percent(axes.xaxis)
        use_percent(axes.yaxis)
        both = {point.name for point in ours}, {point.name for point in published}
        for index, name in enumerate(names):
            axes.text(
                1.13,
                0.97 - 0.075 * index,
                f"{index + 1}  {plain_name(name)}",
                transform=axes.transAxes,
                fontsize=9,
                color=INK if name in both[0] else MUTED,
            )
        at = 0.97 - 0.075 * (len(names) + 0.6)
        axes.text(1.13, at, "● ours, with 95 % intervals", transform=axes.transAxes, fontsize=9, color=INK)
        if published:
            axes.text(1.13, at - 0.075, "○ published (8B model)", transform=axes.transAxes, fontsize=9, color=MUTED)
        words = [
            f"{group}, {point.name}: helpful {100 * point.helpful:.1f} %, harmless {100 * point.harmless:.1f} %."
            for group, points in (("Ours", ours), ("Published", published))
            for point in points
        ]
        return inline_svg(figure, f"{title}. {' '.join(words)}")


def cloud(series: Mapping[str, tuple[Estimate, Estimate]], title: str, x_label: str, y_label: str) -> str:
    """One point per name at (x, y), with both intervals; a name's number stands beside its point and in the key."""
    with matplotlib.rc_context(STYLE):
        known = {name: pair for name, pair in series.items() if all(e["value"] is not None for e in pair)}
        figure, axes = new_axes(title, x_label, y_label, 6.4, 4.2)
        words = []
        for index, (name, (x, y)) in enumerate(known.items()):
            colour = COLOURS[index % len(COLOURS)]
            ends = [np.maximum([[e["value"] - e["low"]], [e["high"] - e["value"]]], 0) for e in (x, y)]
            axes.errorbar(
                x["value"],
                y["value"],
                *reversed(ends),
                fmt=MARKERS[index % len(MARKERS)],
                color=colour,
                elinewidth=1.2,
                markersize=6.5,
                label=f"{index + 1}  {plain_name(name, 44)}",
            )
            axes.annotate(str(index + 1), (x["value"], y["value"]), (6, 5), textcoords="offset points", fontsize=9)
            words.append(f"{name}: {x['value']:.3g}, {y['value']:.3g}.")
        axes.margins(0.12)
        if known:
            handles, labels = axes.get_legend_handles_labels()
            columns = 2 if max(map(len, labels)) <= 36 else 1
            below = -(-len(labels) // columns) - 4  # rows of the key that would take their height from the axes
            figure.set_figheight(figure.get_figheight() + 0.22 * max(0, below))
            figure.legend([handle[0] for handle in handles], labels, loc="outside lower center", ncols=columns)
        return inline_svg(figure, f"{title}. {' '.join(words)}")


def trails(series: Sequence[Line], title: str, x_label: str, y_label: str) -> str:
    """A path per line through its shares (x, y), 0–100 % on both axes; its points are numbered from 0."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_axes(title, x_label, y_label, 6.4, 4.0)
        words = []
        for index, line in enumerate(series):
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            axes.plot(
                line.x,
                line.y,
                color=colour,
                marker=marker,
                linewidth=1.6,
                markersize=5,
                label=plain_name(line.name, 40),
            )
            for number, at in enumerate(zip(line.x, line.y, strict=True)):
                axes.annotate(str(number), at, (4, 5), textcoords="offset points", fontsize=9, color=colour)
            ends = ", ".join(f"({100 * x:.1f}, {100 * y:.1f})" for x, y in zip(line.x, line.y, strict=True))
            words.append(f"{line.name}: {ends} %.")
        axes.margins(0.12)
        use_percent(axes.xaxis)
        use_percent(axes.yaxis)
        add_legend(figure, axes, len(series))
        return inline_svg(figure, f"{title}. {' '.join(words)}")


def heat(
    panels: Mapping[str, Sequence[Sequence[float]]], rows: Sequence[str], columns: Sequence[str], title: str
) -> str:
    """Maps of rows × columns beside each other, dark where a value is high, each with its number; NaN is left empty."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(1.2 + 2.0 * len(panels), 1.1 + 0.5 * len(rows)), layout="constrained")
        figure.patch.set_alpha(0)
        figure.suptitle(plain_name(title, 90), fontsize=11.5, fontweight="bold", x=0.01, ha="left")
        words = []
        maps = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        known = [v for panel in panels.values() for row in panel for v in row if math.isfinite(v)]
        low, high = min(known, default=0.0), max(known, default=1.0)
        for axes, (name, panel) in zip(maps, panels.items(), strict=True):
            # A mesh of paths, since a picture inside inline SVG would be a link. The lowest value is pale, not white.
            ends = [np.arange(len(names) + 1) - 0.5 for names in (columns, rows)]
            pale = low - 0.3 * (high - low or 1.0)
            axes.pcolormesh(*ends, np.ma.masked_invalid(panel), cmap="Blues", vmin=pale, vmax=high, edgecolors=GROUND)
            axes.set_ylim(len(rows) - 0.5, -0.5)
            axes.set_title(plain_name(name), fontsize=9.5, loc="center", fontweight="normal")
            axes.set_xticks(range(len(columns)), columns)
            axes.set_yticks(range(len(rows)), rows)
            axes.tick_params(length=0, labelcolor=INK)
            axes.grid(visible=False)
            axes.spines[:].set_visible(False)
            for i, j in np.ndindex(len(rows), len(columns)):
                if math.isfinite(value := panel[i][j]):
                    light = high > low and (value - low) / (high - low) > 0.55
                    axes.text(
                        j,
                        i,
                        f"{value:.3g}",
                        ha="center",
                        va="center",
                        fontsize=9,
                        color="#ffffff" if light else "#000000",
                    )
                    words.append(f"{name}, {rows[i]}, {columns[j]}: {value:.3g}.")
        return inline_svg(figure, f"{title}. {' '.join(words)}")


def _dot(axes: Any, point: Point, index: int, filled: bool) -> None:
    colour = COLOURS[index % len(COLOURS)]
    for interval, horizontal in ((point.helpful_interval, True), (point.harmless_interval, False)):
        if interval is not None:
            fixed = point.harmless if horizontal else point.helpful
            ends = (interval, (fixed, fixed)) if horizontal else ((fixed, fixed), interval)
            axes.plot(*ends, color=colour, linewidth=1.6, solid_capstyle="round", zorder=3)
    face = colour if filled else GROUND
    axes.plot(
        point.helpful,
        point.harmless,
        "o",
        markersize=12.5,
        markerfacecolor=face,
        markeredgecolor=colour,
        markeredgewidth=1.4,
        zorder=5 if filled else 4,
        clip_on=False,
    )
    axes.text(
        point.helpful,
        point.harmless,
        str(index + 1),
        color="#ffffff" if filled else colour,
        fontsize=8.5,
        fontweight="bold",
        ha="center",
        va="center_baseline",
        zorder=6 if filled else 4,
    )


def _lows(point: Point) -> tuple[float, float]:
    intervals = (point.helpful, point.helpful_interval), (point.harmless, point.harmless_interval)
    across, up = (value if interval is None else interval[0] for value, interval in intervals)
    return across, up


def _smooth(y: np.ndarray) -> np.ndarray:
    """Centred moving mean over about a tenth of the points; shorter at the ends, blind to gaps."""
    half = max(1, len(y) // 20)
    means = np.full_like(y, np.nan)
    for i in range(len(y)):
        window = y[max(0, i - half) : i + half + 1]
        if np.isfinite(window).any():
            means[i] = np.nanmean(window)
    return means


def _in_words(line: Line, percent: bool) -> str:
    finite = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    if not finite:
        return f"{line.name}: no values."
    (x0, y0), (x1, y1) = finite[0], finite[-1]
    unit, scale = (" %", 100.0) if percent else ("", 1.0)
    return f"{line.name}: {scale * y0:.3g}{unit} at {x0:g}, {scale * y1:.3g}{unit} at {x1:g}."
