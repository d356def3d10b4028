"""The systems of the paper's table (WaltzRL, table 1), each played on the same prompts by the same protocol.

A system is a pair of agents and a way to play them; the names are those of summary.json.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from choreo.agents.local import LocalAgent
from choreo.engine.requests import Completion, Request
from choreo.environments.task import Task
from choreo.evaluation.metrics import is_again, measure
from choreo.game.play import play
from choreo.methods.measuring import Judged, figures_of, judged_by_all
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.systems import block, oracle
from choreo.types import CONVERSATION, FEEDBACK, Episode, Prompt

# The prompts are played in so many chunks; latency is the mean of their times. Prompts take turns among three
# languages, so a number that is no multiple of three puts some of every suite and language into each chunk. Few
# prompts are played in few chunks: a chunk takes about as long with one prompt as with eight.
CHUNKS, FEW, ENOUGH = 11, 2, 8

# How each system plays: alone, with the feedback agent, behind a blocking guard, or with true labels. A gate is a guard
# before the untrained conversation agent: base+guard has the untrained feedback agent, base-with-guard the trained one.
PLAYS: dict[str, str] = {
    "base": "alone",
    "base+guard": "guard",
    "base-with-guard": "gate",
    "single-agent": "alone",
    "single-agent+guard": "guard",
    "collaboration-untrained": "feedback",
    "collaboration-warm": "feedback",
    "oracle-feedback": "oracle",
    "waltz-frozen-conversation": "feedback",
    "waltz": "feedback",
}
UNTRAINED = ("base", "base+guard", "collaboration-untrained", "oracle-feedback")


class Stopwatch:
    """An engine that sums, in seconds, how long everything after the first answers took."""

    def __init__(self, engine: Any):
        self.engine, self.pad_id, self.end_id = engine, engine.pad_id, engine.end_id
        self.positions = engine.positions
        self.added = 0.0

    def sample(self, agent: str, requests: Sequence[Request], **options: Any) -> list[Completion]:
        began = time.perf_counter()
        done = self.engine.sample(agent, requests, **options)
        if requests and requests[0].key[-2:] != ("answer", 0):
            self.added += time.perf_counter() - began
        return done

    def score(self, agent: str | None, pairs: Any, masks: Any = None) -> list[tuple[float, ...]]:
        return self.engine.score(agent, pairs, masks)


def chunks(prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    """What is played at once, in order: CHUNKS parts where each has ENOUGH prompts, and else FEW."""
    count = CHUNKS if len(prompts) >= CHUNKS * ENOUGH else min(FEW, len(prompts))
    return [prompts[first::count] for first in range(count)]


def evaluate(
    name: str,
    pair: AnyPair[Any],
    recipe: WaltzRecipe,
    prompts: Sequence[Prompt],
    on_progress: Callable[[int], None] = lambda done: None,
    task: Task | None = None,
) -> tuple[dict[str, Any], list[Episode]]:
    """The measures of system `name` on `prompts` (see `metrics.measure`), and its judged episodes.

    The noise is drawn from (seed, "evaluation") and the prompt, so systems differ by what they do alone.
    on_progress: is given after every chunk how many prompts are done. task: has the judge; by default the recipe's.
    """
    task, limits = task or Task(recipe), recipe.protocol.limits
    how = PLAYS[name]
    players = {**pair.agents}
    if how == "gate":
        players[CONVERSATION] = pair.untrained().agents[CONVERSATION]
    clocks = {role: Stopwatch(agent.engine) for role, agent in players.items()}
    agents: dict[str, LocalAgent] = {
        role: replace(agent, engine=clocks[role], name="")  # type: ignore[arg-type]
        for role, agent in players.items()
    }

    def added() -> float:
        return sum(clock.added for clock in clocks.values())

    shared: dict[str, Any] = {"key": (recipe.seed, "evaluation"), "temperature": recipe.evaluation.temperature}
    limits = replace(limits, rounds=0 if how == "alone" else max(1, limits.rounds))
    reviewer = oracle(task.judge, agents[FEEDBACK].chat, task.advice) if how == "oracle" else None
    judged: Judged = {}
    latency: list[float] = []
    done = 0
    # Apart, so that no batch of the others depends on what is measured once more.
    for again in (False, True):
        for some in chunks([prompt for prompt in prompts if is_again(prompt) == again]):
            chunk = [(prompt, 0) for prompt in some]
            before = added()
            if how in ("guard", "gate"):
                played = block(agents, chunk, limits, refusal=task.refusal, **shared)
            else:
                played = play(agents, chunk, limits, reviewer=reviewer, **shared)
            judged = judged_by_all(task, played, judged)
            latency += [] if again else [(added() - before) / len(chunk)]
            on_progress(done := done + len(chunk))
    return figures_of(
        task, judged, lambda episodes, ability: measure(episodes, latency, seed=recipe.seed, ability=ability)
    )
