"""The commands. Parsing imports nothing heavy, so that help and mistakes are answered at once.

Exit codes: 0 done, 1 failed, 2 bad input (one line on the error stream), 130 interrupted (state saved).
Results go to standard output, progress to the error stream.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from choreo.errors import BadInput, Interrupted

STUDIES = ("waltz-table", "waltz-sensitivity", "waltz-limits", "macpo-table")
SUITES = ("heldout", "train")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. An error that is nobody's input keeps its traceback (code 1)."""
    try:
        args = _parser().parse_args(argv)
        return args.command(args) or 0
    except BadInput as error:
        _say("choreo: " + str(error).replace("\n", "\\n"))  # one line, whatever the user typed
        return 2
    except (Interrupted, KeyboardInterrupt) as stop:
        _say(f"choreo: interrupted{f'; {stop}' if str(stop) else ''}")
        return 130


# ---- commands -----------------------------------------------------------------------------------


def _train(args: argparse.Namespace) -> int:
    from choreo import config
    from choreo.runs.folder import Run, is_finished, read_info
    from choreo.runs.progress import Progress

    if (args.recipe is None) == (args.resume is None):
        raise BadInput("train: give a recipe, or --resume RUN (choreo train --help)")
    if args.resume:
        if args.set or args.run or args.overwrite:
            raise BadInput("train: --resume goes on exactly as before; --set, --run and --overwrite do not go with it")
        if is_finished(args.resume):
            read_info(args.resume)
            _say(f"{args.resume} is finished; nothing to do")
            if not (args.resume / "report.html").is_file():  # killed just before it was written
                from choreo.evaluate.report import write_report

                write_report(args.resume)
            return _result(json.loads((args.resume / "summary.json").read_text(encoding="utf-8")), args.json)
        run = Run.open(args.resume)
    else:
        recipe = config.load(args.recipe, args.set)
        from choreo.evaluate.run import check

        _quiet()
        check(recipe)  # before anything is made, or removed by --overwrite
        run = Run.create(args.run or _new_folder(recipe.name), recipe, args.overwrite)
    with run, Progress() as progress:
        try:
            from choreo.evaluate.report import write_report
            from choreo.evaluate.run import run_recipe

            _quiet()
            summary = run_recipe(run, progress)
            run.finish(summary)
            report = write_report(run.path)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(f"go on with: choreo train --resume {run.path}") from None
    _say(f"run: {run.path}\nreport: {report}")
    return _result(summary, args.json)


def _eval(args: argparse.Namespace) -> int:
    from choreo.runs.folder import read_info

    read_info(args.run)
    from choreo.evaluate.run import evaluate_run
    from choreo.runs.progress import Progress

    _quiet()
    with Progress() as progress:
        result = evaluate_run(args.run, args.suite, progress)
    return _result(result, args.json)


def _report(args: argparse.Namespace) -> int:
    from choreo.runs.folder import read_info

    read_info(args.run)
    from choreo.evaluate.report import write_report

    try:
        print(write_report(args.run))
    except ValueError as error:  # a file of the run that is not JSON, named by the message
        raise BadInput(str(error)) from None
    return 0


def _study(args: argparse.Namespace) -> int:
    from choreo.runs.progress import Progress

    folder = args.run or Path("runs") / args.name
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; a study needs a folder")
    if not args.resume and folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: already exists; name another with --run, or go on with --resume")
    _quiet()
    module = importlib.import_module(f"choreo.studies.{args.name.replace('-', '_')}")
    with Progress() as progress:
        try:
            verdicts = module.run(folder, args.seeds, progress, args.set)
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(f"go on with: choreo study {args.name} --run {folder} --resume") from None
    print(json.dumps(json.loads((folder / "answers.json").read_text(encoding="utf-8"))) if args.json else verdicts)
    return 0


def _sample(args: argparse.Namespace) -> int:
    from choreo.microworld.suites import SUITES as SUITES_OF_WORLD

    if args.suite is not None and args.suite not in SUITES_OF_WORLD:
        raise BadInput(f"world sample: no suite {args.suite!r}; there are {', '.join(SUITES_OF_WORLD)}")
    from choreo.microworld.show import sample

    try:
        print(sample(suite=args.suite, language=args.language, count=args.count, seed=args.seed))
    except ValueError as error:  # more prompts than there are
        raise BadInput(f"world sample: {error}") from None
    return 0


