"""`choreo judge`: what its commands do. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo.cli.arguments import JUDGE_HELP, add_command, add_group, json_option, list_parts
from choreo.errors import BadInput

if TYPE_CHECKING:
    from choreo.data.answers import LabelledAnswer
    from choreo.data.reading import Loaded
    from choreo.judges.base import Judge


def add(commands: Any) -> None:
    judges = add_group(
        commands,
        "judge",
        "Judge answers; measure a judge; make the built-in one again",
        "Is an answer unsafe, does it over-refuse? docs/your-judge.md has the judges.",
        "  choreo judge answers answers.jsonl\n  choreo judge evaluate --data answers.jsonl",
    )
    worth_command = add_command(
        judges,
        "evaluate",
        evaluate,
        "Compare a judge with labels that people or others gave",
        """\
  choreo judge evaluate --data xstest_responses_human_labels.jsonl
  choreo judge evaluate --judge offline --data jbb_attack_artifacts.jsonl --json
A file is one JSON object a line, in one of these schemas, known by its fields:
  XSTest answers              prompt, type, completion, final_label, model: refusal (full or partial)
  JailbreakBench artifacts    goal, prompt, response, jailbroken, method, model: harm
  your own                    prompt, answer, kind; labels refusal, unsafe, degenerate; system, labeller
Rates are among the answers that the judge decided; undetermined ones are counted beside them.
The shipped judge has learnt from these two files as published in part: on those rows this says too much.""",
    )
    worth_command.add_argument(
        "--judge", default="offline", metavar="JUDGE", help="as of judge answers (default: offline)"
    )
    worth_command.add_argument(
        "--cache",
        type=Path,
        default=Path("judgements.sqlite"),
        metavar="FILE",
        help="of replies of judges over an endpoint (default: judgements.sqlite)",
    )
    worth_command.add_argument("--data", type=Path, required=True, metavar="FILE", help="labelled answers")
    worth_command.add_argument("--format", metavar="NAME", help="the format of the file (default: by its fields)")
    worth_command.add_argument(
        "--weights", type=Path, metavar="FILE", help="weights made by judge train (default: as shipped)"
    )
    json_option(worth_command)
    those_command = add_command(
        judges,
        "answers",
        answers,
        "Judge a file of answers",
        """\
  choreo judge answers answers.jsonl
  choreo judge answers answers.jsonl --judge rubric:qwen3:8b@http://localhost:11434/v1 --out judged.jsonl
  choreo judge answers answers.jsonl --judge offline --judge wildguard:allenai/wildguard@http://localhost:8000/v1
A row has prompt, answer (or response, or completion) and kind: what a right answer does, refuse (harmful), help
(benign) or be correct (general). What judges over an endpoint replied is kept in the cache: run it again, and no
call is made.""",
    )
    those_command.add_argument("file", type=Path, metavar="FILE", help="JSON lines, a JSON array, CSV or TSV")
    those_command.add_argument("--format", metavar="NAME", help="the format (default: by its fields)")
    those_command.add_argument("--judge", action="append", default=[], metavar="JUDGE", help=JUDGE_HELP)
    those_command.add_argument("--out", type=Path, metavar="FILE", help="write every row with its verdict")
    those_command.add_argument(
        "--cache",
        type=Path,
        default=Path("judgements.sqlite"),
        metavar="FILE",
        help="of replies of judges over an endpoint (default: judgements.sqlite)",
    )
    those_command.add_argument("--overwrite", action="store_true", help="replace what is there")
    json_option(those_command)
    list_parts(those_command, "judge.kind")
    learn_command = add_command(
        judges,
        "train",
        train,
        "Train the offline judge, measure it, and write its data card",
        """\
  choreo judge train --data "$CHOREO_DATA" --out mine
  choreo judge evaluate --weights mine/offline.npz --data answers.jsonl
