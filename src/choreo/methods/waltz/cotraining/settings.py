"""The `[attack]` section of a recipe."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from choreo.config.common import Natural, Positive
from choreo.methods.rewriting.settings import Rewriting

ATTACKER = "attacker"  # its policy and model, and the prefix of its figures


class CoTraining(Rewriting):
    """An attacker that learns against the pair while the pair learns: before every `pair_steps` steps of the pair it
    makes `attacker_steps` updates, against the pair as it then is."""

    share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="the share of a step's harmful and benign prompts that the attacker rewrites"
    )
    attacker_steps: Positive = Field(5, description="updates of the attacker in a round")
    pair_steps: Positive = Field(10, description="steps of the pair after each round")
    population: Natural = Field(
        0, description="past attackers, as they were after earlier rounds, that write prompts for the pair too"
    )

    def learns_before(self, step: int) -> bool:
        """Whether the attacker has a round before the pair's step (1, 2, …)."""
        return (step - 1) % self.pair_steps == 0

    def rounds(self, step: int) -> int:
        """How many rounds the attacker has had when the pair's step `step` is done."""
        return math.ceil(step / self.pair_steps)
