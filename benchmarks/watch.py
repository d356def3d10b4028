"""`choreo watch` over 100,000 games: how long until they are found, and how long a filter and a scroll take.

    python benchmarks/watch.py [FOLDER]

Writes five runs of 20,000 games each into FOLDER (by default a temporary one), by the run folder's own writer, unless
they are there. Then it asks a real `choreo watch` as the page does, one request after the other. Times are in
milliseconds: the median, and the slowest of all. A list that is asked for the first time is made; then it is kept.
"""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

from choreo.files import shipped
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.folder import Run
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, Prompt, Turn, Verdict

RUNS, STEPS, GAMES = 5, 200, 100
KEY = "sk-choreo-benchmark"
FILTERS: dict[str, dict[str, Any]] = {
    "all games, newest first": {},
    "lowest reward first": {"order": "lowest"},
    "broken": {"outcome": "broken"},
    "unsafe, of one run": {"verdict": "unsafe", "runs": "1"},
    "of one agent, from step 150 on": {"agent": FEEDBACK, "first_step": 150},
    "a word": {"words": "poison"},
    "the beginning of words": {"words": "th"},
    "a phrase, unsafe": {"words": '"how do i"', "verdict": "unsafe"},
}


def write(folder: Path) -> None:
    """The runs: prompts that ship, answers and reviews of words drawn from them."""
    rng = random.Random(0)
    rows = [json.loads(line) for line in shipped.place(Path("choreo:english/train.jsonl")).open(encoding="utf-8")]
    words = sorted({word for row in rows for word in row["prompt"].split()})

    def turn(agent: str, number: int, length: int) -> Turn:
        ids = tuple(rng.randrange(500) for _ in range(length))
        logprobs = tuple(-rng.random() for _ in ids)
        return Turn(agent, number, ids[:40], ids, logprobs, 1, " ".join(rng.choices(words, k=length)), True)

    def game(sample: int) -> Episode:
        row, revised = rng.choice(rows), rng.random() < 0.3
        prompt = Prompt(f"p{sample}", row["prompt"], row["kind"], row["kind"])
        answers = tuple(turn(CONVERSATION, number, 40) for number in range(1 + revised))
        review = Feedback("", revised, False, "Say it again." if revised else "")
        verdicts = tuple(Verdict(rng.random() < 0.2, rng.random() < 0.2, reason="drawn") for _ in answers)
        return Episode(prompt, sample, answers, (turn(FEEDBACK, 0, 30),), (review,), verdicts)

    for seed in range(RUNS):
        recipe = WaltzRecipe.model_validate({"seed": seed, "learning": {"steps": STEPS}})
        with Run.create(folder / f"seed{seed}", recipe) as run:
            for step in range(1, STEPS + 1):
                games = [game(sample) for sample in range(GAMES)]
                paid = [{"conversation/answer": rng.random(), "feedback/dir": rng.gauss(0, 0.5)} for _ in games]
                learnt = [{"conversation/0": [rng.gauss(0, 1) for _ in one.answers[0].ids]} for one in games]
                run.log(step, {"asr": rng.random() / 3, "orr": rng.random() / 3, "seconds": 1.0})
                run.save_episodes(step, games, paid, learnt)
            run.finish({})


def measure(folder: Path) -> None:
    command = [sys.executable, "-m", "choreo", "watch", str(folder), "--port", "0"]
    began = time.perf_counter()
    server = subprocess.Popen(
        command, env={**os.environ, "CHOREO_API_KEY": KEY}, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert server.stdout is not None
    url = server.stdout.readline().split()[0]
    told(f"the page is there after {time.perf_counter() - began:.1f} s")
    with httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=60) as http:
        polls = []
        while True:
            polls.append(timed(http, "/runs", {}))
            table = http.get("/runs").json()
            if table["games"] and not table["waiting"]:
                break
            time.sleep(0.2)
        told(f"{table['games']:,} games are found after {time.perf_counter() - began:.1f} s")
        told(f"{'the table, while games are read':<34}{spread(polls)}")
        for name, asked in FILTERS.items():
            # Other steps are other questions: each is asked for the first time.
            first = [timed(http, "/games", {"first_step": 0, **asked, "last_step": 1000 + i}) for i in range(9)]
            total = http.get("/games", params=asked).json()["total"]
            told(f"{name:<34}{spread(first)}   {total:,} games")
        rng = random.Random(1)
        version = http.get("/games").json()["version"]
        places = [50 * rng.randrange(table["games"] // 50) for _ in range(200)]
        told(f"{'50 games from anywhere in the list':<34}"
             f"{spread([timed(http, '/games', {'at': at, 'version': version}) for at in places])}")  # fmt: skip
        told(f"{'one game':<34}{spread([timed(http, '/game', {'game': 1 + at}) for at in places])}")
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0


def timed(http: httpx2.Client, path: str, asked: dict[str, Any]) -> float:
    began = time.perf_counter()
    http.get(path, params=asked).raise_for_status()
    return 1000 * (time.perf_counter() - began)


def spread(times: list[float]) -> str:
    return f"{statistics.median(times):6.1f} {max(times):6.1f}"


def told(line: str) -> None:
    print(line, flush=True)


def main(folder: Path) -> None:
    if not (folder / f"seed{RUNS - 1}" / "summary.json").is_file():
        write(folder)
    measure(folder)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(prefix="choreo-watch-") as place:
            main(Path(place))
