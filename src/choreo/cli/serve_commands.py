"""`choreo serve` and `choreo key`. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from choreo.cli.arguments import add_command, count, port, seconds
from choreo.cli.output import show_file
from choreo.errors import BadInput
from choreo.server.extra import require_server

# Held to `server.session` by a test; importing that would load what --help must not.
MODES = ("adaptive", "always", "off", "shadow")
OPENABLE = ("feedback", "timeout", "unparsable")
SYSTEM_POLICIES = ("refuse", "prepend", "train")
RELEASES = ("whole", "segment")


def add(commands: Any) -> None:
    serve_command = add_command(
        commands,
        "serve",
        serve,
        "Serve a trained pair behind OpenAI's API, and a page to try it",
        """\
  choreo serve runs/demo                              http://127.0.0.1:8000, with a new key at each start
  choreo serve runs/demo --mode shadow                review and log, change nothing
  choreo serve runs/demo --host 0.0.0.0 --keys keys.toml
  choreo serve --conversation qwen3:8b@http://localhost:11434/v1 --feedback guard@http://localhost:8000/v1
  kill -HUP PID                                       load the run's newest checkpoint, dropping no request
docs/serving.md says what is supported, what is refused, and what is secure by default.""",
    )
    _options(serve_command)

    key_command = add_command(
        commands,
        "key",
        key,
        "Draw an API key, and print its entry for a keys file",
        """\
  choreo key alice >> keys.toml""",
    )
    key_command.add_argument("name", metavar="NAME", help="the name of its holder, for logs and metrics")


def _options(command: argparse.ArgumentParser) -> None:
    def option(name: str, text: str, **more: Any) -> None:
        command.add_argument(name, help=text, **more)

    option(
        "run",
        "a run folder of choreo train waltz, or the name of a pair that ships",
        type=Path,
        metavar="RUN",
        nargs="?",
    )
    for agent in ("conversation", "feedback"):
        text = f"a model on an OpenAI-compatible server as the {agent} agent; API key: CHOREO_{agent.upper()}_KEY"
        option(f"--{agent}", text, metavar="MODEL@URL")
    modes = "adaptive: revise flagged answers (default); always: revise every answer; off: no feedback; shadow: review "
    option("--mode", modes + "and log, change nothing", choices=MODES, default="adaptive")
    option(
        "--host",
        "address to listen on (default: 127.0.0.1, this machine alone)",
        default="127.0.0.1",
        metavar="ADDRESS",
    )
    option("--port", "port (default: 8000; 0 takes a free one)", type=port, default=8000, metavar="N")
    keys = "hashed API keys (from choreo key NAME); without it, one key: CHOREO_API_KEY, or a new one at each start"
    option("--keys", keys, type=Path, metavar="FILE")
    option("--model", "the model name for clients (default: the run folder's name)", metavar="NAME")
    opened = "let the answer pass unreviewed when this fails: feedback, timeout or unparsable; repeatable"
    option("--open", f"{opened} (default: withhold it)", action="append", default=[], choices=OPENABLE, dest="opened")
    system = (
        "system messages of callers. refuse: HTTP 400; prepend: append them to the conversation agent's own system "
        "prompt, and show them to the reviewer; train: the same, in the form that the run was trained with (default: "
        "train for a run that was trained with some, refuse for other runs, prepend for an agent behind a server)"
    )
    option("--system", system, choices=SYSTEM_POLICIES)
    release = "when a checked stream is sent. whole: after its game (default); segment: part by part, each after "
    left = "a review of the answer so far that does not call it unsafe; what was sent is not repaired"
    option("--release", release + left, choices=RELEASES, default="whole")
    option("--deadline", "seconds for a whole request (default: 30)", type=seconds, default=30.0, metavar="S")
    option("--queue", "answers in progress at most (default: 256)", type=count, default=256, metavar="N")
    option(
        "--body-limit",
        "the size of a request's body at most (default: 262144)",
        type=count,
        default=262144,
        metavar="BYTES",
    )
    option(
        "--set",
        "let llama.cpp's server sample: engine.rollouts=llama.cpp and engine.url=URL (docs/llama-cpp.md)",
        action="append",
        default=[],
        metavar="KEY=VALUE",
    )
    option("--log-text", "write users' and agents' words into the log", action="store_true")


def serve(args: argparse.Namespace) -> int:
    require_server("serve")
    if args.run is not None:
        from choreo.api import quiet
        from choreo.runs.folder import read_info
        from choreo.runs.shipped import placed

        args.run = placed(args.run)
        read_info(args.run)
        quiet()
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
            system=args.system,
            release=args.release,
            overrides=args.set,
        )
    )
    return 0


def key(args: argparse.Namespace) -> int:
    require_server("key")
    import re

    from choreo.server.keys import entry, new_key

    if not re.fullmatch(r"[\w.-]{1,64}", args.name):
        raise BadInput(f"key {args.name!r}: a name has letters, digits, and . _ - alone")
    secret = new_key()
    show_file(entry(args.name, secret))
    print(f"the key, shown this once: {secret}", file=sys.stderr)
    return 0
