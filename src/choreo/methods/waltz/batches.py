"""Which prompts a training step plays: kinds mixed as the recipe says, drawn by (seed, step)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from choreo.environments.task import Task
from choreo.errors import TooFew
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.recipe import Learning
from choreo.runs.progress import Progress
from choreo.types import KINDS, Kind, Prompt


def training_prompts(
    pair: AnyPair[Any], task: Task, learning: Learning, progress: Progress | None = None
) -> dict[Kind, list[Prompt]]:
    """Training prompts by kind whose games have room. A kind of which none is drawn need not have any.

    Raises BadInput where a kind that is drawn has none.
    """
    wanted = {kind: some if learning.mix.get(kind) else [] for kind, some in task.training().items()}
    return {kind: pair.fitting(some, f"{kind}, training", progress) for kind, some in wanted.items()}


def draw(
    prompts: Mapping[Kind, list[Prompt]],
    learning: Learning,
    seed: int,
    step: int,
    weights: Mapping[str, float] | None = None,
) -> list[tuple[Prompt, int]]:
    """The (prompt, sample index) of a step, kinds mixed as `learning.mix` says; a function of (seed, step).

    weights: of a prompt, by its suite; none draws all of a kind alike.

    Raises TooFew where there are fewer prompts than a step wants.
    """
    rng = random.Random(f"batch/{seed}/{step}")
    total = sum(learning.mix.values())
    wanted = {kind: learning.prompts * learning.mix.get(kind, 0.0) / total for kind in KINDS}
    counts = {kind: int(share) for kind, share in wanted.items()}
    # What rounding down leaves goes to the kinds that lost most by it.
    for kind in sorted(KINDS, key=lambda k: counts[k] - wanted[k])[: learning.prompts - sum(counts.values())]:
        counts[kind] += 1
    for kind, count in counts.items():
        if count > len(prompts[kind]):
            there = f"there are {len(prompts[kind])} to train on (learning.mix)"
            raise TooFew(f"a step wants {count} {kind} prompts, and {there}")
    chosen = [prompt for kind in KINDS for prompt in _pick(prompts[kind], counts[kind], weights, rng)]
    return [(prompt, sample) for prompt in chosen for sample in range(learning.samples)]


def _pick(pool: list[Prompt], count: int, weights: Mapping[str, float] | None, rng: random.Random) -> list[Prompt]:
    """`count` different prompts of `pool`; with weights by Efraimidis and Spirakis (2006): the largest
    ln(u)/w are taken."""
    if not weights:
        return rng.sample(pool, count)
    keys = [math.log(1 - rng.random()) / weights[prompt.suite] for prompt in pool]
    return [pool[i] for i in sorted(range(len(pool)), key=lambda i: -keys[i])[:count]]
