"""`choreo train`, `plan`, `export` and `report`. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import json
import signal
from pathlib import Path
from typing import Any

from choreo.cli.arguments import above_zero, add_command, count, json_option, list_parts, set_option, share
from choreo.cli.output import print_result, say
from choreo.errors import BadInput, Interrupted, Terminated


def add(commands: Any) -> None:
    train_command = add_command(
        commands,
        "train",
        train,
        "Run a recipe into a run folder, and write its report",
        """\
  choreo train waltz                              a shipped recipe, by name
  choreo train mine.toml --run runs/mine          your own recipe, into a folder that you name
  choreo train waltz --set learning.steps=20 --set world.languages='["en"]'
  choreo train --resume runs/mine                 after Ctrl-C, SIGTERM (exit code 75), a crash or a kill
  choreo train waltz --processes 2                with two processes that share the work
  torchrun --nproc-per-node 8 -m -- choreo train mine.toml --run runs/mine   the same, by PyTorch's own command
  choreo train mine.toml --cluster auto           on the machines of the Ray cluster that this one belongs to
choreo recipe lists the shipped recipes, and prints all settings of one.
Paths in a recipe are relative to where the command runs. A run folder's recipe.toml lists every setting, with
absolute paths, and can be trained again.""",
    )
    train_command.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe"
    )
    set_option(train_command)
    train_command.add_argument("--run", type=Path, metavar="DIR", help="the run folder (default: runs/NAME-TIME)")
    train_command.add_argument("--resume", type=Path, metavar="RUN", help="go on with an unfinished run, exactly")
    train_command.add_argument(
        "--processes",
        type=count,
        metavar="N",
        help="ranks on this machine: one for each GPU or few cores; the result is that of one process (default: 1)",
    )
    train_command.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="run ranks on a Ray cluster, whose machines see the run folder: auto, or host:port; N ranks with "
        "--processes N, else one for every GPU or machine. A lost rank is replaced",
    )
    train_command.add_argument("--overwrite", action="store_true", help="replace the run that is in the run folder")
    json_option(train_command)
    list_parts(train_command)

    plan_command = add_command(
        commands,
        "plan",
        plan,
        "Say what memory, steps and tokens a recipe needs, without loading it",
        """\
  choreo plan mine.toml                           parameters, memory, steps, tokens, and whether it fits
  choreo plan mine.toml --memory 80               on a device with 80 GiB, which need not be in this machine
  choreo plan mine.toml --set model.train=full
  choreo bench machine --out machine.json; choreo plan mine.toml --machine machine.json      also the time, on this CPU
  choreo plan mine.toml --gpus 4 --memory 80 --peak 989 --bandwidth 3350 --utilisation .4 --link 450 --price 2
A plan refuses what train refuses, except errors that only weights or servers show. It assumes nothing about a card:
without its figures it gives no time. Each server that the recipe names counts as one more card.
A model's configuration is enough: a folder with a config.json (--set model.base=DIR), or a name on the hub. A GGUF
file, or smollm2, is converted first, once. Files of prompts must be there, as for train.""",
    )
    plan_command.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    set_option(plan_command)
    add = plan_command.add_argument
    add("--memory", type=above_zero, metavar="GIB", help="memory of the device (default: that of this machine)")
    add(
        "--gpus",
        type=count,
        default=1,
        metavar="N",
        help="devices that train on each machine, one rank each (default: 1)",
    )
    add("--nodes", type=count, default=1, metavar="M", help="machines (default: 1)")
    add("--machine", type=Path, metavar="FILE", help="the speed of a device, as choreo bench machine measured it")
    add(
        "--peak",
        type=above_zero,
        metavar="TFLOPS",
        help="peak of a card: matrix products in the recipe's dtype, in 10^12/s",
    )
    add(
        "--utilisation",
        type=share,
        metavar="SHARE",
        help="the share of that peak that a pass reaches: your estimate, in (0, 1]",
    )
    add(
        "--bandwidth",
        type=above_zero,
        metavar="GB/S",
        help="speed at which a card reads its memory; it bounds sampling",
    )
    add(
        "--link",
        type=above_zero,
        metavar="GB/S",
        help="speed at which a rank sends to the others; the slowest hop counts",
    )
    add(
        "--price",
        type=above_zero,
        metavar="PRICE",
        help="price of a device for an hour, in any currency (default: none)",
    )
    add(
        "--written",
        type=share,
        default=1.0,
        metavar="SHARE",
        help="mean share of their token limit that turns use, in (0, 1] (default: 1)",
    )
    json_option(plan_command)
    list_parts(plan_command)

    export_command = add_command(
        commands,
        "export",
        export,
        "Write a run's agents for transformers, PEFT, vLLM and llama.cpp",
        """\
  choreo export runs/mine --out exported                     what was trained: adapters, or whole models
  choreo export runs/mine --out exported --merged            adapters added to their base
  choreo export runs/macpo --out exported --agent student+
  choreo export runs/mine --out exported --gguf              for llama.cpp's server (docs/llama-cpp.md)
  choreo export runs/mine --out exported --push me/pair      also to the hub, into a repository that is private at first
