"""`choreo judge`: what the two commands do. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import json
import sys

from choreo.errors import BadInput


def evaluate(args: argparse.Namespace) -> int:
    from choreo.data.answers import load
    from choreo.evaluate.judging import measure
    from choreo.judges.offline import OfflineJudge

    judges = {"offline": OfflineJudge}
    if args.judge not in judges:
        raise BadInput(f"judge evaluate: no judge {args.judge!r}; there is {', '.join(judges)}")
    rows = load(args.data).rows
    judge = judges[args.judge](path=args.weights) if args.weights else judges[args.judge]()
    result = measure(judge.labels, rows)
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    print(f"{result['n']} answers, {result['per_second']:,.0f} a second")
    for head in ("refusal", "harm"):
        if result[head] is None:
            print(f"{head}: no labels in this file")
        else:
            print(f"{head}: " + ", ".join(f"{name} {_figure(value)}" for name, value in result[head].items()))
    return 0


def train(args: argparse.Namespace) -> int:
    from choreo.evaluate import judge_training as training

    if args.out.exists() and not args.out.is_dir():
        raise BadInput(f"{args.out}: is a file; --out names a folder")
    made = [args.out / name for name in (training.WEIGHTS_FILE, training.CARD_FILE)]
    for file in made:
        if file.exists() and not args.overwrite:
            raise BadInput(f"{file}: already exists; name another folder with --out, or give --overwrite")
    rows = training.read(args.data)
    print(f"{len(rows)} answers; every figure below is of answers that were left out of training", file=sys.stderr)
    print(training.train(rows, args.out))
    for file in made:
        print(f"written: {file}", file=sys.stderr)
    return 0


def _figure(value: float | int | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
