"""`choreo eval`: a run, or two models as they are, on any prompts, by any judge. Imports nothing heavy at the top."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from choreo.cli.arguments import JUDGE_HELP, add_command, check_resume, json_option, list_parts
from choreo.cli.output import print_result
from choreo.errors import BadInput, Interrupted


def add(commands: Any) -> None:
    evaluate_command = add_command(
        commands,
        "eval",
        evaluate,
        "Measure a run, or two models as they are, on any prompts",
        """\
  choreo eval runs/demo                                       measure a run again, from its last checkpoint
  choreo eval runs/demo --suite train --json
  choreo eval runs/mine --suite xstest.csv harmbench.jsonl --judge offline
  choreo eval --conversation qwen3:8b@http://localhost:11434/v1 --suite xstest.jsonl --judge offline
  choreo eval --conversation A@URL --feedback B@URL --suite mine.jsonl --judge rubric:JUDGE@URL --judge offline
  choreo eval pair.toml --set rounds=2                        the same, from a file
  choreo eval runs/mine --suite choreo:english/heldout.jsonl --judge offline     prompts that ship with choreo
Two untrained models play the protocol: one answers, the other reviews. docs/evaluation.md explains it.
It prints ASR, ORR, FTR and what the judge left open, with 95 % intervals, and writes report.html and summary.json.""",
    )
    evaluate_command.add_argument(
        "what",
        nargs="?",
        type=Path,
        metavar="WHAT",
        help="a run folder, a shipped pair (smollm2), or a TOML file of settings",
    )
    evaluate_command.add_argument(
        "--suite",
        nargs="+",
        default=["heldout"],
        metavar="FILE",
        help="files of prompts; for a run also heldout (default) or train",
    )
    evaluate_command.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="NAME",
        help="the format of these files, one for all or one for each (default: by their fields)",
    )
    evaluate_command.add_argument("--judge", action="append", default=[], metavar="JUDGE", help=JUDGE_HELP)
    evaluate_command.add_argument(
        "--conversation",
        metavar="MODEL",
        help="who answers: MODEL@URL, a shipped base, smollm2, a GGUF file, or a folder",
    )
    evaluate_command.add_argument("--feedback", metavar="MODEL", help="who reviews (default: the same model)")
    evaluate_command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a setting; for a run, only what samples (engine.rollouts=llama.cpp, engine.url=URL)",
    )
    evaluate_command.add_argument(
        "--system-messages",
        metavar="FILE",
        help="for a run: measure every prompt once more under one of these system messages, such as "
        "choreo:english/system_messages_heldout.jsonl",
    )
    evaluate_command.add_argument(
        "--out", type=Path, metavar="DIR", help="the folder of the results (default: runs/eval-TIME)"
    )
    evaluate_command.add_argument("--resume", action="store_true", help="go on in the folder of --out")
    json_option(evaluate_command)
    list_parts(evaluate_command, "judge.kind")


def evaluate(args: argparse.Namespace) -> int:
    check_resume(args, "eval")
    pairing = args.conversation or (args.what is not None and args.what.suffix == ".toml")
    if args.what is None and not pairing:
        raise BadInput("eval: give a run folder, a .toml file, or --conversation MODEL (choreo eval --help)")
    if pairing:
        return _models(args)
    if args.feedback:
        raise BadInput("eval: --feedback goes with --conversation; a run has its own feedback agent")
    from choreo import api
    from choreo.runs.bar import ProgressBar

    own = args.suite[0] if len(args.suite) == 1 and args.suite[0] in api.PARTS else None
    found = api.evaluate(
        args.what,
        own or args.suite,
        args.judge,
        args.out,
        [ProgressBar()],
        formats=args.format,
        overrides=args.set,
        system_messages=args.system_messages or "",
        into_existing=args.resume,
    )
    return print_result(found.summary, args.json)


def _models(args: argparse.Namespace) -> int:
    """Two models as they are, untrained."""
    if args.what is not None and args.what.suffix != ".toml":
        raise BadInput(f"eval: {args.what} is a run, and --conversation names a model: give one of the two")
    if args.system_messages:
        raise BadInput(
            "eval: --system-messages goes with a run; rows of --suite may have a system message of their own"
        )
    from choreo import api
    from choreo.judges.base import JudgeDown
    from choreo.runs.bar import ProgressBar

    folder = args.out or api.new_folder("eval")
    try:
        found = api.evaluate_models(
            args.conversation or "",
            args.feedback or "",
            [] if args.suite == ["heldout"] else args.suite,
            args.judge,
            folder,
            [ProgressBar()],
            file=args.what,
            formats=args.format,
            overrides=args.set,
            into_existing=args.resume,
        )
    except (Interrupted, KeyboardInterrupt) as stop:
        why = f"{stop}; " if isinstance(stop, JudgeDown) or str(stop) not in ("", "stopped") else ""
        raise Interrupted(f"{why}go on with the same command and --out {folder} --resume") from None
    return print_result(found.summary, args.json)
