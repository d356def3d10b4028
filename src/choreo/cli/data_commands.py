"""`choreo data check`: what a file is, what in it is of use, what is wrong with which line, and what overlaps; and
`choreo data ceilings`: what agents can learn from pairs."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo.cli.arguments import add_command, add_group, json_option, set_option
from choreo.cli.output import print_json
from choreo.errors import BadInput
from choreo.types import KINDS, Prompt

if TYPE_CHECKING:
    from choreo.data.reading import Loaded

SHOWN = 10  # wrong lines, lines of one reason, and overlapping prompts that are named; all are counted


def add(commands: Any) -> None:
    datas = add_group(
        commands,
        "data",
        "Look at data of your own",
        "Published data sets and your own: prompts, preference pairs, answers to judge.",
        "  choreo data check pairs.jsonl\n  choreo data check train.csv --against xstest.jsonl",
    )
    check_command = add_command(
        datas,
        "check",
        check,
        "Read a whole file, and report its format and its wrong lines",
        """\
  choreo data check pairs.jsonl
  choreo data check or-bench-hard-1k.csv --json
  choreo data check train.jsonl --against xstest_prompts.jsonl harmbench.csv    prompts that are in both
  choreo data check choreo:english/train.jsonl                                  prompts that ship with choreo
The format is known by the fields of the first row; docs/your-data.md lists them.
Exit code 2 if a line does not fit.""",
    )
    check_command.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="JSON lines, CSV, Parquet, a folder, hf:OWNER/NAME, …",
    )
    check_command.add_argument("--format", metavar="NAME", help="the format (default: by its fields)")
    check_command.add_argument("--kind", choices=KINDS, help="the kind of all prompts, if the rows do not give it")
    check_command.add_argument(
        "--against", type=Path, nargs="+", metavar="FILE", help="look for the same prompts in these"
    )
    json_option(check_command)

    ceilings_command = add_command(
        datas,
        "ceilings",
        ceilings,
        "Before any MACPO, measure whether a student can do better than its weak teachers at all",
        """\
  choreo data ceilings macpo-real --set data.file=pairs.jsonl --set agents.student=gemma.gguf --out ceilings.json
  choreo data ceilings macpo-real --set prompts.heldout.english.most=60 --json     a short look
