"""What feedback costs the engine of a server, in CPU time per request, so that other work on the machine does not count.

    OMP_NUM_THREADS=1 python benchmarks/serve_cost.py RUN

96 held-out prompts by kind of traffic, 32 at once, without HTTP. `choreo bench serve` measures the whole, by the clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from choreo.microworld.suites import prompts
from choreo.serve.dance import Mode, Outcome, Wish, dance
from choreo.serve.pair import Resident
from choreo.types import Episode, Prompt

TRAFFIC = {
    "general": ("general",),
    "benign": ("sensitive_benign", "general"),
    "harmful": ("vanilla_harmful", "adversarial_harmful"),
}
PROMPTS, AT_ONCE, TURNS = 96, 32, 2


async def serve(resident: Resident, asked: list[Prompt], mode: Mode, seed: int) -> list[Outcome]:
    gate = asyncio.Semaphore(AT_ONCE)
    wish = Wish(resident.recipe.protocol.answer_tokens, 0.6, (), seed, time.monotonic() + 600)

    async def one(prompt: Prompt) -> Outcome:
        async with gate:
            return await dance(Episode(prompt, 0, ()), resident.agents, wish, mode=mode, rounds=1)

    return await asyncio.gather(*map(one, asked))


def main() -> None:
    resident = Resident(Path(sys.argv[1]))
    split = resident.recipe.world.split_seed
    for turn in range(TURNS):
        for traffic, suites in TRAFFIC.items():
            each = PROMPTS // len(suites)
            asked = [p for suite in suites for p in prompts(suite, "heldout", each, split_seed=split, seed=1)]
            spent = {}
            asyncio.run(serve(resident, asked[:AT_ONCE], "off", -1))  # warm
            for mode in ("off", "adaptive"):
                began = time.process_time()
                outcomes = asyncio.run(serve(resident, asked, mode, turn))
                spent[mode] = 1000 * (time.process_time() - began) / len(asked)
            ftr = sum(outcome.game.triggered for outcome in outcomes) / len(outcomes)
            print(
                json.dumps({"traffic": traffic, "cpu_ms": spent, "share": spent["off"] / spent["adaptive"], "ftr": ftr})
            )
    resident.worker.close()


if __name__ == "__main__":
    main()
