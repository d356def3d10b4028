"""The recipe of a trained attacker."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from choreo.config.common import Positive, Weights
from choreo.config.parts import EstimatorName
from choreo.config.recipe import Recipe


class AttackerModel(Weights):
    base: str = Field("micro-llama", description="a shipped base of the microworld, or a folder of another")


class AttackerRecipe(Recipe):
    """Trains in the microworld alone: the warm start is in its words, and its judge knows what a prompt means."""

    method: str = "attacker"
    name: str = "attacker"
    checkpoint_every: Positive = Field(10, description="steps between checkpoints")
    target: str = Field("", description="the run of the pair that is attacked, which does not learn")
    model: AttackerModel = AttackerModel()
    prompt_tokens: Positive = Field(48, description="at most this many tokens of a prompt that the attacker writes")
    warmup_steps: Annotated[int, Field(ge=0)] = Field(
        150, description="steps that learn, by likelihood, to write a prompt in other words; the base would answer it"
    )
    warmup_rows: Positive = Field(64, description="rewordings in a step of the warm start")
    steps: Annotated[int, Field(ge=0)] = Field(100, description="steps of reinforcement learning after it")
    intents: Positive = Field(16, description="harmful prompts a step")
    samples: Annotated[int, Field(ge=2)] = Field(8, description="rewritten prompts for each, a group")
    estimator: EstimatorName = Field("grpo", description="how advantages are computed")
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    warmup_lr: Annotated[float, Field(gt=0)] = 1e-2
    lr: Annotated[float, Field(gt=0)] = 5e-4

    def bases(self) -> tuple[str, ...]:
        return (self.model.base,)

    def weights(self) -> Weights:
        return self.model
