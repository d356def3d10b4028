"""How commands are declared: parsers whose errors are one line, and the types of what is typed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

from choreo.errors import BadInput

JUDGE_HELP = (
    "offline; trained:FOLDER of judge train; rubric:MODEL@URL, or another kind in its place (see below); KIND:FOLDER "
    "runs one here; file.py:NAME is your own; or a TOML file with a [judge] section. Several are a majority"
)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line.

    parts: settings of a recipe whose help lists the names that they may have here, those of installed packages too.
    """

    parts: tuple[str, ...] = ()

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def format_help(self) -> str:
        text = super().format_help()
        if not self.parts:
            return text
        names = _names_of_parts()
        lines = (f"  {setting:<20}{', '.join(names[setting])}" for setting in self.parts)
        return "\n".join([f"{text}\nnames, beside file.py:NAME of your own:", *lines]) + "\n"

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("choreo").strip()
        raise BadInput(f"{f'{command}: ' if command else ''}{message} ({self.prog} --help)")


def add_command(
    under: Any, name: str, run: Callable[[argparse.Namespace], int], line: str, examples: str
) -> argparse.ArgumentParser:
    """A command: `run` gets what was typed and returns the exit code. line: what it does; examples: for its help."""
    command: argparse.ArgumentParser = under.add_parser(
        name, help=line, description=f"{line}.", epilog=f"examples:\n{examples}"
    )
    command.set_defaults(command=run)
    return command


def add_group(under: Any, name: str, line: str, description: str, examples: str) -> Any:
    """A command that has commands of its own."""
    group = under.add_parser(name, help=line, description=description, epilog=f"examples:\n{examples}")
    return group.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)


def check_resume(args: argparse.Namespace, command: str) -> None:
    """Raises BadInput where --resume is given without the folder that --out has to name."""
    if args.resume and args.out is None:
        raise BadInput(f"{command}: --resume goes on in a folder; name it with --out DIR")


def list_parts(command: argparse.ArgumentParser, *settings: str) -> None:
    """Lets the command's help list the names that these settings may have. Without settings: all that have names."""
    if isinstance(command, Parser):
        command.parts = settings or ("method", "environment", "judge.kind", "learning.estimator")


def _names_of_parts() -> dict[str, list[str]]:
    from choreo.config.judge import RULES
    from choreo.config.parts import ATTACKS, ENVIRONMENTS, ESTIMATORS, JUDGES
    from choreo.config.reading import METHODS

    return {
        "method": METHODS.names(),
        "environment": ENVIRONMENTS.names(),
        "judge.kind": [*RULES, *JUDGES.names(), "majority"],
        "learning.estimator": ESTIMATORS.names(),
        "--attack": ATTACKS.names(),
    }


def json_option(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def set_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable"
    )


def seeds(text: str) -> tuple[int, ...]:
    ends = [tuple(map(int, part.split("-"))) if "-" in part.strip("-") else (int(part),) for part in text.split(",")]
    found = tuple(seed for first, *last in ends for seed in range(first, (last or [first])[-1] + 1))
    if min(found, default=-1) < 0 or len(set(found)) < len(found):
        raise argparse.ArgumentTypeError(f"expected different whole numbers >= 0 such as 0,1,2, got {text!r}")
    return found


def count(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return number


def natural(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return number


def seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text}: must be more than 0 seconds and less than a day")
    return value


def above_zero(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text!r}")
    return value


def share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and at most 1, got {text!r}")
    return value


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text}: expected a port, 0 to 65535")
    return value


# What argparse calls a value that it cannot read.
seeds.__name__, count.__name__, natural.__name__ = "list of seeds", "whole number", "whole number"
above_zero.__name__, share.__name__ = "number", "share"