DIR holds xstest_responses_human_labels.jsonl and jbb_attack_artifacts.jsonl. The same rows make the same file.
It prints tables by source, with 95 % Wilson intervals, of answers that were left out of training: unseen
prompts, then also an unseen model, or an unseen attack family. Minutes on one core.""",
    )
    learn_command.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data")
    learn_command.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where weights and card are written"
    )
    learn_command.add_argument("--overwrite", action="store_true", help="replace what is there")


def evaluate(args: argparse.Namespace) -> int:
    from choreo.config.judge import judge_from
    from choreo.data.answers import load
    from choreo.evaluation.agreement import agreement
    from choreo.evaluation.judge_training import CARD_FILE, in_training
    from choreo.evaluation.judging import measure_labels, measure_verdicts
    from choreo.judges.offline.model import WEIGHTS, OfflineJudge
    from choreo.judges.resolve import choose

    judge: Judge
    settings, loaded = judge_from([args.judge]), load(args.data, args.format)
    rows = loaded.rows
    if not any(label is not None for row in rows for label in (row.refusal, row.harm, row.degenerate)):
        raise BadInput(
            f"{args.data}: has no labels to compare with; write refusal or unsafe, true or false, beside "
            f"answers, or judge the answers with choreo judge answers {args.data}"
        )
    if args.weights and args.judge != "offline":
        raise BadInput("judge evaluate: --weights are the offline judge's")
    _say(_taken(args.data, loaded))
    if args.judge == "offline":
        judge = offline = OfflineJudge(path=args.weights or WEIGHTS)
        result = measure_labels(offline.labels, rows)
        if seen := sum(map(in_training(offline.path), rows)):
            print(
                f"! the judge learnt from {seen} of these answers, if the file is as published: the figures say too "
                "much. Those of answers left out of training are in its data card, made by choreo judge train --data "
                f"FOLDER --out NEW: {offline.path.with_name(CARD_FILE)}",
                file=sys.stderr,
            )
    else:
        judge = choose(settings, args.cache)
        result = measure_verdicts(judge, rows)
    blind = any(row.labeller or row.degenerate is not None for row in rows)
    if blind:
        result["agreement"] = agreement(judge, rows)
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    print(f"{result['n']} answers, {result['per_second']:,.0f} a second")
    silent = sum(row.refusal is not None and row.prompt.kind == "harmful" for row in rows)
    for head in ("refusal", "harm"):
        if result[head] is None:
            print(f"{head}: no labels in this file")
        else:
            print(f"{head}: " + ", ".join(f"{name} {_figure(value)}" for name, value in result[head].items()))
    if silent and args.judge != "offline":
        print(f"(refusal of the {silent} answers to harmful prompts is undetermined: verdicts there tell harm alone)")
    if blind:
        _print_agreement(result["agreement"])
    return 0


def _print_agreement(found: dict[str, Any]) -> None:
    """A line for every label, and for satisfactory one for every system: accuracy, kappa and F1 with intervals."""
    from choreo.evaluation.agreement import LABELS

    shown = {name: found[name] for name in LABELS if name in found}
    shown |= {f"satisfactory, {system}": one for system, one in found["systems"].items()}
    for name, one in shown.items():
        told = ", ".join(f"{what} {_interval(estimate)}" for what, estimate in one.items())
        print(f"agreement on {name}: {told}, n {one['accuracy']['n']}, open {one['accuracy']['undetermined']}")


def _interval(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "–"
    return f"{estimate['value']:.3f} ({estimate['low']:.3f}–{estimate['high']:.3f})"


def answers(args: argparse.Namespace) -> int:
    from choreo.config.judge import judge_from
    from choreo.data.answers import load
    from choreo.evaluation.judging import rates
    from choreo.files import durable
    from choreo.judges.base import judge_all
    from choreo.judges.resolve import choose, counts, describe

    if args.out and args.out.exists() and not args.overwrite:
        raise BadInput(f"{args.out}: already exists; name another with --out, or give --overwrite")
    loaded = load(args.file, args.format)
    rows, judge = loaded.rows, choose(judge_from(args.judge or ["offline"]), args.cache)
    _say(_taken(args.file, loaded))
    verdicts = judge_all(judge, [(row.prompt, row.answer) for row in rows])
    if args.out:
        told = (
            {
                "prompt": row.prompt.text,
                "answer": row.answer,
                "kind": row.prompt.kind,
                "suite": row.prompt.suite,
                **asdict(verdict),
            }
            for row, verdict in zip(rows, verdicts, strict=True)
        )
        durable.write_text(args.out, "".join(json.dumps(line) + "\n" for line in told))
        print(f"written: {args.out}", file=sys.stderr)
    result = {"n": len(rows), **rates([row.prompt for row in rows], verdicts)}
    result |= {"judge": describe(judge), "judging": counts(judge)}
    if args.json:
        print(json.dumps(durable.finite(result), allow_nan=False))
        return 0
    from choreo.report.page import percent

    print(f"{len(rows)} answers, by {judge.name}")
    for name, what in (
        ("asr", "ASR: unsafe answers to harmful prompts"),
        ("orr", "ORR: refusals of other prompts"),
        ("undetermined", "undetermined"),
    ):
        print(f"{what}: {percent(result[name])}, n {result[name]['n']}")
    for reason, count in result["reasons"].items():
        print(f"  open, {reason}: {count}")
    return 0


def train(args: argparse.Namespace) -> int:
    from choreo.evaluation import judge_training as training

    if args.out.exists() and not args.out.is_dir():
        raise BadInput(f"{args.out}: is a file; --out names a folder")
    made = [args.out / name for name in (training.WEIGHTS_FILE, training.CARD_FILE)]
    for file in made:
        if file.exists() and not args.overwrite:
            raise BadInput(f"{file}: already exists; name another folder with --out, or give --overwrite")
    rows = training.read_rows(args.data, _say)
    print(f"{len(rows)} answers; every figure below is of answers that were left out of training", file=sys.stderr)
    print(training.train_judge(rows, args.out))
    for file in made:
        print(f"written: {file}", file=sys.stderr)
    return 0


def _taken(file: Path, loaded: Loaded[LabelledAnswer]) -> str:
    from choreo.data.reading import counted, taken

    return taken(str(file), counted(loaded) | Counter(row.prompt.kind for row in loaded.rows))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _figure(value: float | int | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
