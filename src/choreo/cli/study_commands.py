"""`choreo study`: many runs, one question. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from choreo import studies
from choreo.cli.arguments import add_command, count, json_option, seeds, set_option
from choreo.errors import BadInput, Interrupted


def add(commands: Any) -> None:
    known = studies.questions()
    lines = "\n".join(f"  choreo study {name:<28}{answers}" for name, answers in known.items())
    study_command = add_command(
        commands,
        "study",
        study,
        "Answer a question with many runs: a table, a plot and a verdict in words",
        f"""\
{lines}
  choreo study --list                      which studies were run, how long they took, and what is stale
  choreo study macpo-table --jobs 2        two runs at a time
  choreo study waltz-table --resume        finished runs are kept, the others go on
  choreo study macpo-noise --reuse runs/macpo-table runs/macpo-baselines     what is trained there is not trained again
  choreo study waltz-limits --set learning.steps=20 --set world.heldout_prompts=60     a short look
  choreo study mine.py                     a study of your own (docs/your-study.md)
--set holds for every run of the study, except where the study itself varies the setting.""",
    )
    study_command.add_argument(
        "name", nargs="?", metavar="NAME", help=f"one of {', '.join(known)}; or FILE.py, a study of your own"
    )
    study_command.add_argument(
        "--list",
        action="store_true",
        help="for every study, and your own under runs/: what was run, how long it took, and what is stale",
    )
    study_command.add_argument(
        "--seeds",
        type=seeds,
        metavar="0,1,2 or 40-49",
        help="seeds, fixed before the first run (default: those that the study was registered with, else 0,1,2; with "
        "--resume, as before)",
    )
    set_option(study_command)
    study_command.add_argument("--jobs", type=count, default=1, metavar="N", help="runs trained at once (default: 1)")
    study_command.add_argument("--run", type=Path, metavar="DIR", help="the folder of the study (default: runs/NAME)")
    study_command.add_argument("--resume", action="store_true", help="go on in the folder of the study")
    study_command.add_argument(
        "--reuse",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="folders of other studies: their finished runs of equal recipes are copied and not trained again",
    )
    json_option(study_command)


def study(args: argparse.Namespace) -> int:
    if args.list:
        if args.name or args.seeds or args.set or args.run or args.resume or args.reuse or args.jobs > 1:
            raise BadInput("study: --list goes with --json alone")
        return _list(args.json)
    if args.name is None:
        raise BadInput("study: expected the NAME of a study, or --list (choreo study --help)")
    folder = args.run or Path("runs") / Path(args.name).stem
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; a study needs a folder")
    if args.resume and not (folder.is_dir() and any(folder.iterdir())):
        raise BadInput(f"{folder}: there is no study to go on with; begin one without --resume")
    if not args.resume and folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: already exists; name another with --run, or go on with --resume")
    from choreo.api import quiet
    from choreo.registry import file_digest
    from choreo.runs.bar import ProgressBar
    from choreo.runs.progress import Progress
    from choreo.studies.shared.arms import Study

    quiet()
    module, name = studies.load(args.name), Path(args.name).name
    code = file_digest(Path(args.name)) if name.endswith(".py") else ""
    with Progress([ProgressBar()]) as progress:
        try:
            registered, defaults = getattr(module, "SEEDS", ()), getattr(module, "SETTINGS", ())
            opened = Study.open(
                name, folder, args.seeds, args.set, progress, args.jobs, registered, args.reuse, defaults, code
            )
            verdicts = module.run(opened)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(f"go on with: choreo study {args.name} --run {folder} --resume") from None
    print(json.dumps(json.loads((folder / "answers.json").read_text(encoding="utf-8"))) if args.json else verdicts)
    return 0


def _list(as_json: bool) -> int:
    """One line for every study: what is run, when, of which commit, how long its training took, and what is stale."""
    from choreo.api import quiet
    from choreo.studies.shared import listing

    quiet()
    found = listing.states(studies.questions(), Path("runs"), Path("docs") / "results")
    if as_json:
        print(json.dumps(found))
    else:
        print("\n".join(f"{name:<20} {listing.words(state)}" for name, state in found.items()))
    return 0
