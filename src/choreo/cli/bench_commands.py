"""`choreo bench`: times training beside other libraries, a server, or this machine's processor."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from choreo.cli.arguments import add_command, count, json_option
from choreo.cli.output import print_json
from choreo.errors import BadInput
from choreo.server.extra import require_server

BASES = ("micro-llama", "smollm2")  # those that benchmarks/run.py times
WORK = ("policy", "dpo", "score", "waltz", "joint")  # what benchmarks/run.py times


def add(commands: Any) -> None:
    bench_command = add_command(
        commands,
        "bench",
        bench,
        "Time choreo side by side with TRL and CoMLRL on the same work, or time a server, or this CPU",
        """\
  make bench                               installs TRL and CoMLRL beside choreo, then runs this
  choreo bench --json
  choreo bench --base smollm2              a chat model of 135M parameters, with LoRA
  choreo bench --base smollm2 --work dpo   one piece of work alone
  choreo bench --work joint                two agents that learn together, beside CoMLRL
  choreo bench serve runs/demo --json      throughput, latency and FTR, by mode and traffic
  choreo bench serve runs/mine --requests 64 --clients 16 --tokens 128
  choreo bench machine --out machine.json  this CPU's rates, for choreo plan --machine; takes about ten seconds""",
    )
    bench_command.add_argument(
        "what", nargs="?", choices=("train", "serve", "machine"), default="train", help="what to time (default: train)"
    )
    bench_command.add_argument(
        "--base", choices=BASES, default=BASES[0], help=f"train: the model (default: {BASES[0]})"
    )
    bench_command.add_argument(
        "--work",
        choices=WORK,
        action="append",
        help="train: a step of GRPO (policy), DPO, WaltzRL or MAGRPO (joint), or a reference's scores;"
        " repeatable (default: all)",
    )
    bench_command.add_argument("run", nargs="?", type=Path, metavar="RUN", help="serve: a run folder")
    bench_command.add_argument(
        "--requests", type=count, default=512, metavar="N", help="serve: requests in each turn (default: 512)"
    )
    bench_command.add_argument(
        "--tokens", type=count, metavar="N", help="serve: tokens of an answer at most (default: as in training)"
    )
    bench_command.add_argument(
        "--clients", type=count, default=32, metavar="N", help="serve: clients at once (default: 32)"
    )
    bench_command.add_argument("--out", type=Path, metavar="FILE", help="machine: a new file for the measured rates")
    json_option(bench_command)


def bench(args: argparse.Namespace) -> int:
    if args.out is not None and args.what != "machine":
        raise BadInput(f"bench {args.what}: --out goes with bench machine alone")
    if args.what == "serve":
        return _bench_server(args)
    if args.run is not None:
        raise BadInput(f"bench {args.what}: takes no run; it works on its own")
    if args.what == "machine":
        return _bench_machine(args)
    script = Path(__file__).resolve().parents[3] / "benchmarks" / "run.py"
    if not script.is_file():
        raise BadInput("bench: the benchmarks come with the source; run this from a checkout")
    command = [sys.executable, str(script), "--base", args.base, *(f"--work={work}" for work in args.work or ())]
    return subprocess.run([*command, *(["--json"] if args.json else [])], check=False).returncode


def _bench_machine(args: argparse.Namespace) -> int:
    from choreo.experiment import machine

    if args.out is not None:
        machine.check_new(args.out)
    found = machine.measure_machine()
    if args.out is not None:
        machine.write(found, args.out)
    print_json(found) if args.json else print(machine.tell(found))
    return 0


def _bench_server(args: argparse.Namespace) -> int:
    require_server("bench serve")
    if args.run is None:
        raise BadInput("bench serve: give a run (choreo bench --help)")
    from choreo.runs.bar import ProgressBar
    from choreo.runs.progress import Progress
    from choreo.runs.shipped import placed
    from choreo.server.bench import bench, bench_table

    with Progress([ProgressBar()]) as progress:
        found = bench(placed(args.run), args.requests, args.clients, progress, tokens=args.tokens)
    print_json(found) if args.json else print(bench_table(found))
    return 0
