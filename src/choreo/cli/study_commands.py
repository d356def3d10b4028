"""`choreo study`: many runs, one question. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import importlib
import json
from pathlib import Path
from typing import Any

from choreo.cli.arguments import add_command, count, json_option, seeds
from choreo.errors import BadInput, Interrupted

STUDIES = (
    "waltz-table",
    "waltz-sensitivity",
    "waltz-limits",
    "macpo-table",
    "macpo-stability",
    "macpo-noise",
    "macpo-teachers",
    "macpo-transfer",
)


def add(commands: Any) -> None:
    study_command = add_command(
        commands,
        "study",
        study,
        "Answer a question with many runs: a table, a plot and a verdict in words",
        """\
  choreo study waltz-table                 every system of the paper's table, and the reward ablation
  choreo study waltz-sensitivity           the weight of DIR, wrong labels, value baselines, cost
  choreo study waltz-limits --seeds 0,1    several rounds, and languages never trained on
  choreo study macpo-table --jobs 2        MACPO, its baselines and its ablations, two runs at a time
  choreo study macpo-stability             ten rounds, and ten with the paper's filter alone
  choreo study macpo-noise                 wrong labels in the teachers' data
  choreo study macpo-teachers              how many teachers, how different; other ways to make negatives
  choreo study macpo-transfer              another task: everyday questions alone
  choreo study waltz-table --resume        finished runs are kept, the others go on
  choreo study waltz-limits --set learning.steps=20 --set world.heldout_prompts=60     a short look
A setting holds for every run of the study, but where the study itself varies it.""",
    )
    study_command.add_argument("name", choices=STUDIES, metavar="NAME", help=f"one of {', '.join(STUDIES)}")
    study_command.add_argument(
        "--seeds", type=seeds, metavar="S,S,…", help="seeds (default: 0,1,2; with --resume, as before)"
    )
    study_command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable"
    )
    study_command.add_argument("--jobs", type=count, default=1, metavar="N", help="runs trained at once (default: 1)")
    study_command.add_argument("--run", type=Path, metavar="DIR", help="the folder of the study (default: runs/NAME)")
    study_command.add_argument("--resume", action="store_true", help="go on in a folder that is there")
    json_option(study_command)


def study(args: argparse.Namespace) -> int:
    folder = args.run or Path("runs") / args.name
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; a study needs a folder")
    if not args.resume and folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: already exists; name another with --run, or go on with --resume")
    from choreo.api import quiet
    from choreo.runs.bar import ProgressBar
    from choreo.runs.progress import Progress
    from choreo.studies.arms import Study

    quiet()
    module = importlib.import_module(f"choreo.studies.{args.name.replace('-', '_')}")
    with Progress([ProgressBar()]) as progress:
        try:
            verdicts = module.run(Study.open(args.name, folder, args.seeds, args.set, progress, args.jobs))
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(f"go on with: choreo study {args.name} --run {folder} --resume") from None
    print(json.dumps(json.loads((folder / "answers.json").read_text(encoding="utf-8"))) if args.json else verdicts)
    return 0
