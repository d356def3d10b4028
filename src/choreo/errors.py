"""choreo's own exceptions, and `opening`, which turns errors of other libraries into them.

`choreo.cli` turns `BadInput`, `Unavailable` and `Interrupted` into exit codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class BadInput(Exception):
    """The user gave something unusable (exit code 2). The message is one line with the file, the line and the field."""


class Unavailable(BadInput):
    """What the user named is right, but not to be had now, as a run that another process writes, or a hub that is out
    of reach (exit code 1: to try again may help)."""


class Interrupted(Exception):
    """The user stopped the work and its state is saved (exit code 130)."""


class Terminated(Interrupted):
    """SIGTERM asked the work to stop, as clusters do, and its state is saved (exit code 75: queue it again)."""


class TooFew(ValueError):
    """There are too few prompts. The message says which ones, how many are needed, and how many there are."""


class Unsupported(ValueError):
    """choreo cannot train or run this kind of model. The message names its class and says why."""


@contextmanager
def opening(what: str | Path, wrong: str = "") -> Iterator[None]:
    """Turns whatever another library raises while it opens a user's file into BadInput, with one line about the file.

    what: the file or folder. wrong: what the failure means, such as "cannot be read". A loader may raise anything, so
    every exception is caught. Put only the library's own calls inside, or errors of choreo would be hidden.
    """
    try:
        yield
    except (BadInput, Interrupted):
        raise
    except Exception as error:
        unreadable = isinstance(error, OSError) and error.strerror  # the file itself cannot be read
        raise BadInput(f"{what}: {'' if unreadable or not wrong else f'{wrong}: '}{first_line(error)}") from None


def first_line(error: BaseException, most: int = 240) -> str:
    """The first line of another library's exception, for a message of ours: at most `most` letters, encodable as UTF-8.

    A line that ends with a colon is joined with the next one. The exception's type is put before a message that is
    empty or means little without it.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    last = next((i for i, line in enumerate(lines) if not line.endswith(":")), len(lines))
    text = " ".join(lines[: last + 1]) or "no message"
    if not lines or isinstance(error, (LookupError, AttributeError, ArithmeticError, RecursionError)):
        text = f"{type(error).__name__}: {text}"
    return (text if len(text) <= most else f"{text[: most - 1]}…").encode("utf-8", "replace").decode("utf-8")
