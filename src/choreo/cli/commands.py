"""What each command does, and how its result is printed. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from choreo.errors import BadInput, Interrupted, TooFew


def train(args: argparse.Namespace) -> int:
    from choreo import config
    from choreo.runs.folder import Run, is_finished, read_info
    from choreo.runs.progress import Progress

    if (args.recipe is None) == (args.resume is None):
        both = "not both" if args.recipe else "choreo train --help"
        raise BadInput(f"train: give a recipe, or --resume RUN ({both})")
    if args.resume:
        if args.set or args.run or args.overwrite:
            raise BadInput("train: --resume goes on exactly as before; --set, --run and --overwrite do not go with it")
        if is_finished(args.resume):
            read_info(args.resume)
            say(f"{args.resume} is finished; nothing to do")
            if not (args.resume / "report.html").is_file():  # killed just before it was written
                from choreo.experiment.report import write_report

                write_report(args.resume)
            from choreo.files.json_file import read_object

            return _result(read_object(args.resume / "summary.json"), args.json)
        run = Run.open(args.resume)
    else:
        recipe = config.load(args.recipe, args.set)
        from choreo.experiment.paths import rooted
        from choreo.experiment.run import check

        _quiet()
        check(recipe)  # before anything is made, or removed by --overwrite
        run = Run.create(args.run or _new_folder(recipe.name), rooted(recipe), args.overwrite)
    from choreo.experiment.report import write_report
    from choreo.judges.base import JudgeDown

    with run, Progress() as progress:
        try:
            from choreo.experiment.run import run_recipe

            _quiet()
            say(f"run: {run.path}")
            summary = run_recipe(run, progress)
            run.finish(summary)
            report = write_report(run.path)
        except (Interrupted, KeyboardInterrupt) as stop:
            # A judge that went away has more to say than that the user stopped.
            why = f"{stop}; " if isinstance(stop, JudgeDown) else ""
            raise Interrupted(f"{why}go on with: choreo train --resume {run.path}") from None
    say(f"report: {report}")
    return _result(summary, args.json)


def report(args: argparse.Namespace) -> int:
    from choreo.runs.folder import read_info

    read_info(args.run)
    from choreo.experiment.report import write_report

    print(write_report(args.run))
    return 0


def study(args: argparse.Namespace) -> int:
    folder = args.run or Path("runs") / args.name
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; a study needs a folder")
    if not args.resume and folder.is_dir() and any(folder.iterdir()):
        raise BadInput(f"{folder}: already exists; name another with --run, or go on with --resume")
    from choreo import studies
    from choreo.runs.progress import Progress
    from choreo.studies.shared.arms import Study

    _quiet()
    module = studies.load(args.name)
    with Progress() as progress:
        try:
            verdicts = module.run(Study.open(args.name, folder, args.seeds, args.set, progress, args.jobs))
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted(f"go on with: choreo study {args.name} --run {folder} --resume") from None
    print(json.dumps(json.loads((folder / "answers.json").read_text(encoding="utf-8"))) if args.json else verdicts)
    return 0


def sample(args: argparse.Namespace) -> int:
    from choreo.environments.microworld.show import sample_text
    from choreo.environments.microworld.suites import SUITES as SUITES_OF_WORLD

    if args.suite is not None and args.suite not in SUITES_OF_WORLD:
        raise BadInput(f"world sample: no suite {args.suite!r}; there are {', '.join(SUITES_OF_WORLD)}")

    try:
        print(sample_text(suite=args.suite, language=args.language, count=args.count, seed=args.seed))
    except TooFew as error:
        raise BadInput(f"world sample: {error}") from None
    return 0


def pretrain(args: argparse.Namespace) -> int:
    from choreo.environments.microworld.pretrain import REPORT_EVERY, SIZES, STATE, pretrain
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
            progress.advance(int(figures["step"]), {"loss": figures["loss"], "tokens/s": figures["tokens_per_second"]})
            if progress.interrupted:
                raise Interrupted(f"go on with: choreo world pretrain --out {args.out} --resume")

        pretrain(args.out, **given, resume=args.resume, report=report)
    return 0


def calibrate(args: argparse.Namespace) -> int:
    from choreo.experiment.calibrate import calibrate

    _quiet()
    return _result(calibrate(args.base, args.split_seed), args.json)


def swarm_run(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    require("swarm run")
    from choreo.files.durable import finite
    from choreo.swarm import metrics, reports, show
    from choreo.swarm.run import Job, run_all
    from choreo.swarm.scenario import load_scenario

    scenario = load_scenario(args.scenario)
    seed = scenario.simulation.seed if args.seed is None else args.seed
    arms = [scenario, *([reports.tax_free(scenario)] if reports.needs_tax_free_arm(scenario) else [])]
    result, *beside = run_all([Job(arm, seed) for arm in arms])
    notes = [metrics.degenerate(result.interactions, result.payoffs)]
    notes += [reports.tax_artefact(result, free) for free in beside]
    for note in filter(None, notes):
        say(note)
    figures = finite(show.figures(scenario, result))
    print(json.dumps(figures, allow_nan=False) if args.json else show.tell(scenario, result))
    return 0


def swarm_annotate(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    require("swarm annotate", "PyYAML")
    from choreo.swarm.annotations import to_yaml
    from choreo.swarm.draft import draft
    from choreo.swarm.reading import read_text

    made = draft(read_text(args.file), str(args.file))
    print("# A draft made by rules. Check every claim, fill in each ?, then set status: curated.")
    show_file(to_yaml(made))
    return 0


def swarm_generate(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    require("swarm generate", "PyYAML")
    from choreo.swarm.annotations import load_annotation
    from choreo.swarm.generate import generate, to_yaml

    annotation = load_annotation(args.annotation)
    show_file(to_yaml(generate(annotation, args.seed), annotation))
    return 0


def swarm_study(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    for package in ("swarm-safety", "scikit-learn"):
        require("swarm study", package)
    from choreo.runs.progress import Progress
    from choreo.studies.swarm import study as study

    folder = args.out or Path("runs") / f"swarm-{args.name}"
    if args.name != "governance":
        _quiet()
    with Progress() as progress:
        try:
            page, report = study.run(
                args.name,
                args.what,
                folder,
                args.seeds or study.SEEDS,
                args.resume,
                args.jobs,
                args.answers,
                args.annotation,
                progress,
            )
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted("what was played is kept; go on with the same command and --resume") from None
    return _told(page, report, args.json)


def swarm_report(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    require("swarm report", "scikit-learn")
    from choreo.studies.swarm import pages

    page, report = pages.write(args.folder)
    return _told(page, report, args.json)


def _told(page: Path, report: Mapping[str, Any], as_json: bool) -> int:
    """A SWARM study's verdicts, and where its page is."""
    say(f"report: {page}")
    if as_json:
        from choreo.files.durable import finite

        print(json.dumps(finite(report), allow_nan=False))
    else:
        for claim in report["claims"]:
            print(f"{claim['verdict']}{', ' if claim['scope'] else ''}{claim['scope']}: {claim['claim']}")
    return 0


