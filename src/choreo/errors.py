"""The two ways a command ends early on purpose, which `choreo.cli` turns into exit codes; and the door by which the
errors of other libraries come in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(Exception):
    """What the user gave cannot be used (exit code 2). One line that names the file, the line and the field."""


class Interrupted(Exception):
    """The user stopped the work and its state is saved (exit code 130)."""


@contextmanager
def opening(what: str | Path, wrong: str = "") -> Iterator[None]:
    """Whatever another library raises while it opens something of the user's becomes one line about it (BadInput).

    what: the file or folder. wrong: what it means that this failed, as "cannot be read". A loader may raise anything at
    all, so everything is caught: put it closely around the calls of that library, or it would hide errors of ours.
    """
    try:
        yield
    except (BadInput, Interrupted):
        raise
    except Exception as error:
        told = isinstance(error, OSError) and error.strerror  # the file cannot be had at all
        raise BadInput(f"{what}: {'' if told or not wrong else f'{wrong}: '}{cause(error)}") from None


def cause(error: Exception, most: int = 240) -> str:
    """An error's own words in one line, or its name where it has none that say anything by themselves."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    words = " ".join(str(error).split())
    if not words or isinstance(error, (LookupError, AttributeError, TypeError, ArithmeticError, RecursionError)):
        words = f"{type(error).__name__}{f': {words}' if words else ''}"
    return words if len(words) <= most else words[: most - 1] + "…"
