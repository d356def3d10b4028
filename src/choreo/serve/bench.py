"""`choreo bench serve`: a server in a process of its own, many clients at once, every mode, on held-out prompts."""

from __future__ import annotations

import asyncio
import json
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

from choreo.microworld.world import World
from choreo.serve.keys import new_key
from choreo.serve.pair import recipe_of
from choreo.types import Prompt

MODES = ("off", "shadow", "adaptive")
TRAFFIC = {"benign": ("sensitive_benign", "general"), "harmful": ("vanilla_harmful", "adversarial_harmful")}
WARM_UP = 32  # requests before each measurement, which are not counted


def bench(run: Path, requests: int, clients: int, rounds: int = 3) -> dict[str, Any]:
    """Figures by traffic and mode: requests per second, median and 95th percentile latency in ms, FTR, failures, and
    requests per second as a share of those without feedback. Modes take turns, `rounds` times; medians over turns.
    """
    recipe = recipe_of(run)
    prompts = World(recipe.world).suites("heldout")
    secret = new_key()
    command = [sys.executable, "-m", "choreo.cli", "serve", str(run), "--port", "0", "--model", "pair"]
    environment = {**os.environ, "CHOREO_API_KEY": secret}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        started = json.loads(process.stderr.readline())
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)  # its log, or it would block
        measured: dict[str, dict[str, list[dict[str, float]]]] = {}
        for turn in range(rounds):
            for traffic, suites in TRAFFIC.items():
                each = ([prompt for prompt in prompts if prompt.suite == suite] for suite in suites)
                asked = [prompt for alternating in zip(*each, strict=False) for prompt in alternating]
                for mode in MODES:
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
    about = {"run": str(run), "requests": requests, "clients": clients, "rounds": rounds, "cores": os.cpu_count()}
    return {**about, "threads": os.environ.get("OMP_NUM_THREADS"), "machine": platform.machine(), "traffic": found}


async def _measure(
    address: str, secret: str, prompts: Sequence[Prompt], mode: str, requests: int, clients: int, turn: int
) -> dict[str, float]:
    limits = httpx2.Limits(max_connections=clients)
    headers = {"Authorization": f"Bearer {secret}"}
    async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=120, limits=limits) as http:

        async def ask(i: int) -> tuple[float, Any]:
            body = {
                "model": "pair", "messages": [{"role": "user", "content": prompts[i % len(prompts)].text}],
                "seed": 10_000 * turn + i, "choreo": {"mode": mode},
            }  # fmt: skip
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
        seconds = time.perf_counter() - began
        after = await _counters(http, mode)
        while mode == "shadow" and after["reviewed"] - before["reviewed"] < requests:  # reviews lag behind
            await asyncio.sleep(0.05)
            after = await _counters(http, mode)
    latencies = sorted(ms for ms, _ in done)
    reviewed = after["reviewed"] - before["reviewed"]
    return {
        "per_second": len(done) / seconds,
        "median_ms": statistics.median(latencies),
        "p95_ms": latencies[int(0.95 * (len(latencies) - 1))],
        "ftr": (after["triggered"] - before["triggered"]) / reviewed if reviewed else float("nan"),
        "failed": float(sum(answer.status_code != 200 for _, answer in done)),
    }


async def _counters(http: httpx2.AsyncClient, mode: str) -> dict[str, float]:
    text = (await http.get("/metrics")).text
    return {name: _sum(text, f"choreo:{name}_total", mode) for name in ("reviewed", "triggered")}


def _sum(text: str, name: str, mode: str) -> float:
    lines = (line.rsplit(" ", 1) for line in text.splitlines() if line.startswith(name + "{"))
    return sum(float(value) for sample, value in lines if f'mode="{mode}"' in sample)


def _medians(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def table(found: Mapping[str, Any]) -> str:
    rows = [f"{'traffic':8} {'mode':9} {'requests/s':>10} {'of off':>7} {'median ms':>10} {'p95 ms':>8} {'FTR %':>7}"]
    for traffic, by_mode in found["traffic"].items():
        for mode, f in by_mode.items():
            rows.append(
                f"{traffic:8} {mode:9} {f['per_second']:10.1f} {100 * f['share_of_off']:6.1f}% {f['median_ms']:10.0f} "
                f"{f['p95_ms']:8.0f} {100 * f['ftr']:7.1f}"
            )
    return "\n".join(rows)
