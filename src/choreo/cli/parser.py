"""What may be typed. Each module of commands declares its own, with help that teaches by example."""

from __future__ import annotations

import argparse
from typing import NoReturn

import choreo
from choreo.cli import (
    arena_commands,
    attack_commands,
    bench_commands,
    data_commands,
    eval_commands,
    judge_commands,
    recipe_commands,
    serve_commands,
    study_commands,
    swarm_commands,
    train_commands,
    watch_commands,
    world_commands,
)
from choreo.cli.arguments import Parser

# In the order in which --help lists them.
MODULES = (
    train_commands,
    recipe_commands,
    watch_commands,
    eval_commands,
    attack_commands,
    study_commands,
    world_commands,
    data_commands,
    judge_commands,
    arena_commands,
    swarm_commands,
    serve_commands,
    bench_commands,
)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"choreo {choreo.__version__}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    root = Parser(
        prog="choreo",
        description="Train language-model agents to align each other.",
        epilog="""examples:
  choreo train waltz                      train a conversation and a feedback agent together
  choreo train waltz --set seed=1         the same with another seed
  choreo train --resume runs/demo         go on exactly where a run stopped
  choreo watch                            a local page: runs while they train, with all their games
  choreo eval runs/demo --suite heldout   measure ASR, ORR and FTR again
  choreo study waltz-table                every system of the paper's main table, over several seeds
  choreo world sample                     look at the small world the default trains in
  choreo swarm run strict_governance      simulate agents under governance, on SWARM""",
    )
    root.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)

    for module in MODULES:
        module.add(commands)
    return root