Each agent gets a folder with a model card. For WaltzRL, protocol.json beside them has the prompts of the game.""",
    )
    export_command.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    export_command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it is written")
    export_command.add_argument("--agent", metavar="NAME", help="only this agent (default: both, or MACPO's student)")
    export_command.add_argument(
        "--push", metavar="OWNER/NAME", help="push the export to the Hugging Face hub (HF_ENDPOINT)"
    )
    form = export_command.add_mutually_exclusive_group()
    form.add_argument("--merged", action="store_true", help="whole models")
    form.add_argument("--adapter", action="store_true", help="adapters, which need their base")
    form.add_argument(
        "--gguf", action="store_true", help="a pair for llama.cpp's server: GGUF of its base and adapters"
    )
    json_option(export_command)

    report_command = add_command(
        commands,
        "report",
        report,
        "Write the report of a run, finished or not, and print where it is",
        """\
  choreo report runs/demo""",
    )
    report_command.add_argument("run", type=Path, metavar="RUN", help="a run folder")


def train(args: argparse.Namespace) -> int:
    if (args.recipe is None) == (args.resume is None):
        both = "not both" if args.recipe else "choreo train --help"
        raise BadInput(f"train: give a recipe, or --resume RUN ({both})")
    if args.resume and (args.set or args.run or args.overwrite):
        raise BadInput("train: --resume goes on exactly as before; --set, --run and --overwrite do not go with it")
    if args.cluster or (args.processes or 1) > 1:
        return _train_in_ranks(args)
    from choreo import parallel

    def before_a_run(*_: object) -> None:  # no state is there to save; a run takes SIGTERM over (`Progress`)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Slurm may send it twice
        raise _TerminatedEarly

    before = signal.signal(signal.SIGTERM, before_a_run)
    try:
        with parallel.joined():
            return _train(args)
    except _TerminatedEarly:
        raise Terminated("no step was in hand") from None
    finally:
        signal.signal(signal.SIGTERM, before)


def _train_in_ranks(args: argparse.Namespace) -> int:
    """The recipe is read here first: what is wrong with it is said once, and before a cluster is asked for room."""
    from choreo import api, config

    if not args.resume:
        recipe = config.load(args.recipe, args.set)
        args.run = args.run or api.new_folder(recipe.name)
    run = args.resume or args.run
    if args.cluster:
        from choreo.cli.cluster import run_in_cluster

        return run_in_cluster(args.cluster, args.processes or 0, _for_ranks(args), run, args.json)
    from choreo.cli.ranks import run_in_ranks

    return run_in_ranks(args.processes, _for_ranks(args), run)


class _TerminatedEarly(KeyboardInterrupt):
    """SIGTERM while nothing runs yet. No Exception, so that no library that is being loaded takes it for its own."""


def _for_ranks(args: argparse.Namespace) -> list[str]:
    """The words of the command that every rank runs."""
    words = ["train", *([args.recipe] if args.recipe else ["--resume", str(args.resume)])]
    words += [word for setting in args.set or () for word in ("--set", setting)]
    words += ["--run", str(args.run)] if args.run else []
    return words + ["--overwrite"] * args.overwrite + ["--json"] * args.json


def _train(args: argparse.Namespace) -> int:
    from choreo import api, config, parallel
    from choreo.files.json_file import read_object
    from choreo.judges.base import JudgeDown, JudgesPart
    from choreo.runs.bar import ProgressBar
    from choreo.runs.folder import is_finished, read_info
    from choreo.runs.json_lines import JsonLines, wanted

    if args.resume:
        folder = args.resume
        if is_finished(folder):
            read_info(folder)
            say(f"{folder} is finished; nothing to do")
            if not (folder / "report.html").is_file():  # the run was killed just before it was written
                from choreo.experiment.report import write_report

                parallel.first(lambda: write_report(folder))
            # Its recipe is not read: a part of the user's own that it names may be gone by now.
            return print_result(read_object(folder / "summary.json"), args.json) if parallel.rank() == 0 else 0
    else:
        recipe = config.load(args.recipe, args.set)
        folder = args.run or api.new_folder(recipe.name)
    shown = JsonLines(folder) if wanted() else ProgressBar()
    try:
        if args.resume:
            run = api.resume(folder, [shown])
        else:
            run = api.train(recipe, folder, [shown], overwrite=args.overwrite)
    except _TerminatedEarly:
        raise
    except (Interrupted, KeyboardInterrupt) as stop:
        # Judges that went away or parted have more to say than that the user stopped. Before a run there is no hint.
        why = [str(stop)] if isinstance(stop, JudgeDown | JudgesPart) else []
        kind = Terminated if isinstance(stop, Terminated) else Interrupted
        raise kind("; ".join([*why, *getattr(stop, "__notes__", [])])) from None
    say(f"report: {run.report}")
    if isinstance(shown, JsonLines) and parallel.rank() == 0:
        shown.on_summary(run.summary)
    return print_result(run.summary, args.json) if parallel.rank() == 0 else 0


def plan(args: argparse.Namespace) -> int:
    from choreo import api
    from choreo.experiment import machine, planning

    card = {"--peak": args.peak, "--utilisation": args.utilisation, "--bandwidth": args.bandwidth}
    given = [name for name, value in card.items() if value is not None]
    if args.machine and given:
        raise BadInput(f"plan: --machine was measured, and {given[0]} is said; give one of them")
    if given and len(given) < len(card):
        missing = next(name for name in card if name not in given)
        raise BadInput(f"plan: {given[0]} goes with {missing}; nothing is assumed of a card")
    if args.link and not (given or args.machine):
        raise BadInput("plan: --link goes with --machine, or with --peak, --utilisation and --bandwidth")
    described: Any = args.machine
    if given:
        link = args.link * 1e9 if args.link else None
        described = machine.said(args.peak * 1e12, args.utilisation, args.bandwidth * 1e9, link)
    found = api.plan(
        args.recipe,
        args.memory,
        overrides=args.set,
        gpus=args.gpus,
        nodes=args.nodes,
        machine=described,
        link=args.link,
        price=args.price,
        written=args.written,
    )
    print(json.dumps(found) if args.json else planning.tell(found))
    return 0


def export(args: argparse.Namespace) -> int:
    from choreo import api
    from choreo.runs.bar import ProgressBar

    merged = True if args.merged else False if args.adapter else None
    shown = [ProgressBar()]
    folders = api.export(args.run, args.out, args.agent, merged, shown, push=args.push, gguf=args.gguf)
    print(json.dumps({"written": list(map(str, folders))}) if args.json else "\n".join(map(str, folders)))
    return 0


def report(args: argparse.Namespace) -> int:
    from choreo.runs.folder import read_info

    if read_info(args.run).get("method") == "attack":
        from choreo.attacks.report import write_attack_report

        print(write_attack_report(args.run))
        return 0
    from choreo.experiment.report import write_report

    print(write_report(args.run))
    return 0
