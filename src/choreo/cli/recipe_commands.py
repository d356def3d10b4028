"""`choreo recipe`: what recipes say. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import Any

from choreo.cli.arguments import add_command, set_option
from choreo.cli.output import show_file
from choreo.errors import BadInput

INDENT = "    "


def add(commands: Any) -> None:
    command = add_command(
        commands,
        "recipe",
        recipe,
        "List the shipped recipes, print all settings of one, or compare two",
        """\
  choreo recipe                                  the shipped recipes, and what each is for
  choreo recipe waltz                            every setting, with its value and its meaning
  choreo recipe macpo --set rounds.count=5 > mine.toml; choreo train mine.toml
  choreo recipe waltz --against waltz-published  the settings in which two recipes differ
  choreo recipe runs/a --against runs/b          and two runs""",
    )
    command.add_argument(
        "recipe", nargs="?", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe (default: list them)"
    )
    set_option(command)
    command.add_argument("--against", metavar="RECIPE", help="print the settings in which this one differs")


def recipe(args: argparse.Namespace) -> int:
    from choreo import config
    from choreo.config.checking import shown
    from choreo.files import toml
    from choreo.text.tables import plain_columns

    if args.recipe is None:
        if args.set or args.against:
            raise BadInput("recipe: --set and --against go with a recipe; name one")
        for name in config.shipped_names():
            print(name)
            print(textwrap.fill(config.purpose(name), 100, initial_indent=INDENT, subsequent_indent=INDENT))
        return 0
    one = config.load(_file(args.recipe), args.set)
    if args.against is None:
        show_file(config.to_toml(one))
        return 0
    other = config.load(_file(args.against))
    told = [{".".join(keys): shown(value) for keys, value in toml.leaves(r.model_dump()).items()} for r in (one, other)]
    rows = [(name, *(settings.get(name, "-") for settings in told)) for name in config.differences(one, other)]
    heads = ("setting", args.recipe, args.against)
    print(plain_columns([heads, *rows]) if rows else "the two recipes have the same settings")
    return 0


def _file(named: str) -> str:
    """The recipe file that is meant: of a run folder its own."""
    file = Path(named, "recipe.toml")
    return str(file) if file.is_file() else named
