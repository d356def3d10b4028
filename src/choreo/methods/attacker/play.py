"""The pair that is attacked, and the attacker as an agent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from choreo.agents.base import Key
from choreo.errors import BadInput
from choreo.methods.base import method_of, run_of_a_pair
from choreo.methods.one_model import OneModel
from choreo.methods.waltz.pair import AnyPair
from choreo.runs.checkpoints import checkpoint_digest
from choreo.types import Episode, Limits, Prompt, TextTurn, Turn


@dataclass(frozen=True)
class AttackedPair:
    """The pair of a run, which does not learn here.

    about: {"step", "base", "checkpoint"}, the last two as digests: what must be the same where an attack goes on.
    """

    recipe: Any
    pair: AnyPair[Any]
    about: dict[str, Any]

    @classmethod
    def load(cls, run: str | Path, step: int | None = None, begun: Mapping[str, Any] | None = None) -> AttackedPair:
        """The pair as its checkpoint of `step` has it, by default the last; untrained at step 0, or where there is
        none. begun: what `about` was when the attack began, whose step is taken.

        Raises BadInput where `run` is no run of a pair, has no such checkpoint, or is not the pair of `begun`.
        """
        recipe, step, checkpoint = run_of_a_pair(Path(run), begun["step"] if begun else step)
        pair: AnyPair[Any] = method_of(recipe).load(recipe, checkpoint)
        about = {"step": step, "base": pair.base, "checkpoint": checkpoint_digest(checkpoint)}
        if begun and begun != about:
            raise BadInput(f"{run}: is another pair than the attacker began with: {dict(begun)}, and now {about}")
        return cls(recipe, pair, about)

    def answer(self, sent: Sequence[tuple[Prompt, int]], key: Key, rounds: int | None = None) -> list[Episode[Any]]:
        """The pair's games on (prompt, sample), in order, not judged. A prompt that has no room in a model's positions
        gets an answer that failed. rounds: of feedback, by default those of the run's recipe."""
        limits: Limits = self.recipe.protocol.limits
        limits = limits if rounds is None else replace(limits, rounds=rounds)
        return self.pair.games(sent, limits, key=key, temperature=self.recipe.evaluation.temperature)


@dataclass(frozen=True)
class Rewriter(OneModel):
    """The attacker's model. begun: what its run found of the pair when it began, as `AttackedPair.about`; None before
    that."""

    begun: Mapping[str, Any] | None = None


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
