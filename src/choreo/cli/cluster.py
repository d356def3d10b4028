"""`choreo train --cluster auto|ADDRESS`: the same command in ranks that Ray places on the machines of a cluster.

Ray decides where a rank runs and says when it is lost. The rest is that of `--processes`: ranks find each other as
torchrun's do, share every batch, and end with the same weights. When a rank, its process or its machine is lost, the
others are ended and the run goes on from its last checkpoint, in as many ranks as then fit.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
INTERRUPTED, TERMINATED, BAD_INPUT = 130, 75, 2  # exit codes (choreo.cli)
PR_SET_PDEATHSIG = 1  # of Linux, <sys/prctl.h>
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
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **environment},
            cwd=folder,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_dying_with_its_parent(),
        )
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
        """A signal for its process; SIGKILL is for all that this one has started, too."""
        if self.process is not None and self.process.poll() is None:
            (os.killpg if number == signal.SIGKILL else os.kill)(self.process.pid, number)

    def _read(self, stream: str, pipe: IO[bytes]) -> None:
        while part := os.read(pipe.fileno(), 65536):
            self.said[stream].put(part)


def _dying_with_its_parent() -> Callable[[], None] | None:
    """What a new process calls so that it is killed when its parent dies; None where the system has no such call."""
    if sys.platform != "linux":
        return None
    call = ctypes.CDLL(None).prctl
    return lambda: call(PR_SET_PDEATHSIG, signal.SIGKILL) and None


class Stop:
    """A request to stop, by SIGINT, SIGTERM or SIGHUP: it reaches every rank that runs, SIGHUP as SIGINT."""

    def __init__(self) -> None:
        self.code = 0  # the exit code that it asks for
        self.ranks: Sequence[Any] = ()

    def __call__(self, number: int, _: Any) -> None:
        terminated = number == signal.SIGTERM
        self.code = self.code or (TERMINATED if terminated else INTERRUPTED)
        for rank in self.ranks:
            rank.send.remote(signal.SIGTERM if terminated else signal.SIGINT)

    @contextmanager
    def listening(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


@dataclass(frozen=True)
class Share:
    """What each of `ranks` gets: cores, and a GPU or none."""

    ranks: int
    cores: int
    gpus: int

    @classmethod
    def of(cls, nodes: Sequence[dict[str, float]], wanted: int) -> Share:
        """nodes: the resources of each machine. wanted: ranks; 0 is one for every GPU, or else one for every machine.

        As many as wanted, or as many as all of these machines hold. No rank where none has a core.
        """
        cores = [int(node.get("CPU", 0)) for node in nodes]
        gpus = [int(node.get("GPU", 0)) if own else 0 for node, own in zip(nodes, cores, strict=True)]
        places = sum(gpus) or sum(cores)
        ranks = min(wanted or sum(gpus) or len([own for own in cores if own]), places)
        if sum(gpus):
            return cls(ranks, max(1, min(c // g for c, g in zip(cores, gpus, strict=True) if g)), 1)
        most = next((most for most in range(max(cores, default=0), 0, -1) if sum(c // most for c in cores) >= ranks), 0)
        return cls(ranks, most, 0)


def run_in_cluster(address: str, processes: int, words: Sequence[str], run: Path, as_json: bool) -> int:
    """Runs `choreo WORDS` in ranks on the cluster at `address`, to its end, however many of them are lost on the way.

    address: of a cluster that runs, or "auto". processes: ranks (`Share.of`). run: the run's folder, which all machines
    see. Returns the exit code of the first rank that fails, if any; 1 where ranks are lost again and again without a
    new checkpoint. Raises BadInput without Ray, Unavailable where no cluster can be reached, or has no room.
    """
    from choreo.runs.checkpoints import checkpoints

    stop, tries, reached = Stop(), 0, -1
    with _connected(address), stop.listening():
        while True:
            code, why = _run(processes, words, stop)
            if code != LOST:
                return code
            if stop.code:
                return stop.code
            last = max(checkpoints(run), default=0)
            tries, reached = (1 if last > reached else tries + 1), last
            if tries >= TRIES:
                say(f"choreo: {why}; {TRIES} starts reached no new checkpoint; choreo train --resume {run} goes on")
                return 1
            say(f"choreo: {why}; going on from step {last}")
            if (run / "recipe.toml").is_file():
                words = ["train", "--resume", str(run), *["--json"] * as_json]


def _run(wanted: int, words: Sequence[str], stop: Stop) -> tuple[int, str]:
    """The exit code of the command in ranks; or LOST where a rank was lost, and what is known of it."""
    import ray
    from ray.util.placement_group import remove_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    share, group = _placed(wanted, stop)
    if group is None:
        return stop.code, ""
    actor: Any = ray.remote(Rank)
    needs = {"num_cpus": share.cores, "num_gpus": share.gpus}
    places = [PlacementGroupSchedulingStrategy(group, index) for index in range(share.ranks)]
    # Two calls at once: a signal does not wait for a look.
    ranks = [actor.options(**needs, max_concurrency=2, scheduling_strategy=place).remote() for place in places]
    try:
        addresses = ray.get([rank.place.remote() for rank in ranks])
        hosts, (host, port) = [host for host, _ in addresses], addresses[0]
        shared = {"WORLD_SIZE": share.ranks, "MASTER_ADDR": host, "MASTER_PORT": port, "OMP_NUM_THREADS": share.cores}
        alone = {"LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}  # each sees its own cores and GPU
        form = {name: value for name, value in os.environ.items() if name == "CHOREO_LOG_FORMAT"}
        for index, rank in enumerate(ranks):
            environment = {name: str(value) for name, value in {**shared, **alone, **form, "RANK": index}.items()}
            ray.get(rank.start.remote(words, str(Path.cwd()), environment))
        stop.ranks = ranks
        if stop.code:  # it came while they were started
            return stop.code, ""
        return _watch(ranks, hosts)
    except ray.exceptions.RayTaskError as error:
        raise Unavailable(f"--cluster: a machine cannot run its rank: {first_line(error.cause)}") from None
    except ray.exceptions.RayActorError as error:
        return LOST, f"one of {share.ranks} ranks is lost ({first_line(error)})"
    finally:
        stop.ranks = ()
        for rank in ranks:
            with suppress(ray.exceptions.RayError):
                ray.get(rank.send.remote(signal.SIGKILL), timeout=POLL)
        remove_placement_group(group)


def _placed(wanted: int, stop: Stop) -> tuple[Share, Any]:
    """What each rank gets, and the placement group that has it, None after a request to stop. Machines may go, and
    others come, while it waits."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    deadline, told = time.monotonic() + WAIT, False
    while not stop.code:
        share = Share.of([node["Resources"] for node in ray.nodes() if node["Alive"]], wanted)
        if share.ranks:
            group = placement_group([{"CPU": share.cores, **({"GPU": 1} if share.gpus else {})}] * share.ranks, "PACK")
            if group.wait(PLACING):
                return share, group
            remove_placement_group(group)
        else:
            time.sleep(POLL)
        needed = f"{share.ranks} ranks of {share.cores} cores each" if share.ranks else "a machine with a core"
        if time.monotonic() > deadline:
            raise Unavailable(f"--cluster: the cluster had no room for {needed} within {WAIT / 60:.0f} minutes")
        if not told:
            say(f"choreo: waiting for {needed} on the cluster")
            told = True
    return Share(0, 0, 0), None


def _watch(ranks: Sequence[Any], hosts: Sequence[str]) -> tuple[int, str]:
    """The exit code of the first rank that fails, once all have ended, or soon after; LOST where any was, and which.
    What the ranks say is said here."""
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
                if index and failed == BAD_INPUT:  # the first rank says its own
                    say(f"choreo: rank {index} on {hosts[index]} ended with exit code {failed}")
        time.sleep(POLL)
    lost = next((index for index, code in codes.items() if code == LOST), None)
    return (failed, "") if lost is None else (LOST, f"one of {len(ranks)} ranks is lost (on {hosts[lost]})")


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
        # Of a machine that belongs to no cluster Ray speaks of options that are not choreo's.
        found = "this machine belongs to none (ray start)" if address == "auto" else first_line(error)
        raise Unavailable(f"--cluster {address}: no cluster answers: {found}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises OSError where nobody listens there: Ray itself would wait for a quarter of an hour."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdecimal()) or "/" in host:
        raise BadInput(f"--cluster {address}: expected auto or host:port, of the cluster's head")
    socket.create_connection((host, int(port)), timeout=10).close()
