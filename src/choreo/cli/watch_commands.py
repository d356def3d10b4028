"""`choreo watch`: a page over run folders, live while they train. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from choreo.cli.arguments import add_command, port
from choreo.server.extra import require_server

PORT = 8020


def add(commands: Any) -> None:
    command = add_command(
        commands,
        "watch",
        watch,
        "Watch runs on a local page: figures, curves, recipes, every game",
        """\
  choreo watch                              all runs in runs/; stop with Ctrl-C
  choreo watch runs/demo                    one run, while it trains or afterwards
  choreo watch runs/table --port 0          a study's runs, on a free port
It prints the page's link, with a new key at each start (or the one in CHOREO_API_KEY). It listens on 127.0.0.1
alone, and writes nothing into a run folder. docs/watch.md.""",
    )
    command.add_argument(
        "folder",
        type=Path,
        nargs="?",
        default=Path("runs"),
        metavar="FOLDER",
        help="a run folder, or a folder with run folders in it, however deep (default: runs)",
    )
    command.add_argument(
        "--port", type=port, default=PORT, metavar="N", help=f"port (default: {PORT}; 0 takes a free one)"
    )


def watch(args: argparse.Namespace) -> int:
    require_server("watch")
    from choreo.watch.serve import serve_watch

    serve_watch(args.folder, args.port)
    return 0
