"""`choreo judge`: what its commands do. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo.cli.arguments import JUDGE_HELP, add_command, add_group, json_option, list_parts
from choreo.errors import BadInput, Interrupted
from choreo.types import KINDS

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
The shipped judge learnt from part of these two published files: on those rows its figures are too good.""",
    )
    worth_command.add_argument(
        "--judge", default="offline", metavar="JUDGE", help="as of judge answers (default: offline)"
    )
    worth_command.add_argument(
        "--cache",
        type=Path,
        default=Path("judgements.sqlite"),
        metavar="FILE",
        help="keeps the replies of judges on servers (default: judgements.sqlite)",
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
(benign) or be correct (general). The cache keeps what judges on servers replied: a second run makes no call.""",
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
        help="keeps the replies of judges on servers (default: judgements.sqlite)",
    )
    those_command.add_argument("--overwrite", action="store_true", help="replace what is there")
    json_option(those_command)
    list_parts(those_command, "judge.kind")
    mend_command = add_command(
        judges,
        "calibrate",
        calibrate,
        "Calibrate the probabilities of a trained judge on labelled answers",
        """\
  choreo judge train --base smollm2 --data mine.jsonl --out judge
  choreo judge calibrate judge --data others.jsonl      labelled answers that it did not learn from
One number for each label is added to the judge's log odds, and written into its judge.json.""",
    )
    mend_command.add_argument("folder", type=Path, metavar="FOLDER", help="a judge that choreo judge train --base made")
    mend_command.add_argument("--data", type=Path, required=True, metavar="FILE", help="labelled answers")
    mend_command.add_argument("--kind", choices=KINDS, help="only answers to prompts of this kind (default: all)")
    mend_command.add_argument("--format", metavar="NAME", help="the format of the file (default: by its fields)")
    json_option(mend_command)
    _add_train(judges)


def calibrate(args: argparse.Namespace) -> int:
    from choreo.api import quiet
    from choreo.data.answers import load
    from choreo.evaluation import judge_calibration

    quiet()
    loaded = load(args.data, args.format)
    _say(_taken(args.data, loaded))
    rows = [row for row in loaded.rows if args.kind in (None, row.prompt.kind)]
    found = judge_calibration.calibrate_judge(args.folder, rows)
    if args.json:
        print(json.dumps(found, allow_nan=False))
        return 0
    for label, one in found.items():
        told = "too few labels; left as it is"
        if one:
            told = f"shift {one['shift']:+.3f}, log loss {one['before']:.4f} → {one['after']:.4f}, {one['n']} answers"
        print(f"{label}: {told}")
    return 0


def _add_train(judges: Any) -> None:
    learn_command = add_command(
        judges,
        "train",
        train,
        "Train a judge, measure it, and write its data card",
        """\
  choreo judge train --data "$CHOREO_DATA" --out mine                    the built-in regression again: minutes
  choreo judge evaluate --weights mine/offline.npz --data answers.jsonl
  choreo judge train --data choreo:english/answers.jsonl --out mine      one for SmolLM2's answers, from those that ship
  choreo judge train --base smollm2 --data "$CHOREO_DATA" --out judge    a language model, with LoRA
  choreo judge train --base smollm2 --data "$CHOREO_DATA" --out judge --resume
  choreo judge train --base smollm2 --data "$CHOREO_DATA" mine.jsonl --leave-out PAIR --out judge
  choreo judge answers answers.jsonl --judge trained:judge
A folder holds xstest_responses_human_labels.jsonl and jbb_attack_artifacts.jsonl. A file has answers with labels:
prompt, answer, kind, and refusal or harmful, true or false. The same rows make the same judge.
It prints tables by source, with 95 % Wilson intervals, of answers that were left out of training: unseen
prompts, then also an unseen model, or an unseen attack family. A language model of 135M parameters takes most
of an hour on one core for each training; Ctrl-C saves, and --resume goes on.""",
    )
    learn_command.add_argument(
        "--data", type=Path, nargs="+", required=True, metavar="DIR|FILE", help="the folder of the data; files of yours"
    )
    learn_command.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="where the judge and its card are written"
    )
    learn_command.add_argument("--overwrite", action="store_true", help="replace what is there")
    model = learn_command.add_argument_group("with a language model")
    model.add_argument(
        "--base", metavar="MODEL", help="the model to train: a shipped base, a folder, or one on the hub"
    )
    others: list[argparse.Action] = []  # they say nothing to the regression

    def add(*names: str, **how: Any) -> None:
        others.append(model.add_argument(*names, **how))

    add("--resume", action="store_true", help="go on with a training that was stopped")
    add("--holdout", type=float, default=0.2, metavar="SHARE", help="share of prompts to measure on (default: 0.2)")
    add("--every-fold", action="store_true", help="one more training for each other share, to measure all rows")
    named = "a model or an attack, as the data names it: one more training without it, to measure on it"
    add("--leave-out", nargs="+", default=[], metavar="NAME", help=named)
    add("--epochs", type=int, default=2, metavar="N", help="passes over the rows (default: 2)")
    add("--lr", type=float, default=1e-3, metavar="RATE", help="the highest learning rate (default: 1e-3)")
    add("--rank", type=int, default=16, metavar="R", help="rank of the adapter (default: 16)")
    add("--seed", type=int, default=0, metavar="N", help="seed of adapter and order (default: 0)")
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default: auto)")
    for what, tokens in (("prompt", 96), ("answer", 160)):
        told = f"tokens of a{'n' * (what == 'answer')} {what}, from both ends (default: {tokens})"
        add(f"--{what}-tokens", type=int, default=tokens, metavar="N", help=told)
    learn_command.set_defaults(with_base={option.dest: option.default for option in others})


