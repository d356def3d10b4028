"""The command line.

Exit codes: 0 done, 1 failed (one line where to try again may help), 2 bad input (one line on the error stream), 130
interrupted (state saved), 75 the same by SIGTERM in `train`: a cluster's queue may start the command again.
Results go to standard output, progress to the error stream.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence

from choreo.cli.output import say
from choreo.cli.parser import parser
from choreo.errors import BadInput, Interrupted, Terminated, Unavailable
from choreo.files import utf8


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code. An error that is nobody's input keeps its traceback (code 1)."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that has no "–" gets \\u2013, as the error stream does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        words = sys.argv[1:] if argv is None else argv
        for word in words:
            if not utf8.is_text(word):  # Python reads a byte that is not UTF-8 as half a surrogate pair
                raise BadInput(f"{utf8.printable(word)!r}: is not UTF-8")
        args = parser().parse_args(words)
        code = args.command(args) or 0
        sys.stdout.flush()  # here, where a reader that is gone is no error
        return code
    except BrokenPipeError:
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has enough, as in `choreo recipe waltz | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 128 + signal.SIGPIPE
        raise
    except BadInput as error:
        say("choreo: " + str(error).replace("\n", "\\n"), "error")  # one line, whatever the user typed
        return 1 if isinstance(error, Unavailable) else 2
    except (Interrupted, KeyboardInterrupt) as stop:
        terminated = isinstance(stop, Terminated)
        say(f"choreo: {'terminated' if terminated else 'interrupted'}{f'; {stop}' if str(stop) else ''}", "warning")
        return os.EX_TEMPFAIL if terminated else 130
