"""Runs of SWARM, each in a process of its own, as many at a time as there are cores. Only those import SWARM."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from threading import Lock
from typing import Any

from choreo.swarm.extra import require
from choreo.swarm.records import SimulationRun
from choreo.swarm.scenario import Scenario
from choreo.swarm.trained_roles import TrainedRoles

# Starting a process polls all others, and two threads that poll one process at the same time lose its exit code.
_ONE_AT_A_TIME = Lock()


@dataclass(frozen=True)
class Job:
    """One run to make. make_agents: as of `simulate`; it crosses to another process, so it must be picklable."""

    scenario: Scenario
    seed: int
    make_agents: Callable[[Scenario, int], Any] | None = None


def replay(roles: TrainedRoles) -> Callable[[Scenario, int], Any]:
    """The `make_agents` of a job whose trained agents replay their answers."""
    return partial(_trained, roles)


def _trained(roles: TrainedRoles, scenario: Scenario, seed: int) -> Any:
    from choreo.swarm.trained_agents import make_agents  # it imports SWARM, which only the process of a run may do

    return make_agents(roles, scenario, seed)


def run_all(jobs: Sequence[Job], workers: int | None = None) -> Iterator[SimulationRun]:
    """The runs of `jobs`, in their order, as they are done. workers: at a time (default: one per core).

    A run depends on (scenario, seed, make_agents) alone. Raises BadInput without swarm-safety, and RuntimeError with
    the traceback of its process when a run fails or its process dies.
    """
    require("swarm run")
    context = _context()
    with ThreadPoolExecutor(max_workers=workers or os.cpu_count() or 1) as threads:
        try:
            yield from threads.map(lambda job: _in_a_process(job, context), jobs)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)  # after an error or Ctrl-C nothing new begins


def run(scenario: Scenario, seed: int | None = None) -> SimulationRun:
    """One run; the scenario's own seed unless another is given."""
    (result,) = run_all([Job(scenario, scenario.simulation.seed if seed is None else seed)], workers=1)
    return result


def _context() -> Any:
    """A fork server that has imported SWARM already: a clean process for every run at a tenth of a spawned one's cost.

    Where there is none (Windows), every process is spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["choreo.swarm.simulate", "choreo.swarm.trained_agents"])
    return context


def _in_a_process(job: Job, context: Any) -> SimulationRun:
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, there), daemon=True)
    with _ONE_AT_A_TIME:
        process.start()
    there.close()  # so that a child that dies is an end of file here, not silence
    try:
        result = here.recv()
    except EOFError:
        result = None
    here.close()
    wait([process.sentinel])
    with _ONE_AT_A_TIME:
        process.join()
    if result is None:
        raise RuntimeError(f"the process of a run died with exit code {process.exitcode}: {_name(job)}")
    if isinstance(result, str):
        raise RuntimeError(f"a run failed: {_name(job)}\n{result}")
    return result


def _child(job: Job, there: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    try:
        from choreo.swarm.simulate import simulate  # it imports SWARM, which only this process may do

        there.send(simulate(job.scenario, job.seed, job.make_agents))
    except Exception:
        there.send(traceback.format_exc())


def _name(job: Job) -> str:
    return f"{job.scenario.scenario_id}, seed {job.seed}"
