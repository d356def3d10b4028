"""`choreo world`: the microworld. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from choreo.cli.arguments import add_command, add_group, count, json_option, natural, seeds, set_option
from choreo.cli.output import print_json, print_result
from choreo.errors import BadInput, Interrupted, TooFew


def add(commands: Any) -> None:
    worlds = add_group(
        commands,
        "world",
        "Look at the microworld, or make its base model again",
        "The microworld: a small language, an exact judge and small models, so that training needs no GPU.",
        "  choreo world sample\n  choreo world pretrain --out bases/mine",
    )
    sample_command = add_command(
        worlds,
        "sample",
        sample,
        "Print prompts, good and bad answers to them, and the judge's verdicts",
        """\
  choreo world sample
  choreo world sample --suite adversarial_harmful --language es --count 3""",
    )
    sample_command.add_argument("--suite", metavar="NAME", help="one suite only (default: all)")
    sample_command.add_argument("--language", choices=("en", "es", "de"), help="one language only (default: all)")
    sample_command.add_argument("--count", type=count, default=2, help="prompts per suite (default: 2)")
    sample_command.add_argument("--seed", type=int, default=0, help="another seed draws other prompts (default: 0)")

    pretrain_command = add_command(
        worlds,
        "pretrain",
        pretrain,
        "Train a base of the microworld from nothing",
        """\
  choreo world pretrain --out bases/mine
  choreo world pretrain --out bases/mine --resume     after Ctrl-C, a crash or a kill
  choreo train waltz --set model.base=bases/mine""",
    )
    pretrain_command.add_argument(
        "--size",
        metavar="NAME",
        help="micro-llama (default), coins-llama, nano-llama, nano-qwen, nano-neox; weak-llama, weak-qwen, weak-neox",
    )
    pretrain_command.add_argument("--seed", type=int, help="another seed makes another base (default: 0)")
    pretrain_command.add_argument("--steps", type=count, help="batches of about 7,000 tokens (default: as shipped)")
    pretrain_command.add_argument(
        "--resume", action="store_true", help="go on with the training that was stopped in DIR"
    )
    pretrain_command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the base is written")
    pretrain_command.add_argument("--overwrite", action="store_true", help="replace what is there")

    calibrate_command = add_command(
        worlds,
        "calibrate",
        calibrate,
        "Measure a base on held-out prompts, before any training",
        """\
  choreo world calibrate
  choreo world calibrate --base bases/mine --json""",
    )
    calibrate_command.add_argument("--base", default="micro-llama", metavar="NAME", help="a shipped base, or a folder")
    calibrate_command.add_argument(
        "--split-seed", type=natural, default=0, metavar="N", help="the split into training and held-out (default: 0)"
    )
    calibrate_command.add_argument(
        "--dialogues", type=natural, default=0, metavar="N", help="dialogues per suite of dialogues (default: none)"
    )
    json_option(calibrate_command)

    w2s_command = add_command(
        worlds,
        "w2s",
        w2s,
        "Before any MACPO, measure whether weak teachers leave a strong student something to gain",
        """\
  choreo world w2s
  choreo world w2s --set data.prompts=1000 --seeds 20 --json
Ten gates: is there a gap, can the student recognise it, do teachers err in different ways? Exit code 1 if one is not
met. Measure on seeds that no result uses.""",
    )
    w2s_command.add_argument(
        "recipe", nargs="?", default="macpo", metavar="RECIPE", help="a recipe of MACPO: bases, labels, prompts, rates"
    )
    set_option(w2s_command)
    w2s_command.add_argument(
        "--seeds", type=seeds, default=(20, 21), metavar="N,M-K", help="seeds of labels and splits (default: 20,21)"
    )
    w2s_command.add_argument(
        "--out", type=Path, metavar="FILE", help="keep each seed's measures here, and do not measure those again"
    )
    json_option(w2s_command)


def sample(args: argparse.Namespace) -> int:
    from choreo.environments.microworld.suites import DIALOGUES, SUITES

    if args.suite is not None and args.suite not in (known := (*SUITES, *DIALOGUES)):
        raise BadInput(f"world sample: no suite {args.suite!r}; there are {', '.join(known)}")
    from choreo.environments.microworld.show import sample_text

    try:
        print(sample_text(suite=args.suite, language=args.language, count=args.count, seed=args.seed))
    except TooFew as error:
        raise BadInput(f"world sample: {error}") from None
    return 0


def pretrain(args: argparse.Namespace) -> int:
    from choreo.environments.microworld.pretrain import REPORT_EVERY, SIZES, STATE, pretrain
    from choreo.runs.bar import ProgressBar
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
    with Progress([ProgressBar()]) as progress:

        def report(figures: Mapping[str, float]) -> None:
            if figures["step"] - figures["first"] <= REPORT_EVERY:
                progress.start("pretraining", int(figures["steps"]), int(figures["first"]))
            progress.advance(int(figures["step"]), {"loss": figures["loss"], "tokens/s": figures["tokens_per_second"]})
            if progress.interrupted:
                raise Interrupted(f"go on with: choreo world pretrain --out {args.out} --resume")

        pretrain(args.out, **given, resume=args.resume, report=report)
    return 0


def calibrate(args: argparse.Namespace) -> int:
    from choreo.api import quiet
    from choreo.experiment.calibrate import calibrate

    quiet()
    return print_result(calibrate(args.base, args.split_seed, dialogues=args.dialogues), args.json)


def w2s(args: argparse.Namespace) -> int:
    from choreo import config
    from choreo.api import quiet
    from choreo.experiment.weak_to_strong import weak_to_strong
    from choreo.methods.macpo.recipe import MacpoRecipe
    from choreo.runs.bar import ProgressBar
    from choreo.runs.progress import Progress

    recipe = config.load(args.recipe, args.set)
    if not isinstance(recipe, MacpoRecipe):
        raise BadInput(f"world w2s: {args.recipe} is a recipe of {recipe.method}; expected one of macpo")
    quiet()
    with Progress([ProgressBar()]) as progress:
        found = weak_to_strong(recipe, args.seeds, progress, args.out)
    if args.json:
        print_json(found)
    else:
        print("\n".join(_gate(gate) for gate in found["gates"]))
    return 0 if all(gate["passes"] for gate in found["gates"]) else 1


def _gate(gate: Mapping[str, Any]) -> str:
    bound = f"at least {gate['least']:g}" if gate["least"] is not None else f"at most {gate['most']:g}"
    return f"{'met    ' if gate['passes'] else 'NOT met'} {gate['value']:7.3f}  {bound:<14} {gate['words']}"
