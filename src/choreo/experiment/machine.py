"""What a machine does in a second: measured on this CPU (`choreo bench machine`), read from a file of that, or said by
the user of a card."""

from __future__ import annotations

import json
import platform
import random
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from choreo.errors import BadInput
from choreo.experiment.costs import Machine
from choreo.files import durable
from choreo.files.json_file import read_object

SCHEMA = 1
WIDTHS = (128, 512, 2048)  # of the matrices whose rate is measured; between them it is interpolated
Clock = Callable[[], float]
BASE, SEQUENCES, CONTEXT, NEW, ROWS = "micro-llama", 96, 40, 32, 8  # of the update and the rollout that are timed
SECONDS = 0.4  # for which a measurement is repeated at least
LONG = 4.0  # seconds that a first time, which does not count otherwise, may take: it is not repeated


def read(file: str | Path, dtype: str, link: float | None = None) -> Machine:
    """The machine of a file that `choreo bench machine --out` wrote. link: bytes/s between ranks.

    Raises BadInput where the file is none, or has no rates for `dtype`.
    """
    found = read_object(Path(file))
    try:
        rates = {int(width): float(rate) for width, rate in found["rates"][dtype].items()}
        numbers = [float(found[name]) for name in ("utilisation", "bandwidth", "step")]
        about = str(found["about"])
    except (KeyError, TypeError, ValueError, AttributeError):
        raise BadInput(f"{file}: not what `choreo bench machine --out FILE` writes, or without {dtype}") from None
    if not rates or min(*rates.values(), *numbers[:2]) <= 0 or numbers[2] < 0:
        raise BadInput(f"{file}: rates, utilisation and bandwidth must be above 0, and step not below")
    return Machine(rates, numbers[0], numbers[1], numbers[2], link, measured=True, about=about)


def said(peak: float, utilisation: float, bandwidth: float, link: float | None = None) -> Machine:
    """A card of which the user says what it does: FLOP/s, the share of it that is reached, bytes/s of its memory."""
    return Machine({1: peak}, utilisation, bandwidth, link=link, about="a card as it was described")


def measure_machine(clock: Clock = time.perf_counter) -> dict[str, Any]:
    """What `read` reads, of this CPU with PyTorch's number of threads. Takes about ten seconds.

    clock: `time.process_time` on one thread, where others use the machine too.

    rates: FLOP/s of square products of 512 rows. bandwidth: bytes/s of a product with one row, whose matrix is 256 MiB.
    utilisation: an update of the shipped base with adapters, its operations by `costs.update` over the rate at its
    width. step: of a rollout of 8 rows, the seconds for each layer and decode step beyond its operations.
    """
    import torch

    threads = torch.get_num_threads()
    rates = {
        dtype: {str(width): product_rate(512, width, dtype, clock) for width in WIDTHS}
        for dtype in ("float32", "bfloat16")
    }
    large, row = torch.ones(8192, 8192), torch.ones(8192)
    bandwidth = large.numel() * 4 / _seconds(lambda: large @ row, clock)
    machine = Machine({int(width): rate for width, rate in rates["float32"].items()}, 1.0, bandwidth)
    utilisation, step = _engine(machine, clock)
    return {
        "schema": SCHEMA,
        "about": f"{_processor()}, {threads} thread{'s' if threads > 1 else ''}, torch {torch.__version__}",
        "rates": rates,
        "utilisation": utilisation,
        "bandwidth": bandwidth,
        "step": step,
    }


def product_rate(rows: int, width: int, dtype: str, clock: Clock = time.perf_counter, device: str = "cpu") -> float:
    """FLOP/s of the product of [rows, width] and [width, width] on `device`, in PyTorch's default precision there."""
    import torch

    kind = getattr(torch, dtype)
    left, right = (torch.ones(height, width, dtype=kind, device=device) for height in (rows, width))

    def product() -> None:
        _ = left @ right
        if left.is_cuda:
            torch.cuda.synchronize()

    return 2 * rows * width**2 / _seconds(product, clock)


def _engine(machine: Machine, clock: Clock) -> tuple[float, float]:
    """(utilisation, step) of the engine on the shipped base. machine: with a utilisation of 1."""
    from dataclasses import replace

    from choreo.config.common import Weights
    from choreo.engine.agent import Team
    from choreo.engine.learner import Learner
    from choreo.engine.local import LocalEngine
    from choreo.engine.losses import sft_loss
    from choreo.engine.requests import Request
    from choreo.experiment.costs import cost, update
    from choreo.experiment.sizing import Model, shape
    from choreo.methods.passes import Pass
    from choreo.models.resolve import base_folder
    from choreo.types import Sample

    how = Weights(device="cpu")
    folder = base_folder(BASE)
    one = shape(Model.read(BASE, how), how)
    team = Team.load(folder, ("policy",), **how.loading())
    rng = random.Random(0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(2, 2000) for _ in range(n))

    samples = [Sample("policy", words(CONTEXT), words(NEW), (), "", 0.0) for _ in range(SEQUENCES)]
    learner = Learner(team, "policy", lr=0.0)
    length = CONTEXT + NEW - 1
    spent = update(one, SEQUENCES * length, length / 2, SEQUENCES * NEW)
    utilisation = spent / _seconds(lambda: learner.update(samples, sft_loss), clock) / machine.rate(one.width)

    engine = LocalEngine(team, pad_id=0, end_id=-1)  # no token ends a turn: all have one length
    requests = [Request(words(CONTEXT), (0, i)) for i in range(ROWS)]
    taken = _seconds(lambda: engine.sample(None, requests, max_new_tokens=NEW), clock)
    known = cost(Pass("", "sample", ROWS, CONTEXT, NEW, 1), one, replace(machine, utilisation=utilisation), ranks=1)
    return utilisation, max(0.0, taken - known["sample"]) / NEW / one.layers


def _seconds(work: Callable[[], Any], clock: Clock) -> float:
    """The median time of `work`, which is repeated for a while after one time that does not count.

    Where that one takes long, it is the answer: what a first time adds (memory, kernels) is small beside it.
    """
    began = clock()
    work()
    if (first := clock() - began) > LONG:
        return first
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        began = clock()
        work()
        times.append(clock() - began)
    return median(times)


def _processor() -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def check_new(file: Path) -> None:
    """Raises BadInput where the file is there already, or its folder is not."""
    if file.exists():
        raise BadInput(f"{file}: is there already; name another file")
    durable.check_place(file)


def write(found: dict[str, Any], file: Path) -> None:
    """Writes what was measured. Raises BadInput where the file is there."""
    check_new(file)
    durable.write_text(file, json.dumps(found, indent=1) + "\n")


def tell(found: dict[str, Any]) -> str:
    """The measurement in words."""
    lines = [found["about"]]
    for dtype, rates in found["rates"].items():
        each = ", ".join(f"{rate / 1e9:.3g} at {width}" for width, rate in rates.items())
        lines.append(f"  matrix products, {dtype}: GFLOP/s by width: {each}")
    lines.append(f"  an update of {BASE} reaches {found['utilisation']:.0%} of the rate at its width")
    lines.append(f"  memory: {found['bandwidth'] / 1e9:.3g} GB/s; a decode step: {found['step'] * 1e6:.0f} µs a layer")
    return "\n".join(lines)
