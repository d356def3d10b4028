"""The settings of whatever trains an attacker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, TypeVar

from pydantic import Field

from choreo.config.common import AboveZero, Fraction, Natural, Positive, Section, Weights
from choreo.config.parts import EstimatorName
from choreo.errors import TooFew
from choreo.types import Kind, Prompt

W = TypeVar("W", bound=Weights)


class Rewriting(Section):
    """A warm start on rewordings, then policy-gradient updates on prompts that the attacker writes."""

    prompt_tokens: Positive = Field(48, description="at most this many tokens of a prompt that the attacker writes")
    warmup_steps: Natural = Field(
        600, description="steps that learn, by likelihood, to write a prompt in other words; the base would answer it"
    )
    warmup_rows: Positive = Field(32, description="rewordings in a step of the warm start")
    intents: Positive = Field(16, description="prompts an update, from which the attacker writes others")
    benign: Fraction = Field(
        0.5,
        description="share of these that are benign: the attacker is paid where the final answer over-refuses, and "
        "its prompt still asks for the same",
    )
    samples: Annotated[int, Field(ge=2)] = Field(8, description="rewritten prompts for each, a group")
    estimator: EstimatorName = Field("grpo", description="how the attacker's advantages are computed")
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    warmup_lr: AboveZero = Field(5e-3, description="the highest rate: it rises, stays, and falls to zero")
    lr: AboveZero = Field(2e-4, description="of the attacker")

    def warmup_rate(self, step: int) -> float:
        """The learning rate of step 1, 2, … of the warm start: it rises over 20 steps, and falls to nothing from the
        middle on, as in pretraining."""
        return self.warmup_lr * min(1.0, step / 20, 2 * (self.warmup_steps + 1 - step) / self.warmup_steps)

    def counts(self) -> dict[Kind, int]:
        """How many prompts of each kind an update takes."""
        benign = round(self.benign * self.intents)
        return {"harmful": self.intents - benign, "benign": benign}


def attacker_weights(pair: W) -> W:
    """How the attacker beside a pair is loaded, where the pair is loaded as `pair` says: as it is, but the attacker
    learns every weight. A base of the microworld never wrote the words of requests: it has learnt them only where it
    reads, and adapters leave its output layer as it is."""
    return pair.model_copy(update={"train": "full"})


def enough_intents(settings: Rewriting, training: Mapping[Kind, Sequence[Prompt]], where: str = "") -> None:
    """Raises TooFew where there are fewer prompts of a kind than an update takes. training: by kind. where: what stands
    before the names of these settings in a recipe."""
    for kind, count in settings.counts().items():
        if count > len(training[kind]):
            there = f"there are {len(training[kind])} {kind} prompts to train on"
            raise TooFew(f"{where}intents = {settings.intents}: {there}")
