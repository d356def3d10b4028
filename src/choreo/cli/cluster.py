"""`choreo train --cluster auto|ADDRESS`: the same command in ranks that Ray places on the machines of a cluster.

Ray decides where a rank runs and says when it is lost. The rest is that of `--processes`: ranks find each other as
torchrun's do, share every batch, and end with the same weights. When a rank, its process or its machine is lost, the
others are ended and the run goes on from its last checkpoint, in as many ranks as then fit.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from choreo.cli.output import say
from choreo.errors import BadInput, Unavailable, first_line

POLL, GRACE = 0.3, 30.0  # seconds: between two looks, and for the other ranks when one fails
PLACING, WAIT = 10.0, 300.0  # seconds for ranks to be placed before machines are counted again, and in all
LOST = -1  # in place of an exit code: the process was killed, or nobody knows what became of it
TRIES = 3  # starts in a row that reach no new checkpoint
STREAMS = ("stdout", "stderr")


class Rank:
    """One rank, as an actor on a machine of the cluster: the command in a process of its own."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.said: dict[str, SimpleQueue[bytes]] = {stream: SimpleQueue() for stream in STREAMS}
        self.readers: list[threading.Thread] = []

    def place(self) -> tuple[str, int]:
        """The address of its machine, and a port that is free there."""
        import ray

        with socket.socket() as one:
            one.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(one.getsockname()[1])

    def start(self, words: Sequence[str], folder: str, environment: dict[str, str]) -> None:
        """Runs `choreo WORDS` in `folder`."""
        command = [sys.executable, "-m", "choreo.cli", *words]
        own = {**os.environ, **environment}
        pipes = {stream: subprocess.PIPE for stream in STREAMS}
        self.process = subprocess.Popen(command, env=own, cwd=folder, start_new_session=True, **pipes)  # type: ignore[call-overload]
        for stream in STREAMS:
            reader = threading.Thread(target=self._read, args=(stream, getattr(self.process, stream)), daemon=True)
            reader.start()
            self.readers.append(reader)

    def look(self) -> tuple[int | None, dict[str, bytes]]:
        """Its exit code once it has ended, and what it has said since the last look."""
        assert self.process is not None
        code = self.process.poll()
        if code is not None:
            for reader in self.readers:
                reader.join(1)
        said = {
            stream: b"".join(words.get_nowait() for _ in range(words.qsize())) for stream, words in self.said.items()
        }
        return (LOST if code is not None and code < 0 else code), said

    def send(self, number: int) -> None:
        """A signal for its process."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def _read(self, stream: str, pipe: IO[bytes]) -> None:
        while part := os.read(pipe.fileno(), 65536):
            self.said[stream].put(part)


@dataclass(frozen=True)
class Share:
    """What each of `ranks` gets: cores, and a GPU or none."""

    ranks: int
    cores: int
    gpus: int

    @classmethod
    def of(cls, nodes: Sequence[dict[str, float]], wanted: int) -> Share:
        """nodes: the resources of each machine. wanted: ranks; 0 is one for every GPU, or else one for every machine.

        As many as wanted, or as many as fit. Raises Unavailable where none does.
        """
        gpus = [int(node.get("GPU", 0)) for node in nodes]
        cores = [int(node.get("CPU", 0)) for node in nodes]
        places = sum(gpus) or sum(cores)
        ranks = min(wanted or sum(gpus) or len([one for one in cores if one]), places)
        if not ranks:
            raise Unavailable("--cluster: no machine of the cluster has a free core")
        if sum(gpus):
            return cls(ranks, max(1, min(c // g for c, g in zip(cores, gpus, strict=True) if g)), 1)
        most = next(most for most in range(max(cores), 0, -1) if sum(one // most for one in cores) >= ranks)
        return cls(ranks, most, 0)


def run_in_cluster(address: str, processes: int, words: Sequence[str], run: Path, as_json: bool) -> int:
    """Runs `choreo WORDS` in ranks on the cluster at `address`, to its end, however many of them are lost on the way.

    address: of a cluster that runs, or "auto". processes: ranks (`Share.of`). run: the run's folder, which all machines
    see. Returns the exit code of the first rank that fails, if any; 1 where ranks are lost again and again without a
    new checkpoint. Raises BadInput without Ray, Unavailable where no cluster can be reached.
    """
    from choreo.runs.folder import checkpoints

    resume = ["train", "--resume", str(run), *["--json"] * as_json]
    with _connected(address):
        tries, reached = 0, -1
        while True:
            code, ranks = _run(processes, resume if (run / "recipe.toml").is_file() else words)
            if code != LOST:
                return code
            last = max(checkpoints(run), default=0)
            tries, reached = (1 if last > reached else tries + 1), last
            if tries >= TRIES:
                say(f"choreo: ranks were lost {tries} times without a new checkpoint; choreo train --resume {run}")
                return 1
            say(f"choreo: one of {ranks} ranks is lost; going on from step {last}")


def _run(wanted: int, words: Sequence[str]) -> tuple[int, int]:
    """The exit code of the command in ranks, LOST where one was, and how many ranks there were."""
    import ray
    from ray.util.placement_group import remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    share, group = _placed(wanted)
    try:
        actor: Any = ray.remote(Rank)
        needs = {"num_cpus": share.cores, "num_gpus": share.gpus}
        places = [PlacementGroupSchedulingStrategy(group, index) for index in range(share.ranks)]
        # Two calls at once: a signal does not wait for a look.
        ranks = [actor.options(**needs, max_concurrency=2, scheduling_strategy=place).remote() for place in places]
        host, port = ray.get(ranks[0].place.remote())
        shared = {"WORLD_SIZE": share.ranks, "MASTER_ADDR": host, "MASTER_PORT": port, "OMP_NUM_THREADS": share.cores}
        alone = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # each sees its own cores and GPU
        for index, rank in enumerate(ranks):
            environment = {name: str(value) for name, value in {**shared, **alone, "RANK": index}.items()}
            ray.get(rank.start.remote(words, str(Path.cwd()), environment))
        with _passing_signals(ranks):
            return _watch(ranks), share.ranks
    except ray.exceptions.RayActorError:
        return LOST, share.ranks
    finally:
        remove_placement_group(group)


def _placed(wanted: int) -> tuple[Share, Any]:
    """What each rank gets, and the placement group that has it. Machines may go, and others come, while it waits."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    deadline = time.monotonic() + WAIT
    while True:
        share = Share.of([node["Resources"] for node in ray.nodes() if node["Alive"]], wanted)
        group = placement_group([{"CPU": share.cores, **({"GPU": 1} if share.gpus else {})}] * share.ranks, "PACK")
        if group.wait(PLACING):
            return share, group
        remove_placement_group(group)
        if time.monotonic() > deadline:
            raise Unavailable(f"--cluster: {share.ranks} ranks of {share.cores} cores are not free on the cluster")


