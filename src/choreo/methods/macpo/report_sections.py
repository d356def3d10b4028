"""The sections of a MACPO run's report: what each round did to every agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.evaluation.intervals import Estimate
from choreo.report import plots
from choreo.report.page import PageSection, Table, percent, quantity

STUDENT = "student+"
Round = Mapping[str, Any]  # an entry of rounds.json
Line = Mapping[str, Any]  # of metrics.jsonl


def sections(rounds: Sequence[Round], metrics: Sequence[Line], summary: Mapping[str, Any]) -> list[PageSection]:
    """What a run has so far; nothing before its first round is measured."""
    if not rounds:
        return []
    found = [_reward(rounds, summary), _refusals(rounds), _words(rounds)]
    return [*found, *_filter(metrics), *_kept(metrics), *_pairs(metrics), _training(metrics)]


def warnings_of(rounds: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every round's warnings, with its number."""
    return [f"round {r['round']}: {warning}" for r in rounds for warning in r["warnings"]]


def _reward(rounds: Sequence[Round], summary: Mapping[str, Any]) -> PageSection:
    names = _positive(rounds)
    rows = [[name, *(_of(r, name, "reward") for r in rounds)] for name in names]
    columns = ("reward (satisfactory answers)", *(_when(r) for r in rounds))
    lines = [_moved(rounds, name, "reward", "reward") for name in names]
    if summary.get("pgr") is not None:
        ceiling = summary["systems"]["ceiling"]["reward"]
        rows.append(["strong ceiling", *([None] * (len(rounds) - 1)), ceiling])
        lines.append(
            f"Of the gap between the first teacher at the start and the strong ceiling, {percent(ceiling)}, "
            f"the student recovers {summary['pgr']:.2f} (PGR)."
        )
    negative = [name for name in rounds[0]["agents"] if name.endswith("-")]
    if negative:
        rewards = ", ".join(f"{name} {percent(rounds[0]['agents'][name]['reward'], False)}" for name in negative)
        lines.append(f"Negative agents at the start: {rewards}.")
    figure = plots.lines(_lines(rounds, names, "reward"), "Reward by round", "round", percent=True)
    return PageSection("Does everyone improve?", " ".join(lines), Table(columns, rows), figure)


def _refusals(rounds: Sequence[Round]) -> PageSection:
    """The paper's evaluation looks at harm alone, where a policy that refuses everything is the best."""
    names = _positive(rounds)
    fields = ("asr", "orr", "refused_benign", "refusal_rate")
    rows = [
        [name, _when(r), *(_of(r, name, field) for field in ("reward", "graded", *fields))]
        for name in names
        for r in rounds
        if name in r["agents"]
    ]
    columns = ("agent", "after", "reward", "graded", "ASR", "ORR", "harmless prompts refused", "all prompts refused")
    lines = [_moved(rounds, name, "refused_benign", "refusals of harmless prompts") for name in names]
    series = _lines(rounds, names, "refused_benign")
    figure = plots.lines(series, "Harmless prompts refused, by round", "round", percent=True)
    return PageSection("What does it cost in refusals?", " ".join(lines), Table(columns, rows), figure)


def _words(rounds: Sequence[Round]) -> PageSection:
    rows = [
        [name, _when(r), quantity(a["length"]), _number(a["distinct_2"]), _number(a["perplexity"]), a["degenerate"]]
        for name in (*_positive(rounds), *(n for n in rounds[0]["agents"] if n.endswith("-")))
        for r in rounds
        if (a := r["agents"].get(name))
    ]
    columns = ("agent", "after", "tokens an answer", "distinct bigrams", "perplexity (student's)", "degenerate")
    first, last = (r["agents"][STUDENT] for r in (rounds[0], rounds[-1]))
    verdict = (
        f"The student's answers go from {quantity(first['length'])} to {quantity(last['length'])} tokens, and from "
        f"{_number(first['distinct_2'])} to {_number(last['distinct_2'])} distinct bigrams of words among all."
    )
    return PageSection("Do the words stay alive?", verdict, Table(columns, rows))


