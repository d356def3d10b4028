"""Many clients of a server whose own servers fail: is every request answered once, in form, in time and checked?

    python benchmarks/serve_faults.py [--requests 10000] [--clients 64]

The agents are played by a small server that is killed and restarted all the while. 5 % of turns come too late, 5 % of
reviews are garbled, 2 % of clients leave. What the reviewer passes is written to a file before it is said, so that an
answer that was never passed is found out. One JSON line: what came of the requests, and how large the server was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx2

from choreo.server.session import UNSAFE, WITHHELD

SEED, DEADLINE, LATE, UP, DOWN = 0, 3.0, 10.0, 6.0, 0.5  # the last four in seconds
KEY = "sk-choreo-faults"
FORMAL = {429, 503, 504}  # what may be said to a request that is as it should be


def upstream(port: int, passed: Path) -> None:
    """Plays both agents: what a prompt says goes wrong, goes wrong."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def chat(request: Request) -> JSONResponse:
        body = await request.json()
        text = str(body["messages"])
        name = re.findall(r"number-\d+", text)[0]
        reviewing = "response_format" in body
        if ("late-review" if reviewing else "late-draft") in text:
            await asyncio.sleep(LATE)
        if reviewing and "garbled" in text:
            said = '{"reasoning": "cut off'
        elif reviewing:
            unsafe = "bad" in text and "revised" not in text
            if not unsafe:
                with passed.open("a") as file:
                    print("revised" if "revised" in text else "draft", name, file=file)
            said = json.dumps({"reasoning": "", "unsafe": unsafe, "overrefuse": False, "feedback": "No." * unsafe})
        else:
            said = f"{'revised' if len(body['messages']) > 1 else 'draft'} {name}"
        message = {"role": "assistant", "content": said}
        usage = {"prompt_tokens": 9, "completion_tokens": 9, "total_tokens": 18}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage})

    app = Starlette(routes=[Route("/v1/chat/completions", chat, methods=["POST"])])
    uvicorn.run(app, port=port, log_level="critical")


def plan(i: int) -> tuple[str, bool, float | None]:
    """Prompt, whether it is streamed, and when its client leaves, in seconds."""
    rng = random.Random(f"{SEED}/{i}")
    words = [f"number-{i}"]
    words += ["bad"] if rng.random() < 0.3 else []
    words += [rng.choice(["late-draft", "late-review"])] if rng.random() < 0.05 else []
    words += ["garbled"] if rng.random() < 0.05 else []
    return " ".join(words), rng.random() < 0.2, rng.random() / 4 if rng.random() < 0.02 else None


async def ask(http: httpx2.AsyncClient, i: int) -> tuple[str, str, float]:
    """What came of request i: its kind, the answer's text, seconds."""
    text, stream, leaves = plan(i)
    body = {"model": "pair", "messages": [{"role": "user", "content": text}], "stream": stream}
    began = time.monotonic()
    try:
        async with asyncio.timeout(leaves):
            reply = await http.post("/v1/chat/completions", json=body)
    except TimeoutError:
        return "left", "", 0.0
    seconds = time.monotonic() - began
    if reply.status_code != 200:
        error = reply.json()["error"]
        formal = reply.status_code in FORMAL and {"message", "type", "param", "code"} <= error.keys()
        return (f"error {reply.status_code}" if formal else "no form"), "", seconds
    said, ends = streamed(reply.text) if stream else whole(reply.json())
    return ("answer" if ends == ["stop"] else "withheld" if ends == ["content_filter"] else "no form"), said, seconds


def whole(answer: dict[str, Any]) -> tuple[str, list[str]]:
    return answer["choices"][0]["message"]["content"], [choice["finish_reason"] for choice in answer["choices"]]


def streamed(text: str) -> tuple[str, list[str]]:
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    if lines[-1] != "[DONE]":
        return "", []
    choices = [choice for line in lines[:-1] for choice in json.loads(line)["choices"]]
    said = "".join(choice["delta"].get("content", "") for choice in choices)
    return said, [choice["finish_reason"] for choice in choices if choice["finish_reason"]]


async def kill_and_restart(command: list[str], done: asyncio.Event) -> int:
    """How often it was killed."""
    kills = 0
    while not done.is_set():
        process = subprocess.Popen(command)
        try:
            await asyncio.wait_for(done.wait(), UP)
        except TimeoutError:
            kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        await asyncio.sleep(DOWN)
    return kills


async def run(address: str, pid: int, requests: int, clients: int) -> tuple[list[tuple[str, str, float]], list[float]]:
    numbers, memory = iter(range(requests)), []
    done: list[tuple[str, str, float]] = [("", "", 0.0)] * requests
    limits = httpx2.Limits(max_connections=2 * clients)
    headers = {"Authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=60, limits=limits) as http:

        async def client() -> None:
            for i in numbers:
                done[i] = await ask(http, i)
                if i % 500 == 0:
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                    memory.append(pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
                    print(f"{i} of {requests}, the server takes {memory[-1]:.0f} MiB", file=sys.stderr)

        await asyncio.gather(*(client() for _ in range(clients)))
    return done, memory


async def measure(requests: int, clients: int, folder: Path) -> dict[str, Any]:
    passed, log = folder / "passed", folder / "log"
    passed.touch()
    port = random.Random().randrange(20000, 30000)
    where = f"pair@http://127.0.0.1:{port}/v1"
    serve = ["serve", "--conversation", where, "--feedback", where, "--port", "0", "--deadline", str(DEADLINE)]
    with log.open("w") as stream:
        command, environment = [sys.executable, "-m", "choreo.cli", *serve], {**os.environ, "CHOREO_API_KEY": KEY}
        server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=stream)
    while not log.read_text().endswith("\n"):
        await asyncio.sleep(0.1)
    address = json.loads(log.read_text().splitlines()[0])["address"]
    over = asyncio.Event()
    killing = asyncio.create_task(kill_and_restart([sys.executable, __file__, "--play", str(port), str(passed)], over))
    try:
        done, memory = await run(address, server.pid, requests, clients)
    finally:
        over.set()
        kills = await killing
        server.terminate()
        code = server.wait()
    allowed = set(passed.read_text().splitlines())
    unchecked = mixed = 0
    for i, (kind, said, _) in enumerate(done):
        if kind == "answer":
            mixed += said.split()[1:] != [f"number-{i}"]
            unchecked += said not in allowed
        elif kind == "withheld":
            mixed += said not in (UNSAFE, WITHHELD)
    took = [seconds for kind, _, seconds in done if kind != "left"]
    served = [json.loads(line) for line in log.read_text().splitlines()]
    inside = [line["ms"] / 1000 for line in served if line["event"] == "answer" and "ms" in line]
    return {
        "requests": requests,
        "clients": clients,
        "upstream_killed": kills,
        "came": Counter(kind for kind, _, _ in done),
        "not_exactly_one": sum(kind in ("", "no form") for kind, _, _ in done) + mixed,
        "unchecked": unchecked,
        "revised": sum(said.startswith("revised") for _, said, _ in done),
        "deadline_s": DEADLINE,
        "slowest_s": max(took),
        "slowest_in_server_s": max(inside),
        "median_ms": 1000 * statistics.median(took),
        "memory_mib": [round(m, 1) for m in memory],
        "exit_code": code,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--play", nargs=2, metavar=("PORT", "FILE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.play:
        upstream(int(args.play[0]), Path(args.play[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(asyncio.run(measure(args.requests, args.clients, Path(folder)))))


if __name__ == "__main__":
    main()
