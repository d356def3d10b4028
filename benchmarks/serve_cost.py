"""What feedback costs the engine of a server, in CPU time per request: other work on the machine does not count.

    OMP_NUM_THREADS=1 python benchmarks/serve_cost.py RUN
    OMP_NUM_THREADS=1 python benchmarks/serve_cost.py smollm2 --prompts 32 --at-once 16 --tokens 128

Held-out prompts by kind of traffic, without HTTP. `choreo bench serve` measures the whole, by the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time

from choreo.runs.shipped import placed
from choreo.server.bench import TRAFFIC, Load
from choreo.server.local import WorkerAgent
from choreo.server.pair import Resident
from choreo.server.session import Mode, Outcome, SessionOptions, play_session
from choreo.types import FEEDBACK, Episode, Prompt

TURNS = 2


async def serve(resident: Resident, asked: list[Prompt], mode: Mode, seed: int, load: Load) -> list[Outcome]:
    gate = asyncio.Semaphore(load.clients)
    tokens = load.tokens or resident.recipe.protocol.answer_tokens
    options = SessionOptions(tokens, 0.6, (), seed, time.monotonic() + 3600)

    async def one(prompt: Prompt) -> Outcome:
        async with gate:
            return await play_session(Episode(prompt, 0, ()), resident.agents, options, mode=mode, rounds=1)

    return await asyncio.gather(*map(one, asked))


def measured(resident: Resident, asked: list[Prompt], mode: Mode, seed: int, load: Load) -> tuple[float, list[Outcome]]:
    """CPU milliseconds per request, and how the games ended."""
    began = time.process_time()
    outcomes = asyncio.run(serve(resident, asked, mode, seed, load))
    return 1000 * (time.process_time() - began) / len(asked), outcomes


def read_by_review(outcomes: list[Outcome]) -> float:
    """Tokens that a first review reads and writes, without what all reviews begin with, which is read once."""
    reviews = [outcome.game.reviews[0] for outcome in outcomes]
    columns = zip(*(review.context for review in reviews), strict=False)
    shared = sum(1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, columns))
    return sum(len(review.context) - shared + len(review.ids) for review in reviews) / len(reviews)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run folder, or a pair that ships with choreo")
    parser.add_argument("--prompts", type=int, default=96)
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--tokens", type=int, help="the most of an answer (default: as the run was trained)")
    given = parser.parse_args()
    resident = Resident(placed(given.run))
    load = Load(resident.recipe, given.prompts, given.at_once, given.tokens)
    reviewer = resident.agents[FEEDBACK]
    assert isinstance(reviewer, WorkerAgent)
    for turn in range(TURNS):
        for traffic in TRAFFIC:
            # Other prompts each time, where there are enough: what was asked before is half read already.
            warm, first, second, third = (load.drawn(traffic, given.prompts, 4 * turn + i) for i in range(4))
            asyncio.run(serve(resident, warm, "adaptive", -1, load))
            off, drafts = measured(resident, first, "off", turn, load)
            adaptive, outcomes = measured(resident, second, "adaptive", turn, load)
            grammar, reviewer.grammar = reviewer.grammar, None
            sampled, alike = measured(resident, third, "adaptive", turn, load)
            reviewer.grammar = grammar
            figures = {
                "traffic": traffic,
                "off_ms": off,
                "adaptive_ms": adaptive,
                "nothing_given_ms": sampled,
                "share": off / adaptive,
                "ftr": sum(o.game.triggered for o in outcomes) / len(outcomes),
                "answer_tokens": sum(len(o.game.answers[0].ids) for o in drafts) / len(drafts),
                "read_by_review": read_by_review(outcomes),
                "feedback_tokens": sum(o.tokens("feedback") for o in outcomes),
                "feedback_tokens_nothing_given": sum(o.tokens("feedback") for o in alike),
            }
            print(json.dumps(figures), flush=True)
    resident.worker.close()


if __name__ == "__main__":
    main()
