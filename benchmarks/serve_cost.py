"""What feedback costs the engine of a server, in CPU time per request: other work on the machine does not count.

    OMP_NUM_THREADS=1 python benchmarks/serve_cost.py RUN

96 held-out prompts by kind of traffic, 32 at once, without HTTP. `choreo bench serve` measures the whole, by the clock.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

from choreo.environments.microworld.suites import prompts
from choreo.server.local import WorkerAgent
from choreo.server.pair import Resident
from choreo.server.session import Mode, Outcome, SessionOptions, play_session
from choreo.types import FEEDBACK, Episode, Prompt

TRAFFIC = {
    "general": ("general",),
    "benign": ("sensitive_benign", "general"),
    "harmful": ("vanilla_harmful", "adversarial_harmful"),
}
PROMPTS, AT_ONCE, TURNS = 96, 32, 2


async def serve(resident: Resident, asked: list[Prompt], mode: Mode, seed: int) -> list[Outcome]:
    gate = asyncio.Semaphore(AT_ONCE)
    options = SessionOptions(resident.recipe.protocol.answer_tokens, 0.6, (), seed, time.monotonic() + 600)

    async def one(prompt: Prompt) -> Outcome:
        async with gate:
            return await play_session(Episode(prompt, 0, ()), resident.agents, options, mode=mode, rounds=1)

    return await asyncio.gather(*map(one, asked))


def measured(resident: Resident, asked: list[Prompt], mode: Mode, seed: int) -> tuple[float, list[Outcome]]:
    """CPU milliseconds per request, and how the games ended."""
    began = time.process_time()
    outcomes = asyncio.run(serve(resident, asked, mode, seed))
    return 1000 * (time.process_time() - began) / len(asked), outcomes


def main() -> None:
    resident = Resident(Path(sys.argv[1]))
    reviewer = resident.agents[FEEDBACK]
    assert isinstance(reviewer, WorkerAgent)
    split = resident.recipe.world.split_seed
    for turn in range(TURNS):
        for traffic, suites in TRAFFIC.items():
            each = PROMPTS // len(suites)
            # Other prompts each time: what was asked before is half read already.
            warm, first, second, third = (
                [p for suite in suites for p in prompts(suite, "heldout", each, split_seed=split, seed=4 * turn + i)]
                for i in range(4)
            )
            asyncio.run(serve(resident, warm, "adaptive", -1))
            off, _ = measured(resident, first, "off", turn)
            adaptive, outcomes = measured(resident, second, "adaptive", turn)
            given, reviewer.grammar = reviewer.grammar, None
            sampled, alike = measured(resident, third, "adaptive", turn)
            reviewer.grammar = given
            figures = {
                "traffic": traffic,
                "off_ms": off,
                "adaptive_ms": adaptive,
                "nothing_given_ms": sampled,
                "share": off / adaptive,
                "ftr": sum(o.game.triggered for o in outcomes) / len(outcomes),
                "feedback_tokens": sum(o.tokens("feedback") for o in outcomes),
                "feedback_tokens_nothing_given": sum(o.tokens("feedback") for o in alike),
            }
            print(json.dumps(figures), flush=True)
    resident.worker.close()


if __name__ == "__main__":
    main()