def _watch(ranks: Sequence[Any]) -> int:
    """The exit code of the first rank that fails, once all have ended, or soon after; LOST where any was. What the
    ranks say is said here."""
    import ray

    codes: dict[int, int | None] = dict.fromkeys(range(len(ranks)))
    failed, deadline = 0, float("inf")
    while None in codes.values() and time.monotonic() < deadline:
        for index in [index for index, code in codes.items() if code is None]:
            try:
                codes[index], said = ray.get(ranks[index].look.remote(), timeout=GRACE)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                codes[index], said = LOST, {}
            for stream, text in said.items():
                getattr(sys, stream).buffer.write(text)
                getattr(sys, stream).flush()
            if codes[index] and not failed:
                failed, deadline = codes[index] or 0, time.monotonic() + GRACE
        time.sleep(POLL)
    for index, code in codes.items():
        if code is None:
            with suppress(ray.exceptions.RayError):
                ray.get(ranks[index].send.remote(signal.SIGKILL), timeout=GRACE)
    return LOST if LOST in codes.values() else failed


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """Within it this process belongs to the cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError:
        raise BadInput("--cluster: ray is not installed (pip install 'choreo-rl[ray]')") from None
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError) as error:
        raise Unavailable(f"--cluster {address}: no cluster answers: {first_line(error)}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError where nobody listens there: Ray itself would wait for a quarter of an hour."""
    if address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (host and colon and port.isdecimal()):
        raise BadInput(f"--cluster {address}: expected auto or host:port")
    socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _passing_signals(ranks: Sequence[Any]) -> Iterator[None]:
    """Within it SIGINT and SIGTERM reach every rank as they are, and SIGHUP as SIGINT."""

    def pass_on(number: int, _: Any) -> None:
        for rank in ranks:
            rank.send.remote(signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