def _filter(metrics: Sequence[Line]) -> list[PageSection]:
    picked = [line for line in metrics if "taken/refusals" in line]
    if not picked:
        return []
    teachers = sorted(name for name in picked[0] if name.startswith("taken/teacher-"))
    rows = [
        [
            f"round {line['round']}",
            *(_share(line[f"{side}/refusals"]) for side in ("offered", "taken")),
            *(f"{line[f'{side}/length']:.1f}" for side in ("offered", "taken")),
            *(f"{line[f'{side}/perplexity']:.2f}" for side in ("offered", "taken")),
            *(_share(line[name]) for name in teachers),
        ]
        for line in picked
    ]
    columns = (
        "",
        "refusals offered",
        "taken",
        "tokens offered",
        "taken",
        "perplexity offered",
        "taken",
        *(f"from {name.removeprefix('taken/')}" for name in teachers),
    )
    more = [line["taken/refusals"] - line["offered/refusals"] for line in picked]
    shorter = [line["taken/length"] - line["offered/length"] for line in picked]
    verdict = (
        f"Beside what the teachers offer, what the filter takes has {_signed(more, 100)} points of refusals and "
        f"{_signed(shorter)} tokens of length, round by round."
    )
    x = [float(line["round"]) for line in picked]
    series = [
        plots.Line(
            f"{side} by the teachers" if side == "offered" else "taken by the filter",
            x,
            [line[f"{side}/refusals"] for line in picked],
        )
        for side in ("offered", "taken")
    ]
    figure = plots.lines(series, "Refusals among the teachers' answers", "round", percent=True)
    return [PageSection("What does the filter pick?", verdict, Table(columns, rows), figure)]


def _kept(metrics: Sequence[Line]) -> list[PageSection]:
    lines = [line for line in metrics if "learnt/left" in line]
    if not lines:
        return []
    rows = [
        [
            line["agent"],
            f"round {line['round']}",
            _share(line["learnt/refusals-before"]),
            _share(line["learnt/refusals"]),
            _share(1 - line["learnt/left"]),
        ]
        for line in lines
    ]
    columns = ("agent", "", "positives that refuse", "of those learnt from", "positives left out")
    verdict = (
        "Positives are to refuse as often as the chosen labels do; of the kind in excess the most doubtful are left "
        f"out, half of it at most. Left out of the student's, round by round: "
        f"{', '.join(row[-1] or '' for row in rows if row[0] == STUDENT)}."
    )
    return [PageSection("What is left out of it?", verdict, Table(columns, rows))]


def _pairs(metrics: Sequence[Line]) -> list[PageSection]:
    lines = [line for line in metrics if "pairs/overlap" in line]
    if not lines:
        return []
    rows = [
        [
            line["agent"],
            f"round {line['round']}",
            _share(line["pairs/equal"]),
            _share(line["pairs/overlap"]),
            _share(line.get("accuracy")),
            _number(line.get("margin")),
        ]
        for line in lines
    ]
    columns = ("agent", "", "positive equals negative", "tokens in common", "pairs told apart", "margin, nats")
    verdict = (
        "A pair teaches by what its two sides do not share. Told apart and margin are those of the round's last update."
    )
    return [PageSection("How alike are positives and negatives?", verdict, Table(columns, rows))]


def _training(metrics: Sequence[Line]) -> PageSection:
    agents = list(dict.fromkeys(line["agent"] for line in metrics if "loss" in line))
    series = []
    for agent in agents:
        own = [line for line in metrics if line["agent"] == agent and isinstance(line.get("loss"), float)]
        series.append(plots.Line(agent, [line["step"] for line in own], [line["loss"] for line in own]))
    figure = plots.lines(series, "Loss", "update", "nats")
    seconds = sum(line["seconds"] for line in metrics)
    verdict = f"{metrics[-1]['step']} updates in {seconds / 60:.1f} minutes, the writing of answers included."
    return PageSection("Training", verdict, None, figure)


def _positive(rounds: Sequence[Round]) -> list[str]:
    return [name for name in rounds[0]["agents"] if name.endswith("+")]


def _of(line: Round, name: str, field: str) -> Estimate | None:
    return line["agents"].get(name, {}).get(field)


def _when(line: Round) -> str:
    return "start" if line["round"] == 0 else f"round {line['round']}"


def _moved(rounds: Sequence[Round], name: str, field: str, words: str) -> str:
    before, after = (_of(r, name, field) for r in (rounds[0], rounds[-1]))
    if before is None or after is None or len(rounds) == 1:
        return f"{name}: {words} {percent(after)}."
    return f"{name}: {words} {percent(before, False)} to {percent(after, False)}."


def _lines(rounds: Sequence[Round], names: Sequence[str], field: str) -> list[plots.Line]:
    series = []
    for name in names:
        known = [(r["round"], e) for r in rounds if (e := _of(r, name, field)) and e["value"] is not None]
        x, found = [float(number) for number, _ in known], [e for _, e in known]
        series.append(plots.Line(name, x, *([e[end] for e in found] for end in ("value", "low", "high"))))
    return series


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"


def _signed(changes: Sequence[float], scale: float = 1.0) -> str:
    return ", ".join(f"{scale * change:+.1f}" for change in changes)
