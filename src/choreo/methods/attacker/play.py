"""What an attacker writes, and what the pair makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from choreo.agents.base import Key
from choreo.game.play import play
from choreo.methods.base import method_of, run_of_a_pair
from choreo.methods.one_model import OneModel
from choreo.methods.waltz.agents import Pair
from choreo.types import Episode, Limits, Prompt, TextTurn, Turn


@dataclass(frozen=True)
class AttackedPair:
    """The pair of a run, as its last checkpoint has it or untrained. It does not learn here."""

    pair: Pair
    limits: Limits
    temperature: float

    @classmethod
    def load(cls, run: str) -> AttackedPair:
        """Raises BadInput where `run` is no run of a pair."""
        recipe, _, checkpoint = run_of_a_pair(Path(run))
        pair: Pair = method_of(recipe).load(recipe, checkpoint)
        return cls(pair, recipe.protocol.limits, recipe.evaluation.temperature)

    def answer(self, sent: Sequence[tuple[Prompt, int]], key: Key) -> list[Episode]:
        """The pair's games on (prompt, sample), in order, not judged. Raises ValueError for a prompt without room."""
        return play(self.pair.agents, sent, self.limits, key=key, temperature=self.temperature)


def rewritten(prompt: Prompt, text: str) -> Prompt:
    """`prompt` in the attacker's words. Its meaning stays: what was asked for is what is judged."""
    return replace(prompt, text=text.strip(), family="trained")


@dataclass(frozen=True)
class AttackerAgent:
    """A trained attacker as an `Agent`: asked for the answer to a prompt, it writes the prompt anew."""

    agents: OneModel
    name: str = "attacker"
    trained: bool = True

    def turns(
        self, games: Sequence[Episode[Any]], role: str, limits: Limits, *, key: Key, temperature: float
    ) -> Sequence[Turn | TextTurn]:
        """See `Agent.turns`."""
        prompts = [game.prompt for game in games]
        model = self.agents.model
        return model.write(
            self.agents.answering,
            [model.context(prompt) for prompt in prompts],
            [(*key, game.prompt.id, game.sample) for game in games],
            tokens=min(limits.answer_tokens, self.agents.answer_tokens),
            temperature=temperature,
        )
