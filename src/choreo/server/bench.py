"""`choreo bench serve`: a server in a process of its own, many clients at once, every mode, on held-out prompts: of the
microworld, or of the files that the run names."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from choreo.config.recipe import Recipe
from choreo.environments.microworld.suites import prompts
from choreo.environments.task import Task
from choreo.errors import BadInput, Interrupted
from choreo.runs.progress import Progress
from choreo.server.keys import new_key
from choreo.server.pair import recipe_with_pair
from choreo.types import Prompt

MODES = ("off", "shadow", "adaptive")
TRAFFIC = {"benign": ("sensitive_benign", "general"), "harmful": ("vanilla_harmful", "adversarial_harmful")}
KINDS_OF = {"benign": ("benign", "general"), "harmful": ("harmful",)}  # of prompts from files
TIMEOUT = 600  # seconds; a model of 135M parameters answers a few requests a second on two cores
WARM_UP_TOKENS = 16  # the most of an answer before each measurement, one for each client, which are not counted
ALONE = 16  # requests one at a time, whose time beside their drafts is the overhead
STREAMED = 8  # requests of each mode, one at a time, whose first token is waited for


def bench(
    run: Path, requests: int, clients: int, progress: Progress, rounds: int = 3, tokens: int | None = None
) -> dict[str, Any]:
    """Measures a server of `run` under load. Modes take turns, `rounds` times; every figure is a median over turns.

    tokens: the most of an answer; by default as the run was trained. Raises Interrupted between two measurements, and
    BadInput where the server does not start.

    Returns overhead_ms, the time of a request less that of its draft; first_token_ms, by mode, how long a single
    streaming client waits for text; and by traffic and mode: requests answered per second (in mode shadow until the
    last review is done), the same as a share of mode off, their median and 95th percentile latency in ms, FTR, and the
    shares that failed and that were withheld. What nobody answered has no latency: NaN.
    """
    load = Load(recipe_with_pair(run), requests, clients, tokens)
    secret = new_key()
    command = [sys.executable, "-m", "choreo.cli", "serve", str(run), "--port", "0", "--model", "pair"]
    environment = {**os.environ, "CHOREO_API_KEY": secret}
    process = subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for this process, which then ends the server
    )
    try:
        assert process.stderr is not None
        address = address_of(process.stderr, progress)
        drain = subprocess.Popen(
            ["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL
        )  # reads the log, or the server would block
        progress.start("overhead and first tokens", 1 + len(MODES))
        overhead = asyncio.run(_overhead(address, secret, load, load.drawn("benign", ALONE, 1)))
        progress.advance(1)
        first = {}
        for i, mode in enumerate(MODES):
            asked = load.drawn("benign", STREAMED, 99 + i)
            first[mode] = asyncio.run(_first_token(address, secret, load, asked, mode))
            progress.advance(2 + i)
        measured: dict[str, dict[str, list[dict[str, float]]]] = {}
        for turn in range(rounds):
            progress.start(f"under load, turn {turn + 1} of {rounds}", len(TRAFFIC) * len(MODES))
            for done, (traffic, (i, mode)) in enumerate(itertools.product(TRAFFIC, enumerate(MODES)), start=1):
                if progress.interrupted:
                    raise Interrupted("nothing is kept")
                # Other prompts each time: the server keeps the start of those that it has read.
                asked = load.drawn(traffic, clients + requests, 2 + len(MODES) * turn + i)
                figures = asyncio.run(_measure(address, secret, load, asked, mode, turn))
                measured.setdefault(traffic, {}).setdefault(mode, []).append(figures)
                progress.advance(done)
                progress.say(f"{traffic}, {mode}: {figures['per_second']:.2f} requests a second")
    finally:
        process.terminate()
        process.wait()
    drain.wait()
    found = {
        traffic: {mode: _medians(turns) for mode, turns in by_mode.items()} for traffic, by_mode in measured.items()
    }
    for by_mode in found.values():
        for figures in by_mode.values():
            off = by_mode["off"]["per_second"]
            figures["share_of_off"] = figures["per_second"] / off if off else math.nan
    about: dict[str, Any] = {"run": str(run), "requests": requests, "clients": clients, "rounds": rounds}
    about |= {"tokens": tokens, "overhead_ms": overhead, "first_token_ms": first, "cores": os.cpu_count()}
    return {**about, "threads": os.environ.get("OMP_NUM_THREADS"), "machine": platform.machine(), "traffic": found}


def address_of(log: Iterable[str], progress: Progress) -> str:
    """Where a server listens, by the lines of its log; what it says before that is passed on. Raises BadInput with its
    last line where it ends instead."""
    said = ""
    for each in log:
        with contextlib.suppress(ValueError):
            told = json.loads(each)
            if isinstance(told, dict) and "address" in told:
                return str(told["address"])
        said = each.strip() or said
        progress.say(each.rstrip())
    raise BadInput(f"bench serve: the server did not start: {said.removeprefix('choreo: ') or 'it said nothing'}")


class Load:
    """What clients ask, and how many they are."""

    def __init__(self, recipe: Recipe, requests: int, clients: int, tokens: int | None):
        self.requests, self.clients, self.tokens = requests, clients, tokens
        self._split = recipe.world.split_seed
        self._files = Task(recipe).suites("heldout") if recipe.from_files() else None

    def drawn(self, traffic: str, n: int, seed: int) -> list[Prompt]:
        """So many held-out prompts; those of files come again when all were asked. Raises BadInput where the files
        have none of this traffic."""
        if self._files is None:
            suites = TRAFFIC[traffic]
            each = -(-n // len(suites))
            drawn = (prompts(suite, "heldout", each, split_seed=self._split, seed=seed) for suite in suites)
            return [prompt for mixed in zip(*drawn, strict=True) for prompt in mixed][:n]
        rows = [prompt for prompt in self._files if prompt.kind in KINDS_OF[traffic]]
        if not rows:
            raise BadInput(
                f"bench serve: the held-out files of the run have no {' and no '.join(KINDS_OF[traffic])} prompts"
            )
        random.Random(seed).shuffle(rows)
        return list(itertools.islice(itertools.cycle(rows), n))

    def body(self, prompt: Prompt, mode: str, **more: Any) -> dict[str, Any]:
        """The body of a request for a chat completion."""
        limit = {"max_tokens": self.tokens} if self.tokens else {}
        messages = [{"role": "user", "content": prompt.text}]
        return {"model": "pair", "messages": messages, "choreo": {"mode": mode}, **limit, **more}


async def _first_token(address: str, secret: str, load: Load, asked: Sequence[Prompt], mode: str) -> float:
    """How long one client alone waits for the first text of an answer that is streamed: median, in ms."""
    waits = []
    async with httpx2.AsyncClient(base_url=address, headers=_headers(secret), timeout=TIMEOUT) as http:
        for prompt in asked:
            began = time.perf_counter()
            async with http.stream("POST", "/v1/chat/completions", json=load.body(prompt, mode, stream=True)) as answer:
                async for line in answer.aiter_lines():
                    if line.startswith("data: {") and _text_of(json.loads(line.removeprefix("data: "))):
                        waits.append(1000 * (time.perf_counter() - began))
                        break
    return _median(waits)


def _text_of(chunk: Mapping[str, Any]) -> str:
    return "".join(choice["delta"].get("content") or "" for choice in chunk.get("choices", ()))


def _headers(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


async def _overhead(address: str, secret: str, load: Load, asked: Sequence[Prompt]) -> float:
    """The time of a request less that of its draft, one request at a time: median, in ms."""
    async with httpx2.AsyncClient(base_url=address, headers=_headers(secret), timeout=TIMEOUT) as http:
        beside = []
        for prompt in asked:
            body = load.body(prompt, "off")
            body["choreo"]["trace"] = True
            began = time.perf_counter()
            answer = await http.post("/v1/chat/completions", json=body)
            whole = 1000 * (time.perf_counter() - began)
            if answer.status_code == 200:
                beside.append(whole - answer.json()["choreo"]["choices"][0]["moves"][0]["ms"])
    return _median(beside)


async def _measure(
    address: str, secret: str, load: Load, asked: Sequence[Prompt], mode: str, turn: int
) -> dict[str, float]:
    requests, clients = load.requests, load.clients
    limits = httpx2.Limits(max_connections=clients)
    async with httpx2.AsyncClient(base_url=address, headers=_headers(secret), timeout=TIMEOUT, limits=limits) as http:

        async def ask(i: int, **more: Any) -> tuple[float, Any]:
            body = load.body(asked[i], mode, seed=10_000 * turn + i, **more)
            began = time.perf_counter()
            answer = await http.post("/v1/chat/completions", json=body)
            return 1000 * (time.perf_counter() - began), answer

        async def client(turns: Sequence[int]) -> list[tuple[float, Any]]:
            return [await ask(i) for i in turns]

        shortest = {"max_tokens": min(WARM_UP_TOKENS, load.tokens)} if load.tokens else {}
        await asyncio.gather(*(ask(i, **shortest) for i in range(clients)))
        before = await _counters(http, mode)
        began = time.perf_counter()
        work = (client(range(clients + c, clients + requests, clients)) for c in range(clients))
        done = [one for own in await asyncio.gather(*work) for one in own]
        while (after := await _counters(http, mode))["num_requests_running"]:  # reviews in the shadow end later
            await asyncio.sleep(0.01)
        seconds = time.perf_counter() - began
    latencies = sorted(ms for ms, answer in done if answer.status_code == 200)  # an error may be quick
    reviewed = after["reviewed_total"] - before["reviewed_total"]
    return {
        "per_second": len(latencies) / seconds,
        "median_ms": _median(latencies),
        "p95_ms": latencies[int(0.95 * (len(latencies) - 1))] if latencies else math.nan,
        "ftr": (after["triggered_total"] - before["triggered_total"]) / reviewed if reviewed else float("nan"),
        "failed": 1 - len(latencies) / len(done),
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
    return {name: _median([turn[name] for turn in turns if not math.isnan(turn[name])]) for name in turns[0]}


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else math.nan


def bench_table(found: Mapping[str, Any]) -> str:
    """What `bench` found, as lines for a terminal."""
    head = ("traffic", "mode", "requests/s", "of off %", "median ms", "p95 ms", "FTR %", "failed %", "withheld %")
    rows = ["{:8} {:9} {:>10} {:>8} {:>10} {:>8} {:>7} {:>8} {:>11}".format(*head)]
    for traffic, by_mode in found["traffic"].items():
        for mode, f in by_mode.items():
            shares = _shown(100 * f["ftr"], 7), _shown(100 * f["failed"], 8), _shown(100 * f["withheld"], 11)
            rate = _shown(f["per_second"], 10), _shown(100 * f["share_of_off"], 8)
            waited = _shown(f["median_ms"], 10, 0), _shown(f["p95_ms"], 8, 0)
            rows.append(" ".join((f"{traffic:8}", f"{mode:9}", *rate, *waited, *shares)))
    waits = ", ".join(f"{mode} {_shown(wait, 1, 0)} ms" for mode, wait in found["first_token_ms"].items())
    rows.append(f"first text of a streamed answer, one client alone (median): {waits}")
    rows.append(
        f"HTTP and all else beside the draft, of requests one at a time with feedback off: "
        f"{_shown(found['overhead_ms'], 1)} ms (median)"
    )
    return "\n".join(rows)


def _shown(value: float, width: int, digits: int = 1) -> str:
    return f"{'–':>{width}}" if math.isnan(value) else f"{value:{width}.{digits}f}"
