"""`choreo serve` and `choreo key`. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from choreo.errors import BadInput

# Held to `server.session` by a test; importing that would load what --help must not.
MODES = ("adaptive", "always", "off", "shadow")
OPENABLE = ("feedback", "timeout", "unparsable")


def options(command: argparse.ArgumentParser) -> None:
    def option(name: str, text: str, **more: Any) -> None:
        command.add_argument(name, help=text, **more)

    option("run", "a run folder of choreo train waltz", type=Path, metavar="RUN", nargs="?")
    for agent in ("conversation", "feedback"):
        text = f"the {agent} agent is MODEL behind an OpenAI-compatible server, its key in CHOREO_{agent.upper()}_KEY"
        option(f"--{agent}", text, metavar="MODEL@URL")
    modes = "adaptive: revise what is flagged (default); always: revise every answer; off: no feedback; shadow: decide "
    option("--mode", modes + "and log, change nothing", choices=MODES, default="adaptive")
    option("--host", "default: 127.0.0.1, this machine alone", default="127.0.0.1", metavar="ADDRESS")
    option("--port", "default: 8000; 0 takes a free one", type=_port, default=8000, metavar="N")
    keys = "API keys, hashed (choreo key NAME); without it, one key, from CHOREO_API_KEY or drawn at the start"
    option("--keys", keys, type=Path, metavar="FILE")
    option("--model", "what clients call it (default: the run folder's name)", metavar="NAME")
    opened = "let the draft pass unchecked when this fails: feedback, timeout or unparsable; repeatable"
    option("--open", f"{opened} (default: withhold it)", action="append", default=[], choices=OPENABLE, dest="opened")
    option("--deadline", "seconds for a whole request (default: 30)", type=_seconds, default=30.0, metavar="S")
    option("--queue", "requests in play at most (default: 256)", type=_count, default=256, metavar="N")
    option("--body-limit", "default: 262144", type=_count, default=262144, metavar="BYTES")
    option("--log-text", "write users' and agents' words into the log", action="store_true")


def serve(args: argparse.Namespace) -> int:
    require("serve")
    if args.run is not None:
        from choreo.runs.folder import read_info

        read_info(args.run)
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()
    from choreo.server.run import Options, serve

    agents = {"conversation": args.conversation, "feedback": args.feedback}
    serve(
        Options(
            run=args.run,
            upstream={agent: where for agent, where in agents.items() if where},
            host=args.host,
            port=args.port,
            mode=args.mode,
            model=args.model,
            keys=args.keys,
            opened=frozenset(args.opened),
            deadline=args.deadline,
            queue=args.queue,
            body=args.body_limit,
            log_text=args.log_text,
        )
    )
    return 0


def bench(args: argparse.Namespace) -> int:
    require("bench serve")
    if args.run is None:
        raise BadInput("bench serve: give a run (choreo bench --help)")
    from choreo.server.bench import bench, bench_table

    found = bench(args.run, args.requests, args.clients)
    if args.json:
        from choreo.files.durable import finite

        print(json.dumps(finite(found), allow_nan=False))
    else:
        print(bench_table(found))
    return 0


def key(args: argparse.Namespace) -> int:
    require("key")
    import re

    from choreo.cli.commands import show_file
    from choreo.server.keys import entry, new_key

    if not re.fullmatch(r"[\w.-]{1,64}", args.name):
        raise BadInput(f"key {args.name!r}: a name has letters, digits, and . _ - alone")
    secret = new_key()
    show_file(entry(args.name, secret))
    print(f"the key, shown this once: {secret}", file=sys.stderr)
    return 0


def require(command: str) -> None:
    """Raises BadInput, with how to install them, where the packages of choreo-rl[serve] are missing."""
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client", "httpx2") if not _found(name)]
    if missing:
        raise BadInput(f"{command}: needs {', '.join(missing)}: pip install 'choreo-rl[serve]'")


def _found(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 86400:
        raise argparse.ArgumentTypeError(f"{text}: must be more than 0 seconds and less than a day")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**16:
        raise argparse.ArgumentTypeError(f"{text}: expected a port, 0 to 65535")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return value