def _pretrain(args: argparse.Namespace) -> int:
    from choreo.microworld.pretrain import REPORT_EVERY, SIZES, STATE, pretrain
    from choreo.runs.progress import Progress

    given = {name: value for name in ("size", "steps", "seed") if (value := getattr(args, name)) is not None}
    if args.resume and (given or args.overwrite):
        raise BadInput("world pretrain: --resume goes on exactly as before; no other option but --out goes with it")
    if given.get("size", "micro-llama") not in SIZES:
        raise BadInput(f"world pretrain: no size {args.size!r}; there are {', '.join(SIZES)}")
    if args.out.exists() and not (args.overwrite or args.resume):
        raise BadInput(f"{args.out}: already exists; name another with --out, or give --resume or --overwrite")
    if args.out.is_file():
        raise BadInput(f"{args.out}: is a file; --out names a folder")
    ours = any((args.out / name).is_file() for name in ("made.json", STATE))
    if args.overwrite and args.out.is_dir() and any(args.out.iterdir()) and not ours:
        raise BadInput(f"{args.out}: holds no base made here, so --overwrite will not write over it")
    with Progress() as progress:

        def report(figures: Mapping[str, float]) -> None:
            if figures["step"] - figures["first"] <= REPORT_EVERY:
                progress.start("pretraining", int(figures["steps"]), int(figures["first"]))
            progress.advance(
                int(figures["step"]), {"loss": figures["loss"], "tokens/s": figures["tokens_per_second"]}
            )
            if progress.interrupted:
                raise Interrupted(f"go on with: choreo world pretrain --out {args.out} --resume")

        pretrain(args.out, **given, resume=args.resume, report=report)
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from choreo.evaluate.calibrate import calibrate

    _quiet()
    return _result(calibrate(args.base, args.split_seed), args.json)


def _bench(args: argparse.Namespace) -> int:
    import importlib.util
    import subprocess

    script = Path(__file__).resolve().parents[2] / "benchmarks" / "run.py"
    if not script.is_file():
        raise BadInput("bench: the benchmarks come with the source; run this from a checkout")
    if importlib.util.find_spec("trl") is None:
        raise BadInput("bench: TRL, which choreo is measured against, is not installed; `make bench` installs it")
    return subprocess.run([sys.executable, str(script), *(["--json"] if args.json else [])], check=False).returncode


def _quiet() -> None:
    """transformers shows a bar for every model it loads, in the middle of ours."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


# ---- output -------------------------------------------------------------------------------------


def _result(result: Mapping[str, Any], as_json: bool) -> int:
    if as_json:
        from choreo.runs.files import finite

        print(json.dumps(finite(result), allow_nan=False))
    else:
        print(_table(result.get("systems", {})))
    return 0


def _table(systems: Mapping[str, Mapping[str, Any]]) -> str:
    """The systems of a summary as plain columns, rates with their intervals."""
    from choreo.evaluate.page import percent

    rows: list[tuple[str, ...]] = [("system", "ASR", "ORR", "F1", "FTR general", "label accuracy", "general ability")]
    for name, system in systems.items():
        ftr = system.get("ftr", {}).get("general")
        rates = [system.get("asr"), system.get("orr"), system.get("f1"), ftr]
        rates += [system.get("label_accuracy"), system.get("general")]
        rows.append((name, *map(percent, rates)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _new_folder(name: str) -> Path:
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    return Path("runs") / f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}"


# ---- parsing ------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("choreo").strip()
        raise BadInput(f"{f'{command}: ' if command else ''}{message} ({self.prog} --help)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        from importlib.metadata import version  # 30 ms that only this option should pay

        print(f"choreo {version('choreo')}")
        parser.exit()


def _seeds(text: str) -> tuple[int, ...]:
    seeds = tuple(int(part) for part in text.split(","))
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"expected different whole numbers >= 0 such as 0,1,2, got {text!r}")
    return seeds


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return count


def _natural(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return number


# What argparse calls a value it cannot read.
_seeds.__name__, _count.__name__, _natural.__name__ = "list of seeds", "whole number", "whole number"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="choreo",
        description="Train language-model agents to align each other.",
        epilog="""examples:
  choreo train waltz                      train a conversation and a feedback agent together
  choreo train waltz --set seed=1         the same with another seed
  choreo train --resume runs/demo         go on exactly where a run stopped
  choreo eval runs/demo --suite heldout   measure ASR, ORR and FTR again
  choreo study waltz-table                the whole table of the paper, over three seeds
  choreo world sample                     look at the small world the default trains in""",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)

    def add(name: str, run: Any, line: str, examples: str, under: Any = commands) -> argparse.ArgumentParser:
        command = under.add_parser(name, help=line, description=f"{line}.", epilog=f"examples:\n{examples}")
        command.set_defaults(command=run)
        return command

    train = add("train", _train, "Run a recipe into a run folder, and write its report", """\
  choreo train waltz                              a shipped recipe, by name
  choreo train mine.toml --run runs/mine          your own, into a folder you name
  choreo train waltz --set learning.steps=20 --set world.languages='["en"]'
  choreo train --resume runs/mine                 after Ctrl-C, a crash or a kill
