"""What commands print: results to standard output, the rest to the error stream."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from choreo import parallel
from choreo.text.tables import plain_columns


def say(text: str, level: str = "info") -> None:
    """One line on the error stream, or an object (`choreo.runs.json_lines`) where the environment asks for that."""
    if not parallel.speaks():
        return
    if os.environ.get("CHOREO_LOG_FORMAT") == "json":
        from choreo.runs.json_lines import line

        text = line(level, "message", message=text)
    print(text, file=sys.stderr)


def show_file(text: str) -> None:
    """What is to become a file, on standard output: in UTF-8, whatever a terminal takes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text, end="")


def print_json(found: Any) -> None:
    """One JSON object on one line. Numbers that are not finite become null, since NaN is not JSON."""
    from choreo.files.durable import finite

    print(json.dumps(finite(found), allow_nan=False))


def print_result(summary: Mapping[str, Any], as_json: bool) -> int:
    """A summary as JSON, or its systems as a table with a line on what the rates are not over."""
    if as_json:
        print_json(summary)
    else:
        print(_table(summary.get("systems", {})))
        for field, words in (("turns", "by turns of the user"), ("system_messages", "by system message")):
            if groups := _grouped(summary.get("systems", {}), field):
                print(f"{words}:\n{_table(groups)}")
        if judges := summary.get("judges"):
            from choreo.evaluation.metrics import BY_TRAINING
            from choreo.judges.resolve import names

            systems = {name: found[BY_TRAINING] for name, found in summary["systems"].items() if BY_TRAINING in found}
            called = names(judges)
            print(
                f"by the gold judge, {called['gold']}. By the training judge, {called['training']}:\n{_table(systems)}"
            )
        if lost := _lost(summary):
            print(lost)
    return 0


def _table(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """The systems of a summary as plain columns, rates with their intervals; no column that none of them has.
    Where a judge was asked and decided nothing the cell says "open"."""
    from choreo.report.page import percent

    shown = {
        "reward": "reward",
        "asr": "ASR",
        "orr": "ORR",
        "f1": "F1",
        "ftr": "FTR general",
        "label_accuracy": "label accuracy",
        "general": "general ability",
    }
    found = {
        name: {key: system.get("ftr", {}).get("general") if key == "ftr" else system.get(key) for key in shown}
        for name, system in systems.items()
    }
    measured = {
        key
        for rates in found.values()
        for key, rate in rates.items()
        if rate and (rate["value"] is not None or rate.get("undetermined"))
    }

    def cell(rate: dict[str, Any] | None) -> str:
        return "open" if rate and rate["value"] is None and rate.get("undetermined") else percent(rate)

    if not {"asr", "orr"} <= measured:  # prompts of one kind alone have no F1, open or not
        measured.discard("f1")
    keys = [key for key in shown if key in measured]
    rows: list[tuple[str, ...]] = [("system", *(shown[key] for key in keys))]
    rows += [(name, *(cell(rates[key]) for key in keys)) for name, rates in found.items()]
    return plain_columns(rows)


def _grouped(systems: Mapping[str, Mapping[str, Any]], field: str) -> dict[str, Mapping[str, Any]]:
    """What was measured of each system on prompts of each group that `field` has; empty where there are none."""
    return {f"{name}, {group}": found for name, one in systems.items() for group, found in one.get(field, {}).items()}


def _lost(result: Mapping[str, Any]) -> str:
    """In one line what the rates are not over: turns that failed and why, verdicts left open, reviews that did not
    parse; and how many turns hold what is no text. A review that had no answer to read is no failure of its own."""
    from choreo.report.page import percent

    found = [
        f"{count} {turns if count > 1 else turns[:-1]} failed: {', '.join(why) if len(why) == 1 else _most(why)}"
        for turns, why in result.get("failures", {}).items()
        if (count := sum(why.values()))
    ]
    found += [
        f"{count} {turns if count > 1 else turns[:-1]} with a broken character (U+FFFD)"
        for turns, count in result.get("broken", {}).items()
        if count
    ]
    for name, system in result.get("systems", {}).items():
        told = {"open": system.get("undetermined"), "garbled": system.get("garbled")}
        told |= {"format rate": (strict := system.get("format_rate"))}
        if (lenient := system.get("format_rate_lenient")) != strict:
            told["format rate read leniently"] = lenient
        parts = [
            f"{what} {percent(rate, interval=False)}"
            for what, rate in told.items()
            if rate and rate["value"] is not None and (rate["value"] or what.startswith("format"))
        ]
        found += [f"{name}: {', '.join(parts)}"] if parts else []
    return "; ".join(found)


def _most(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons with their counts."""
    return ", ".join(f"{reason} {count}" for reason, count in [*reasons.items()][:3])