def bench(args: argparse.Namespace) -> int:
    if args.what == "serve":
        from choreo.cli.serve_commands import bench as bench_server

        return bench_server(args)
    if args.run is not None:
        raise BadInput("bench train: takes no run; it trains runs of its own")
    import importlib.util
    import subprocess

    script = Path(__file__).resolve().parents[3] / "benchmarks" / "run.py"
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
        from choreo.files.durable import finite

        print(json.dumps(finite(result), allow_nan=False))
    else:
        print(_table(result.get("systems", {})))
        if lost := _lost(result):
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
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _lost(result: Mapping[str, Any]) -> str:
    """In one line what the rates are not over: turns that failed and why, verdicts left open, reviews that did not
    parse; and how many turns hold what is no text. A review that had no answer to read is no failure of its own."""
    from choreo.report.page import percent

    found = [
        f"{count} {turns if count > 1 else turns[:-1]} failed: {', '.join(why) if len(why) == 1 else most(why)}"
        for turns, why in result.get("failures", {}).items()
        if (count := sum(why.values()))
    ]
    found += [
        f"{count} {turns if count > 1 else turns[:-1]} with a broken character (U+FFFD)"
        for turns, count in result.get("broken", {}).items()
        if count
    ]
    for name, system in result.get("systems", {}).items():
        told = {"open": system.get("undetermined"), "format rate": (strict := system.get("format_rate"))}
        if (lenient := system.get("format_rate_lenient")) != strict:
            told["format rate read leniently"] = lenient
        parts = [
            f"{what} {percent(rate, interval=False)}"
            for what, rate in told.items()
            if rate and rate["value"] is not None and (rate["value"] or what.startswith("format"))
        ]
        found += [f"{name}: {', '.join(parts)}"] if parts else []
    return "; ".join(found)


def most(reasons: Mapping[str, int]) -> str:
    """The most frequent reasons with their counts."""
    return ", ".join(f"{reason} {count}" for reason, count in [*reasons.items()][:3])


def show_file(text: str) -> None:
    """What is to become a file, on standard output: in UTF-8, whatever a terminal takes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    print(text, end="")


def say(text: str) -> None:
    print(text, file=sys.stderr)


def _new_folder(name: str) -> Path:
    slug = re.sub(r"[^\w.-]+", "-", name).strip("-.") or "run"
    return Path("runs") / f"{slug}-{time.strftime('%Y%m%d-%H%M%S')}"