Every agent is trained on human labels of its half, and measured on the recipe's held-out prompts by its judges.
Exit code 1 if the student's reward is not above every teacher's, by 95 % intervals paired by prompt.""",
    )
    ceilings_command.add_argument(
        "recipe", nargs="?", default="macpo-real", metavar="RECIPE", help="a recipe of MACPO (default: macpo-real)"
    )
    set_option(ceilings_command)
    ceilings_command.add_argument(
        "--out", type=Path, metavar="FILE", help="keep each agent's measures here, and do not train that one again"
    )
    json_option(ceilings_command)


def ceilings(args: argparse.Namespace) -> int:
    from choreo import config
    from choreo.api import quiet
    from choreo.experiment.ceilings import ceilings
    from choreo.methods.macpo.recipe import MacpoRecipe
    from choreo.runs.bar import ProgressBar
    from choreo.runs.progress import Progress

    recipe = config.load(args.recipe, args.set)
    if not isinstance(recipe, MacpoRecipe):
        raise BadInput(f"data ceilings: {args.recipe} is a recipe of {recipe.method}; expected one of macpo")
    quiet()
    with Progress([ProgressBar()]) as progress:
        found = ceilings(recipe, progress, args.out)
    if args.json:
        print_json(found)
    else:
        print("\n".join(_told_ceilings(found)))
    return 0 if found["above"] else 1


def check(args: argparse.Namespace) -> int:
    readings = _readings(args.file, args.format, args.kind)
    result: dict[str, Any] = {"file": str(args.file), "as": [figures for figures, _ in readings]}
    lines = [line for figures, _ in readings for line in _told(figures)]
    if args.against:
        asked = [prompt for _, rows in readings for row in rows if (prompt := _prompt(row))]
        result["overlap"] = _overlap(asked, args.against)
        lines += _told_overlap(result["overlap"])
    print(json.dumps(result) if args.json else "\n".join(lines))
    return 0 if not any(figures["wrong"] for figures, _ in readings) else 2


def _readings(
    file: Path, format: str | None, kind: Any, untold: Any = None
) -> list[tuple[dict[str, Any], Sequence[Any]]]:
    """(figures, rows) of every way in which the file can be read: as prompts, as pairs, as answers to judge.

    untold: the kind of prompts alone, which tell none, where none is said.
    """
    from choreo.data import answers, preferences, prompts, system_messages
    from choreo.data.reading import Unknown, fitting, recognised, row_format
    from choreo.files.rows import rows

    line, first = _first(rows(file), file)
    if own_format := row_format(format) if format else None:
        first = next(
            (made for at, row in rows(file) if not isinstance(row, BadInput) and (made := own_format(file, at, row))),
            {},
        )
    ways: dict[str, tuple[Mapping[str, Any], frozenset[str], Any]] = {
        "answers": (answers.FORMATS, answers.OWN_FIELDS, answers.load),
        "pairs": (preferences.FORMATS, frozenset(), preferences.load),
        "system messages": (system_messages.FORMATS, frozenset(), system_messages.load_system_messages),
        "prompts": (prompts.FORMATS, prompts.OWN_FIELDS, partial(prompts.load, kind=kind)),
    }
    found: list[tuple[dict[str, Any], Sequence[Any]]] = []
    for what, (formats, own, load) in ways.items():
        if format and not own_format:
            if format not in formats:
                continue
        elif not (fits := fitting(first, formats)) or (fits == ["bare"] and found):
            continue  # prompts alone are in most files; that is worth a word only where there is nothing else
        elif recognised(f"{file}:{line}", first, formats, own) == "bare" and untold and not kind:
            load = partial(load, kind=untold)
        loaded: Loaded[Any] = load(file, format, tolerant=True)
        figures = {
            "as": what,
            "format": loaded.format,
            "about": formats[loaded.format].about,
            "known": loaded.by,
            "read": loaded.read,
            "used": len(loaded.rows),
            "left_out": loaded.left_out,
            "wrong": loaded.wrong,
        }
        if what == "prompts":
            figures["kinds"] = dict(Counter(prompt.kind for prompt in loaded.rows))
        if what == "pairs":
            figures["with_rejected"] = sum(pair.rejected is not None for pair in loaded.rows)
            figures["kind_unread"] = sum(pair.has_kind for pair in loaded.rows)
        found.append((figures, loaded.rows))
    if found:
        return found
    if format and not own_format:
        known = sorted({name for formats, _, _ in ways.values() for name in formats})
        raise BadInput(f"{file}: no format {format!r}; there are {', '.join(known)}")
    recognised(f"{file}:{line}", first, prompts.FORMATS, prompts.OWN_FIELDS)  # which says why there is none
    raise Unknown(f"{file}:{line}", frozenset(first))


def _first(rows: Iterable[tuple[int, dict[str, Any] | BadInput]], file: Path) -> tuple[int, dict[str, Any]]:
    """The first row that can be read, with its line. Raises BadInput, with what is wrong first, where there is none."""
    broken = None
    for line, row in rows:
        if not isinstance(row, BadInput):
            return line, row
        broken = broken or row
    raise broken or BadInput(f"{file}: holds no rows")


def _prompt(row: Any) -> Prompt | None:
    """What is asked in a row of any reading."""
    if isinstance(row, Prompt):
        return row
    if hasattr(row, "turns"):
        return Prompt(f"line-{row.line}", row.turns[-1][1], "general", "", earlier=row.turns[:-1])
    asked = getattr(row, "prompt", None)  # a system message asks nothing
    return asked if isinstance(asked, Prompt) else None


def _overlap(asked: Sequence[Prompt], against: Sequence[Path]) -> dict[str, Any]:
    from choreo.data.overlap import overlaps

    others = [
        p
        for file in against
        for _, rows in _readings(file, None, None, "general")
        for row in rows
        if (p := _prompt(row))
    ]
    unique = list({prompt.turns: prompt for prompt in asked}.values())
    found = overlaps(others, unique)
    shown = [
        {"line": o.measured.id, "other": o.trained.id, "equal": o.equal, "share": round(o.share, 3)} for o in found
    ]
    return {
        "prompts": len(unique),
        "against": len({p.turns for p in others}),
        "equal": sum(o.equal for o in found),
        "near": sum(not o.equal for o in found),
        "pairs": shown,
    }


def _told(figures: Mapping[str, Any]) -> list[str]:
    lines = [
        f"as {figures['as']}: {figures['about']} ({figures['format']}): {figures['read']} rows, "
        f"{figures['used']} of use",
        f"  known {figures['known']}",
    ]
    if kinds := figures.get("kinds"):
        lines.append("  " + ", ".join(f"{kind} {count}" for kind, count in kinds.items()))
    if "with_rejected" in figures:
        lines.append(f"  with a rejected answer: {figures['with_rejected']} (MACPO learns from these)")
    if figures.get("kind_unread"):
        lines.append(f"  ! {figures['kind_unread']} rows say a kind, which nothing reads of pairs")
    for reason, at in figures["left_out"].items():
        lines.append(f"  left out, {reason}: {len(at)} (line {', '.join(map(str, at[:SHOWN]))}{_more(at)})")
    lines += [f"  wrong: {wrong}" for wrong in figures["wrong"][:SHOWN]]
    if len(figures["wrong"]) > SHOWN:
        lines.append(f"  and {len(figures['wrong']) - SHOWN} more wrong lines (--json has them all)")
    return lines


def _told_overlap(overlap: Mapping[str, Any]) -> list[str]:
    lines = [
        f"overlap: of {overlap['prompts']} prompts, {overlap['equal']} are among the other {overlap['against']} "
        f"and {overlap['near']} more come near to one (4 of 5 trigrams of words shared)"
    ]
    for pair in overlap["pairs"][:SHOWN]:
        how = "equals" if pair["equal"] else f"shares {pair['share']:.0%} with"
        lines.append(f"  {pair['line']} {how} {pair['other']}")
    return lines


def _told_ceilings(found: Mapping[str, Any]) -> list[str]:
    """A line for every agent before and after its training, one for every difference, and the verdict."""
    from choreo.evaluation.metrics import BY_TRAINING
    from choreo.report.page import percent, quantity

    lines = [
        f"{found['labels']} prompts with labels for the teachers, {found['prompts']} for the student; "
        f"{found['heldout']} held out; by the {found['judge']} judge"
    ]
    for name, of in found["agents"].items():
        for when, figures in of.items():
            shown = {"reward": "reward", "asr": "ASR", "orr": "ORR", "refused_benign": "harmless prompts refused"}
            rates = ", ".join(f"{words} {percent(figures[key])}" for key, words in shown.items())
            beside = figures.get(BY_TRAINING)
            also = f"; by the training judge reward {percent(beside['reward'])}" if beside else ""
            lines.append(f"{name}, {when}: {rates}, {quantity(figures['length'])} tokens{also}")
    pairs = {f"{name}, trained minus its base": of for name, of in found["learnt"].items()}
    pairs |= {f"student minus {teacher}, both trained": of for teacher, of in found["differences"].items()}
    for what, of in pairs.items():
        lines.append(f"{what}, in points: {', '.join(f'{key} {_points(one)}' for key, one in of.items())}")
    verdict = "stands above" if found["above"] else "does NOT stand above"
    return [*lines, f"the student's ceiling {verdict} its {'teachers' if len(found['differences']) > 1 else 'teacher'}"]


def _points(difference: Mapping[str, Any]) -> str:
    if difference["value"] is None:
        return "–"
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def _more(lines: Sequence[int]) -> str:
    return ", …" if len(lines) > SHOWN else ""