Shipped recipes: waltz, waltz-published, waltz-frozen-conversation, single-agent, waltz-no-label,
waltz-no-label-anywhere. A run folder's recipe.toml lists every setting and can be trained again.""")  # fmt: skip
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable")
    train.add_argument("--run", type=Path, metavar="DIR", help="the run folder (default: runs/NAME-TIME)")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with an unfinished run, exactly")
    train.add_argument("--overwrite", action="store_true", help="replace the run that is in the run folder")
    _json_option(train)

    evaluate = add("eval", _eval, "Measure a run again, from its last checkpoint", """\
  choreo eval runs/demo
  choreo eval runs/demo --suite train --json""")
    evaluate.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    evaluate.add_argument("--suite", choices=SUITES, default="heldout", help="which prompts (default: heldout)")
    _json_option(evaluate)

    report = add("report", _report, "Write the report of a run, finished or not, and print where it is", """\
  choreo report runs/demo""")
    report.add_argument("run", type=Path, metavar="RUN", help="a run folder")

    study = add("study", _study, "Answer a question with many runs: a table, a plot and a verdict in words", """\
  choreo study waltz-table                 every system of the paper's table, and the reward ablation
  choreo study waltz-sensitivity           the weight of DIR, wrong labels, value baselines, cost
  choreo study waltz-limits --seeds 0,1    several rounds, and languages never trained on
  choreo study waltz-table --resume        finished runs are kept, the others go on
  choreo study waltz-limits --set learning.steps=20 --set world.heldout_prompts=60     a short look
A setting holds for every run of the study, but where the study itself varies it.""")
    study.add_argument("name", choices=STUDIES, metavar="NAME", help=f"one of {', '.join(STUDIES)}")
    study.add_argument("--seeds", type=_seeds, metavar="S,S,…", help="seeds (default: 0,1,2; with --resume, as before)")
    study.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable")
    study.add_argument("--run", type=Path, metavar="DIR", help="the folder of the study (default: runs/NAME)")
    study.add_argument("--resume", action="store_true", help="go on in a folder that is there")
    _json_option(study)

    world = commands.add_parser(
        "world", help="Look at the microworld, or make its base model again",
        description="The microworld: a small language, an exact judge and small models, so that training needs no GPU.",
        epilog="examples:\n  choreo world sample\n  choreo world pretrain --out bases/mine",
    )  # fmt: skip
    worlds = world.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)
    sample = add("sample", _sample, "Print prompts, good and bad answers to them, and the judge's verdicts", """\
  choreo world sample
  choreo world sample --suite adversarial_harmful --language es --count 3""", worlds)
    sample.add_argument("--suite", metavar="NAME", help="one suite only (default: all)")
    sample.add_argument("--language", choices=("en", "es", "de"), help="one language only (default: all)")
    sample.add_argument("--count", type=_count, default=2, help="prompts per suite (default: 2)")
    sample.add_argument("--seed", type=int, default=0, help="another seed draws other prompts (default: 0)")

    pretrain = add("pretrain", _pretrain, "Train a base of the microworld from nothing", """\
  choreo world pretrain --out bases/mine
  choreo world pretrain --out bases/mine --resume     after Ctrl-C, a crash or a kill
  choreo train waltz --set model.base=bases/mine""", worlds)
    pretrain.add_argument("--size", metavar="NAME", help="which base (default: micro-llama)")
    pretrain.add_argument("--seed", type=int, help="another seed makes another base (default: 0)")
    pretrain.add_argument("--steps", type=_count, help="batches of about 7,000 tokens (default: as shipped)")
    pretrain.add_argument("--resume", action="store_true", help="go on with the one that was stopped in DIR")
    pretrain.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the base is written")
    pretrain.add_argument("--overwrite", action="store_true", help="replace what is there")

    calibrate = add("calibrate", _calibrate, "Measure where a base stands before any training, on held-out", """\
  choreo world calibrate
  choreo world calibrate --base bases/mine --json""", worlds)
    calibrate.add_argument("--base", default="micro-llama", metavar="NAME", help="a shipped base, or a folder")
    calibrate.add_argument("--split-seed", type=_natural, default=0, metavar="N", help="which half (default: 0)")
    _json_option(calibrate)

    bench = add("bench", _bench, "Time choreo side by side with TRL on the same work", """\
  make bench             installs TRL beside choreo, then runs this
  choreo bench --json""")
    _json_option(bench)
    return parser


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")


if __name__ == "__main__":
    sys.exit(main())
