"""The two ways a command ends early on purpose, which `choreo.cli` turns into exit codes; what is said of a model that
choreo cannot use; and the door by which the errors of other libraries come in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(Exception):
    """What the user gave cannot be used (exit code 2). One line that names the file, the line and the field."""


class Interrupted(Exception):
    """The user stopped the work and its state is saved (exit code 130)."""


class TooFew(ValueError):
    """There are fewer prompts than are wanted. The message says which, how many are wanted, and how many there are."""


class Unsupported(ValueError):
    """A model of a kind that choreo cannot train or run. The message names its class and says why."""


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
        raise BadInput(f"{what}: {'' if told or not wrong else f'{wrong}: '}{first_line(error)}") from None


def first_line(error: BaseException, most: int = 240) -> str:
    """What an exception of another library says, for a message of our own: its first line, at most `most` letters of
    it, as text that can be encoded. Its type where it says nothing, or nothing by itself. A line that ends in a colon
    goes on in the next."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    last = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines))
    text = " ".join(lines[: last + 1]) or "no message"
    if not lines or isinstance(error, (LookupError, AttributeError, ArithmeticError, RecursionError)):
        text = f"{type(error).__name__}: {text}"
    return (text if len(text) <= most else f"{text[: most - 1]}…").encode("utf-8", "replace").decode("utf-8")