def evaluate(args: argparse.Namespace) -> int:
    from choreo.config.judge import TRAINED, judge_from
    from choreo.data.answers import load
    from choreo.evaluation.agreement import agreement
    from choreo.evaluation.judge_training import card_of, in_training
    from choreo.evaluation.judging import measure_labels, measure_readings, measure_verdicts
    from choreo.files import shipped
    from choreo.judges.offline.model import WEIGHTS, OfflineJudge
    from choreo.judges.resolve import choose
    from choreo.judges.trained.folder import ADAPTER_FILE

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
    made: Path | None = None  # the weights of a judge that choreo judge train has made, beside its data card
    if args.judge == "offline":
        made = shipped.place(args.weights) if args.weights else WEIGHTS
        judge = offline = OfflineJudge(path=made)
        result = measure_labels(offline.labels, rows)
    elif settings.kind == TRAINED:
        from choreo.api import quiet
        from choreo.judges.trained.model import TrainedJudge

        quiet()
        made = Path(settings.model, ADAPTER_FILE)
        judge = trained = TrainedJudge(settings.model)
        result = measure_readings(trained.labels, rows)
    else:
        judge = choose(settings, args.cache)
        result = measure_verdicts(judge, rows)
    if made and (seen := sum(map(in_training(made), rows))):
        print(
            f"! the judge learnt from {seen} of these answers, or from some of them, if the file is as published: the "
            "figures say too much. Those of answers left out of training are in its data card, made by choreo judge "
            f"train --data FOLDER --out NEW: {card_of(made)}",
            file=sys.stderr,
        )
    blind = any(row.labeller or row.degenerate is not None for row in rows)
    if blind:
        result["agreement"] = agreement(judge, rows)
    if args.json:
        print(json.dumps(result, allow_nan=False))
        return 0
    print(f"{result['n']} answers, {_speed(result['per_second'])} a second")
    silent = sum(row.refusal is not None and row.prompt.kind == "harmful" for row in rows)
    for head in ("refusal", "harm"):
        if result[head] is None:
            print(f"{head}: no labels in this file")
        else:
            print(f"{head}: " + ", ".join(f"{name} {_figure(value)}" for name, value in result[head].items()))
    if silent and not made:
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
    from choreo.files.messages import messages_of
    from choreo.judges.base import judge_all, with_garbled
    from choreo.judges.resolve import choose, counts, describe
    from choreo.runs.episodes import verdict_record

    if args.out:
        durable.check_place(args.out)
        if args.out.exists() and not args.overwrite:
            raise BadInput(f"{args.out}: already exists; name another with --out, or give --overwrite")
    loaded = load(args.file, args.format)
    rows, judge = loaded.rows, choose(judge_from(args.judge or ["offline"]), args.cache)
    _say(_taken(args.file, loaded))
    given = judge_all(judge, [(row.prompt, row.answer) for row in rows])
    verdicts = [with_garbled(v, row.prompt, row.answer) for v, row in zip(given, rows, strict=True)]
    if args.out:
        told = (
            {
                **({"earlier": messages_of(row.prompt.earlier)} if row.prompt.earlier else {}),
                "prompt": row.prompt.text,
                "answer": row.answer,
                "kind": row.prompt.kind,
                "suite": row.prompt.suite,
                **verdict_record(verdict),
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
        ("garbled", "garbled: loops, echoes, no words"),
    ):
        print(f"{what}: {percent(result[name])}, n {result[name]['n']}")
    for reason, count in result["reasons"].items():
        print(f"  open, {reason}: {count}")
    return 0


def train(args: argparse.Namespace) -> int:
    if args.out.exists() and not args.out.is_dir():
        raise BadInput(f"{args.out}: is a file; --out names a folder")
    if args.base:
        return _finetune(args)
    from choreo.evaluation import judge_training as training

    for name, default in args.with_base.items():
        if getattr(args, name) != default:
            raise BadInput(f"judge train: --{name.replace('_', '-')} goes with --base, a language model")
    made = [args.out / name for name in (training.WEIGHTS_FILE, training.CARD_FILE)]
    for file in made:
        if file.exists() and not args.overwrite:
            raise BadInput(f"{file}: already exists; name another folder with --out, or give --overwrite")
    rows = training.read_all(args.data, _say)
    print(f"{len(rows)} answers; every figure below is of answers that were left out of training", file=sys.stderr)
    print(training.train_judge(rows, args.out, _say))
    for file in made:
        print(f"written: {file}", file=sys.stderr)
    return 0


def _finetune(args: argparse.Namespace) -> int:
    """Trains a language model to judge."""
    if not 0.02 <= args.holdout <= 0.5:
        raise BadInput(f"--holdout {args.holdout}: expected a share from 0.02 to 0.5")
    for name in ("epochs", "rank"):
        if (value := getattr(args, name)) < 1:
            raise BadInput(f"--{name} {value}: expected a whole number of 1 or more")
    if not 0 < args.lr < 1:
        raise BadInput(f"--lr {args.lr}: expected a number between 0 and 1")
    from choreo.api import quiet
    from choreo.evaluation import judge_finetuning as training
    from choreo.evaluation.judge_labels import heads, one_sided, refuse_one_sided
    from choreo.evaluation.judge_training import read_all
    from choreo.evaluation.judge_trials import trials
    from choreo.judges.trained.folder import JUDGE_FILE
    from choreo.judges.trained.question import question_of
    from choreo.runs.bar import ProgressBar
    from choreo.runs.progress import Progress

    quiet()
    if not args.overwrite:
        training.refuse_taken(args.out, args.resume)
    rows = read_all(args.data, _say)
    planned = trials(rows, args.holdout, args.leave_out, args.every_fold)
    refuse_one_sided(both := heads(rows), planned[0].train)
    for line in (f"! {trial.name}: {line}" for trial in planned for line in one_sided(both, trial.train)):
        _say(line)
    question = question_of(args.prompt_tokens, args.answer_tokens)
    how = training.Training(
        args.base, args.epochs, args.lr, args.rank, seed=args.seed, device=args.device, question=question
    )
    judging = training.Judging(how, rows)
    if args.overwrite:
        training.clear(args.out)
    _say(f"{len(rows)} answers, {len(planned[0].test)} of them held out; trainings: {len(planned)}")
    try:
        with Progress([ProgressBar()]) as progress:
            print(training.train_judge(judging, planned, args.out, progress))
    except (Interrupted, KeyboardInterrupt) as stop:
        why = f"{stop}; " if str(stop) else ""
        raise Interrupted(f"{why}go on with the same command and --resume") from None
    for name in (JUDGE_FILE, training.CARD_FILE):
        _say(f"written: {args.out / name}")
    return 0


def _taken(file: Path, loaded: Loaded[LabelledAnswer]) -> str:
    from choreo.data.reading import counted, taken

    return taken(str(file), counted(loaded) | Counter(row.prompt.kind for row in loaded.rows))


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _speed(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 10 else f"{per_second:.2g}"


def _figure(value: float | int | None) -> str:
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.3f}"
