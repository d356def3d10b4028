"""The two halves of the training prompts. Labels of half B do not exist here, but for the strong ceiling."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from choreo.config import MacpoRecipe
from choreo.microworld.world import World
from choreo.types import Prompt


@dataclass(frozen=True, slots=True)
class Labelled:
    """A prompt with the answer that a person chose and the one that was rejected."""

    prompt: Prompt
    chosen: str
    rejected: str


@dataclass(frozen=True, slots=True)
class Halves:
    """a: with labels, the teachers'. b: bare prompts, their meaning taken out, so that nothing can judge or label
    them. ceiling: half B with labels where the recipe trains the strong ceiling, else empty."""

    a: tuple[Labelled, ...]
    b: tuple[Prompt, ...]
    ceiling: tuple[Labelled, ...] = ()


def halves(recipe: MacpoRecipe) -> Halves:
    """Training prompts of the recipe's kinds, as many of each, cut into halves that share no prompt.

    The cut and the labels follow from (seed, split seed). Raises ValueError where the world has too few prompts.
    """
    world, data = World(recipe.world), recipe.data
    pools = world.training()
    drawn: list[Prompt] = []
    for i, kind in enumerate(data.kinds):
        wanted = (2 * data.prompts + len(data.kinds) - 1 - i) // len(data.kinds)
        if wanted > len(pools[kind]):
            raise ValueError(f"two halves want {wanted} {kind} prompts, and train_prompts gives {len(pools[kind])}")
        drawn += random.Random(f"halves/{recipe.seed}/{kind}").sample(pools[kind], wanted)
    random.Random(f"halves/{recipe.seed}").shuffle(drawn)
    a, b = drawn[: data.prompts], drawn[data.prompts :]
    labelled = noisy([Labelled(p, *world.labels(p, recipe.seed)) for p in a], data.noise, recipe.seed)
    ceiling = [Labelled(p, *world.labels(p, recipe.seed)) for p in b] if recipe.tuning.labels == "human" else []
    return Halves(tuple(labelled), tuple(replace(prompt, meaning=None) for prompt in b), tuple(ceiling))


def noisy(rows: Sequence[Labelled], share: float, seed: int) -> list[Labelled]:
    """The rows with the two answers exchanged in `share` of them, the same ones for a higher share and more."""
    order = list(range(len(rows)))
    random.Random(f"noise/{seed}").shuffle(order)
    flipped = set(order[: round(share * len(rows))])
    return [Labelled(r.prompt, r.rejected, r.chosen) if i in flipped else r for i, r in enumerate(rows)]
