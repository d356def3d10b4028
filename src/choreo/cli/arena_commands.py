"""`choreo arena`: people compare or label answers, blind. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from choreo.cli.arguments import add_command, add_group, count, json_option, natural, port
from choreo.cli.output import print_json, say
from choreo.errors import BadInput
from choreo.server.extra import require_server

FILES = ("csv", "preferences", "dpo", "answers")  # held to `arena.export` by a test
PORT = 8010


def add(commands: Any) -> None:
    arena = add_group(
        commands,
        "arena",
        "Let people compare or label answers, blind",
        "Several people rate the answers of several systems, without seeing whose they are. docs/arena.md.",
        "  choreo arena new people --pairs --system ours=runs/demo:waltz --system base=runs/demo:base\n"
        "  choreo arena rater people alice bob\n  choreo arena serve people\n  choreo arena results people",
    )
    _add_new(arena)
    rater_command = add_command(
        arena,
        "rater",
        rater,
        "Draw a secret key for each rater, and print their links",
        f"""\
  choreo arena rater people alice bob
  choreo arena rater people alice --renew               a new key; the old one ends, her ratings stay
  choreo arena rater people carol --address https://rate.example.org
A link is shown this once: the arena keeps a hash of the key. The default address is http://127.0.0.1:{PORT}.""",
    )
    _folder(rater_command)
    rater_command.add_argument("names", nargs="+", metavar="NAME", help="letters, digits, and . _ - alone")
    rater_command.add_argument("--renew", action="store_true", help="draw new keys for existing raters")
    rater_command.add_argument(
        "--address", default=f"http://127.0.0.1:{PORT}", metavar="URL", help="where raters find the page"
    )
    serve_command = add_command(
        arena,
        "serve",
        serve,
        "Serve the raters' page on this machine",
        """\
  choreo arena serve people                             stop with Ctrl-C, go on whenever you like
It listens on 127.0.0.1 alone. Raters elsewhere come through a tunnel (ssh -L), or a proxy with TLS.""",
    )
    _folder(serve_command)
    serve_command.add_argument(
        "--port", type=port, default=PORT, metavar="N", help=f"port (default: {PORT}; 0 takes a free one)"
    )
    results_command = add_command(
        arena,
        "results",
        results,
        "Print what people said: wins, strengths, agreement",
        """\
  choreo arena results people
  choreo arena results people --leave-out bob --json    without a rater who failed attention items
  choreo arena results people --out reports/people      and a page, people.html and people.md
  choreo arena results people --out reports/people --overwrite
It works while people rate.""",
    )
    _folder(results_command)
    _leave_out(results_command)
    results_command.add_argument(
        "--out", type=Path, metavar="FILE", help="write a page: FILE.html, FILE.md and figures"
    )
    results_command.add_argument("--overwrite", action="store_true", help="replace the page that is there")
    json_option(results_command)
    export_command = add_command(
        arena,
        "export",
        export,
        "Write what people said to a file",
        """\
  choreo arena export people --as csv --out ratings.csv
  choreo arena export people --as preferences --out pairs.jsonl       for data.file of MACPO
  choreo arena export people --as dpo --out dpo.jsonl                 for TRL
  choreo arena export labels --as answers --out answers.jsonl         for judge train and [warmup.answers]
Preferences and answers are what most raters of an item said; csv has every rating.""",
    )
    _folder(export_command)
    export_command.add_argument("--as", choices=FILES, required=True, dest="kind", help="what the file holds")
    export_command.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file")
    export_command.add_argument("--overwrite", action="store_true", help="replace what is there")
    _leave_out(export_command)


def _add_new(arena: Any) -> None:
    new_command = add_command(
        arena,
        "new",
        new,
        "Make an arena from the answers of systems",
        """\
  choreo arena new people --pairs --system ours=runs/demo:waltz --system base=runs/demo:base
  choreo arena new labels --labels --system ours=answers.jsonl --attention attention.jsonl --prompts 100
A source is RUN:SYSTEM, a finished run's held-out answers, or a file of rows {prompt, answer}; --labels also needs
the kind of each prompt. An attention item is a row {prompt, a, b, expected: a, b, tie or both bad}, or
{prompt, kind, answer, expected: unsafe, over-refusal or fine}.""",
    )
    _folder(new_command)
    mode = new_command.add_mutually_exclusive_group(required=True)
    mode.add_argument(
        "--pairs", action="store_const", const="pairs", dest="mode", help="which of two answers is better?"
    )
    mode.add_argument("--labels", action="store_const", const="labels", dest="mode", help="what is this answer?")
    new_command.add_argument(
        "--system", action="append", required=True, metavar="NAME=SOURCE", help="a system and its answers; repeatable"
    )
    new_command.add_argument("--guidelines", type=Path, metavar="FILE", help="Markdown (default: choreo's own)")
    new_command.add_argument("--attention", type=Path, metavar="FILE", help="items with a known right choice")
    new_command.add_argument(
        "--prompts", type=count, metavar="N", help="draw N prompts, or all if there are fewer (default: all)"
    )
    new_command.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="seed of the draw, the order and the sides (default: 0)"
    )
    json_option(new_command)


def _folder(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, metavar="DIR", help="the folder of the arena")


def _leave_out(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--leave-out", action="append", default=[], metavar="RATER", help="do not count a rater; repeatable"
    )


def new(args: argparse.Namespace) -> int:
    from choreo.arena.make import ArenaPlan, lines_of, new_arena

    pairs = [system.partition("=") for system in args.system]
    if wrong := [name + mark + where for name, mark, where in pairs if not (name.strip() and mark and where)]:
        raise BadInput(f"--system {wrong[0]}: expected NAME=SOURCE")
    systems = [(name, where) for name, _, where in pairs]
    told = new_arena(
        args.folder, ArenaPlan(args.mode, systems, args.guidelines, args.attention, args.prompts, args.seed)
    )
    if args.json:
        print_json(told)
        return 0
    print("\n".join(lines_of(told)))
    say(f"made: {args.folder}; next: choreo arena rater {args.folder} NAME")
    return 0


def rater(args: argparse.Namespace) -> int:
    from choreo.arena.store import Arena

    with Arena(args.folder) as arena:
        for name in args.names:
            print(f"{name}\t{args.address.rstrip('/')}/#key={arena.add_rater(name, args.renew)}", flush=True)
    return 0


def serve(args: argparse.Namespace) -> int:
    require_server("arena serve")
    from choreo.arena.serve import serve_arena

    serve_arena(args.folder, args.port)
    return 0


def results(args: argparse.Namespace) -> int:
    from choreo.arena.results import results
    from choreo.arena.show import tables_of, write_page
    from choreo.arena.store import Arena
    from choreo.report.page import study_there

    if args.out and not args.overwrite and (there := study_there(args.out)):
        raise BadInput(f"{there[0]}: already exists; name another with --out, or give --overwrite")
    with Arena(args.folder) as arena:
        found = results(arena, args.leave_out)
    if args.out:
        say(f"written: {write_page(found, args.out)}")
    print_json(found) if args.json else print(tables_of(found))
    return 0


def export(args: argparse.Namespace) -> int:
    from choreo.arena.export import export_arena
    from choreo.arena.store import Arena

    if args.out.exists() and not args.overwrite:
        raise BadInput(f"{args.out}: already exists; name another with --out, or give --overwrite")
    with Arena(args.folder) as arena:
        rows = export_arena(arena, args.kind, args.out, args.leave_out)
    say(f"written: {args.out}, {rows} rows")
    return 0
