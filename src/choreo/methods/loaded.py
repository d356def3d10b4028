"""The agents of a run, as `choreo.load` gives them. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from choreo.config import Recipe
from choreo.types import Episode, Prompt


class LoadedAgents:
    """The agents of a run, ready to answer.

    agents: what the run's method made of them. device: where they are.
    """

    def __init__(self, recipe: Recipe, agents: Any):
        self.recipe, self.agents = recipe, agents

    @property
    def device(self) -> str:
        return str(self.agents.device)

    def answer(self, prompt: str | Prompt, *, seed: int = 0, temperature: float | None = None) -> Episode:
        """The game that the agents play on a prompt: answers, reviews and revisions.

        `episode.answers[-1].text` is what a user gets. temperature: by default that of the run's evaluation.
        """
        return self.answer_all([prompt], seed=seed, temperature=temperature)[0]

    def answer_all(
        self, prompts: Sequence[str | Prompt], *, seed: int = 0, temperature: float | None = None
    ) -> list[Episode]:
        """The games on several prompts, in their order, played as one batch."""
        asked = [p if isinstance(p, Prompt) else Prompt(f"{i}", p, "general", "asked") for i, p in enumerate(prompts)]
        games: list[Episode] = self.agents.answer(asked, seed=seed, temperature=temperature)
        return games
