"""`choreo attack`: a pair under attack, and its conversation agent alone. Imports nothing heavy at the top."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from choreo.cli.arguments import JUDGE_HELP, add_command, check_resume, count, json_option, list_parts, natural, seconds
from choreo.cli.output import print_json
from choreo.errors import BadInput, Interrupted
from choreo.text.tables import plain_columns


def add(commands: Any) -> None:
    command = add_command(
        commands,
        "attack",
        attack,
        "Attack a pair: ASR and ORR against the number of tries",
        """\
  choreo attack runs/demo                                   the usual attacks, 16 tries on every prompt
  choreo attack runs/demo --attack injection --tries 8 --most 50
  choreo attack runs/demo --step 0                          before its training
  choreo attack smollm2 --most 20                           the shipped pair
  choreo attack runs/mine --suite harmbench.csv --judge offline --writer qwen3:8b@http://localhost:11434/v1
  choreo attack demo@http://127.0.0.1:8000/v1 --recipe waltz     as `choreo serve runs/demo` serves it
  choreo attack runs/demo --out attacks/demo --resume       go on after Ctrl-C, a crash or a kill
The pair is compared with its conversation agent alone on the same prompts. docs/attack.md.""",
    )
    command.add_argument(
        "target", metavar="TARGET", help="a run folder of a pair, smollm2, or MODEL@URL of a server of choreo"
    )
    command.add_argument(
        "--attack",
        nargs="+",
        default=[],
        metavar="NAME",
        help="attacks, see below (default: best-of-n, paraphrase and injection); file.py:NAME is your own",
    )
    command.add_argument(
        "--step", type=natural, metavar="N", help="a checkpoint of the run (default: the last; 0: before training)"
    )
    command.add_argument(
        "--tries", type=count, default=16, metavar="N", help="tries on every prompt at most (default: 16)"
    )
    command.add_argument(
        "--most",
        type=count,
        default=100,
        metavar="N",
        help="prompts of each kind at most, drawn by the seed (default: 100)",
    )
    command.add_argument("--suite", nargs="+", default=[], metavar="FILE", help="files of prompts (default: the run's)")
    command.add_argument(
        "--format", nargs="+", default=[], metavar="NAME", help="their format, one for all or one for each"
    )
    command.add_argument("--judge", action="append", default=[], metavar="JUDGE", help=JUDGE_HELP)
    command.add_argument(
        "--recipe",
        default="",
        metavar="RECIPE",
        help="for a server: use the held-out prompts and the judge of this recipe",
    )
    command.add_argument(
        "--writer",
        default="",
        metavar="MODEL",
        help="the model that words attacks: MODEL@URL, a model on this machine, or a run of attacker",
    )
    command.add_argument("--seed", type=natural, default=0, metavar="N", help="seed of all random draws (default: 0)")
    command.add_argument(
        "--key-variable", default="OPENAI_API_KEY", metavar="NAME", help="environment variable with the servers' key"
    )
    command.add_argument(
        "--timeout", type=seconds, default=120.0, help="seconds to wait for an answer of a server (default: 120)"
    )
    command.add_argument("--out", type=Path, metavar="DIR", help="the folder of the attack (default: runs/attack-TIME)")
    command.add_argument("--resume", action="store_true", help="go on in the folder of --out")
    json_option(command)
    list_parts(command, "--attack", "judge.kind")


def attack(args: argparse.Namespace) -> int:
    from choreo import api
    from choreo.runs.bar import ProgressBar

    check_resume(args, "attack")
    if args.resume and not args.out.is_dir():
        raise BadInput(f"{args.out}: no such folder; --resume goes on in one that is there")
    folder = args.out or api.new_folder("attack")
    try:
        summary = api.attack(
            args.target,
            args.attack,
            args.suite,
            args.judge,
            folder,
            [ProgressBar()],
            formats=args.format,
            into_existing=args.resume,
            **{name: getattr(args, name) for name in ("tries", "most", "seed", "recipe", "writer", "step", "timeout")},
            key_variable=args.key_variable,
        )
    except (Interrupted, KeyboardInterrupt) as stop:
        why = f"{stop}; " if str(stop) not in ("", "stopped") else ""
        raise Interrupted(f"{why}go on with the same command and --out {folder} --resume") from None
    if args.json:
        print_json(summary)
    else:
        print(_tables(summary))
    return 0


def _tables(summary: Mapping[str, Any]) -> str:
    """A table of each rate: a row for every attack on every system, a column for every number of tries."""
    from choreo.attacks.report import NAMES, curve_rows
    from choreo.report.page import percent

    tables = []
    for rate, (short, _) in NAMES.items():
        at, rows = curve_rows(summary, rate)
        if rows:
            head = [f"{short} within", *at, "tries left open"]
            body = [[name, *map(percent, points), percent(left, interval=False)] for name, *points, left in rows]
            tables.append(plain_columns([head, *body]))
    return "\n".join(tables)
