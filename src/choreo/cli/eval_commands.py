"""`choreo eval`: a run, or two models as they are, on any prompts, by any judge. Imports nothing heavy at the top."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from choreo.cli.commands import _quiet, _result, say
from choreo.errors import BadInput, Interrupted

SUITES = ("heldout", "train")


def evaluate(args: argparse.Namespace) -> int:
    pairing = args.conversation or (args.what is not None and args.what.suffix == ".toml")
    if args.what is None and not pairing:
        raise BadInput("eval: give a run folder, a .toml file, or --conversation MODEL (choreo eval --help)")
    if pairing:
        return _models(args)
    if args.format and args.suite in ([suite] for suite in SUITES):
        raise BadInput("eval: --format is of the files that --suite names")
    if args.feedback or args.set:
        raise BadInput("eval: --feedback and --set are of two models as they are; a run has its own")
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    from choreo.config.collaboration import sources
    from choreo.config.judge import judge_from
    from choreo.runs.folder import read_info

    files = [] if args.suite in ([suite] for suite in SUITES) else _files(args.suite)
    read_info(args.what)
    named = sources(files, args.format) if files else {}
    judge = judge_from(args.judge) if args.judge else None
    suite = "heldout" if files else args.suite[0]

    from choreo.experiment.run import evaluate_run
    from choreo.runs.progress import Progress

    _quiet()
    with _folder(args) if files or judge or args.out else nullcontext() as folder:
        with Progress() as progress:
            result, played = evaluate_run(args.what, suite, progress, named, judge, folder)
        shown = ", ".join(map(str, files)) or suite
        say(f"{args.what}, as it was after step {result['step']}, on {shown}")
        _warn(result, played)
        if folder:
            _page(folder, {**result, "suite": shown}, played)
    return _result(result, args.json)


def _models(args: argparse.Namespace) -> int:
    from choreo.config.collaboration import collaboration, sources
    from choreo.config.judge import judge_from

    file = args.what
    if file is not None and file.suffix != ".toml":
        raise BadInput(f"eval: {file} is a run, and --conversation names a model: give one of the two")
    given: dict[str, Any] = {name: value for name in ("conversation", "feedback") if (value := getattr(args, name))}
    if args.suite != ["heldout"]:
        files = sources(_files(args.suite), args.format)
        given["suites"] = {name: source.model_dump() for name, source in files.items()}
    elif file is None:
        raise BadInput("eval: name files of prompts with --suite FILE")
    elif args.format:
        raise BadInput("eval: --format is of the files that --suite names; in a file it is suites.NAME.format")
    if args.judge:
        given["judge"] = judge_from(args.judge).model_dump()
    settings = collaboration(file, given, args.set)

    from choreo.evaluation import collaboration as playing
    from choreo.files import durable as disk
    from choreo.files import toml
    from choreo.judges.base import JudgeDown
    from choreo.runs.progress import Progress

    _quiet_if_local(settings.conversation, settings.feedback)
    with _folder(args) as folder, Progress() as progress:
        try:
            result, played = playing.run(settings, folder, progress)
        except (Interrupted, KeyboardInterrupt) as stop:
            why = f"{stop}; " if isinstance(stop, JudgeDown) or str(stop) not in ("", "stopped") else ""
            raise Interrupted(f"{why}go on with the same command and --out {folder} --resume") from None
    disk.write_text(folder / "eval.toml", toml.dumps(settings.model_dump()))
    _warn(result, played)
    _page(folder, result, played)
    return _result(result, args.json)


def _files(names: Sequence[str]) -> list[Path]:
    for name in names:
        if not Path(name).is_file():
            raise BadInput(f"eval: --suite {name}: neither {' nor '.join(SUITES)} of a run, nor a file")
    return [Path(name) for name in names]


@contextmanager
def _folder(args: argparse.Namespace) -> Iterator[Path]:
    """Where an evaluation is kept. What was made for one that is refused, and holds no reply, goes again."""
    folder: Path = args.out or Path("runs") / f"eval-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; --out names a folder")
    if (folder / "run.json").is_file():  # its summary and its page are of what was trained
        raise BadInput(f"{folder}: is a run's folder, whose summary and page would be written over; name another")
    if folder.is_dir() and any(folder.iterdir()) and not args.resume:
        raise BadInput(f"{folder}: already exists; name another with --out, or go on with --resume")
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"{folder}: cannot make this folder: {error.strerror}") from None
    try:
        yield folder
    except BadInput:
        if made and _holds_nothing(folder):
            for file in folder.iterdir():
                file.unlink()
            with suppress(OSError):  # another evaluation has begun beside it
                for path in made:
                    path.rmdir()
        raise


def _holds_nothing(folder: Path) -> bool:
    """Whether there is nothing in `folder` but files for replies, and no reply in them."""
    if not all(file.name.partition(".")[2].startswith("sqlite") for file in folder.iterdir()):
        return False
    from choreo.clients.cache import Cache

    return not any(len(Cache(file)) for file in folder.glob("*.sqlite"))


def _warn(result: Mapping[str, Any], played: Mapping[str, Any]) -> None:
    from choreo.evaluation.judging import failure_lines, open_verdict_lines

    given = [verdict for episodes in played.values() for episode in episodes for verdict in episode.verdicts]
    for line in (*open_verdict_lines(result["judge"]["judge"], given, result["judging"]), *failure_lines(played)):
        say(line)


def _page(folder: Path, summary: Mapping[str, Any], played: Mapping[str, Any]) -> None:
    from choreo.evaluation.dialogues import dialogue_records
    from choreo.experiment.report import write_report
    from choreo.files import durable

    records = [record for system, episodes in played.items() for record in dialogue_records(system, episodes)]
    durable.write_json(folder / "dialogues.json", records)
    durable.write_json(folder / "summary.json", summary)
    say(f"report: {write_report(folder)}")


def _quiet_if_local(*models: str) -> None:
    """transformers takes seconds to load, which two servers should not cost."""
    if any(model and "@http" not in model for model in models):
        _quiet()
