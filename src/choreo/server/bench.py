"""`choreo bench serve`: a server in a process of its own, many clients at once, every mode, on held-out prompts."""

from __future__ import annotations

import asyncio
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from choreo.environments.microworld.suites import prompts
from choreo.server.keys import new_key
from choreo.server.pair import recipe_with_pair
from choreo.types import Prompt

MODES = ("off", "shadow", "adaptive")
TRAFFIC = {"benign": ("sensitive_benign", "general"), "harmful": ("vanilla_harmful", "adversarial_harmful")}
WARM_UP = 32  # requests before each measurement, which are not counted


def bench(run: Path, requests: int, clients: int, rounds: int = 3) -> dict[str, Any]:
    """Measures a server of `run` under load. Modes take turns, `rounds` times; every figure is a median over turns.

    Returns overhead_ms, the time of a request less that of its draft, and by traffic and mode: requests per second (in
    mode shadow until the last review is done), the same as a share of mode off, median and 95th percentile latency in
    ms, FTR, and the shares that failed and that were withheld.
    """
    split, half = recipe_with_pair(run).world.split_seed, (WARM_UP + requests + 1) // 2
    secret = new_key()
    command = [sys.executable, "-m", "choreo.cli", "serve", str(run), "--port", "0", "--model", "pair"]
    environment = {**os.environ, "CHOREO_API_KEY": secret}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        started = json.loads(process.stderr.readline())
        drain = subprocess.Popen(
            ["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL
        )  # reads the log, or the server would block
        general = prompts("general", "heldout", WARM_UP, split_seed=split, seed=1)
        overhead = asyncio.run(_overhead(started["address"], secret, general))
        measured: dict[str, dict[str, list[dict[str, float]]]] = {}
        for turn in range(rounds):
            for traffic, suites in TRAFFIC.items():
                for i, mode in enumerate(MODES):
                    # Other prompts each time: the server keeps the start of those that it has read.
                    seed = 2 + len(MODES) * turn + i
                    drawn = (prompts(suite, "heldout", half, split_seed=split, seed=seed) for suite in suites)
                    asked = [prompt for pair in zip(*drawn, strict=True) for prompt in pair]
                    figures = asyncio.run(_measure(started["address"], secret, asked, mode, requests, clients, turn))
                    measured.setdefault(traffic, {}).setdefault(mode, []).append(figures)
    finally:
        process.terminate()
        process.wait()
    drain.wait()
    found = {
        traffic: {mode: _medians(turns) for mode, turns in by_mode.items()} for traffic, by_mode in measured.items()
    }
    for by_mode in found.values():
        for figures in by_mode.values():
            figures["share_of_off"] = figures["per_second"] / by_mode["off"]["per_second"]
    about: dict[str, Any] = {"run": str(run), "requests": requests, "clients": clients, "rounds": rounds}
    about |= {"overhead_ms": overhead, "cores": os.cpu_count()}
    return {**about, "threads": os.environ.get("OMP_NUM_THREADS"), "machine": platform.machine(), "traffic": found}


async def _overhead(address: str, secret: str, asked: Sequence[Prompt]) -> float:
    """The time of a request less that of its draft, one request at a time: median, in ms."""
    async with httpx2.AsyncClient(base_url=address, headers={"Authorization": f"Bearer {secret}"}) as http:
        beside = []
        for prompt in asked:
            body = {
                "model": "pair",
                "messages": [{"role": "user", "content": prompt.text}],
                "choreo": {"mode": "off", "trace": True},
            }
            began = time.perf_counter()
            answer = await http.post("/v1/chat/completions", json=body)
            whole = 1000 * (time.perf_counter() - began)
            beside.append(whole - answer.json()["choreo"]["choices"][0]["moves"][0]["ms"])
    return statistics.median(beside)


async def _measure(
    address: str, secret: str, asked: Sequence[Prompt], mode: str, requests: int, clients: int, turn: int
) -> dict[str, float]:
    limits = httpx2.Limits(max_connections=clients)
    headers = {"Authorization": f"Bearer {secret}"}
    async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits) as http:

        async def ask(i: int) -> tuple[float, Any]:
            body = {
                "model": "pair",
                "messages": [{"role": "user", "content": asked[i].text}],
                "seed": 10_000 * turn + i,
                "choreo": {"mode": mode},
            }
            began = time.perf_counter()
            answer = await http.post("/v1/chat/completions", json=body)
            return 1000 * (time.perf_counter() - began), answer

        async def client(turns: Sequence[int]) -> list[tuple[float, Any]]:
            return [await ask(i) for i in turns]

        async def all_clients(first: int, n: int) -> list[tuple[float, Any]]:
            work = (client(range(first + c, first + n, clients)) for c in range(clients))
            return [one for own in await asyncio.gather(*work) for one in own]

        await all_clients(0, WARM_UP)
        before = await _counters(http, mode)
        began = time.perf_counter()
        done = await all_clients(WARM_UP, requests)
        while (after := await _counters(http, mode))["num_requests_running"]:  # reviews in the shadow end later
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - began
    latencies = sorted(ms for ms, _ in done)
    reviewed = after["reviewed_total"] - before["reviewed_total"]
    return {
        "per_second": len(done) / seconds,
        "median_ms": statistics.median(latencies),
        "p95_ms": latencies[int(0.95 * (len(latencies) - 1))],
        "ftr": (after["triggered_total"] - before["triggered_total"]) / reviewed if reviewed else float("nan"),
        "failed": sum(answer.status_code != 200 for _, answer in done) / len(done),
        "withheld": sum('"content_filter"' in answer.text for _, answer in done) / len(done),
    }


async def _counters(http: httpx2.AsyncClient, mode: str) -> dict[str, float]:
    """The number of requests in play, and of answers in `mode` that were reviewed and triggered so far."""
    counted = dict.fromkeys(("num_requests_running", "reviewed_total", "triggered_total"), 0.0)
    for family in text_string_to_metric_families((await http.get("/metrics")).text):
        for sample in family.samples:
            name = sample.name.removeprefix("choreo:")
            if name in counted and sample.labels.get("mode", mode) == mode:
                counted[name] += sample.value
    return counted


def _medians(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def bench_table(found: Mapping[str, Any]) -> str:
    head = ("traffic", "mode", "requests/s", "of off", "median ms", "p95 ms", "FTR %", "withheld %")
    rows = ["{:8} {:9} {:>10} {:>7} {:>10} {:>8} {:>7} {:>11}".format(*head)]
    for traffic, by_mode in found["traffic"].items():
        for mode, f in by_mode.items():
            rows.append(
                f"{traffic:8} {mode:9} {f['per_second']:10.1f} {100 * f['share_of_off']:6.1f}% {f['median_ms']:10.0f} "
                f"{f['p95_ms']:8.0f} {_percent(f['ftr'])} {100 * f['withheld']:11.1f}"
            )
    rows.append(
        f"HTTP and all else beside the draft, of requests one at a time with feedback off: "
        f"{found['overhead_ms']:.1f} ms (median)"
    )
    return "\n".join(rows)


def _percent(share: float) -> str:
    return f"{'–':>7}" if math.isnan(share) else f"{100 * share:7.1f}"
