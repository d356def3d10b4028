"""The recipe of a trained attacker."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from choreo.config.common import Natural, Positive, Weights
from choreo.config.recipe import Recipe
from choreo.errors import BadInput
from choreo.methods.rewriting.settings import Rewriting


class AttackerModel(Weights):
    train: Literal["lora", "full"] = Field(
        "full", description="full weights; or adapters, with which it hardly learns to write, as the output layer stays"
    )
    base: str = Field("micro-llama", description="a shipped base of the microworld, or a folder of another")


class AttackerRecipe(Recipe, Rewriting):
    """Trains in the microworld alone: the warm start is in its words, and its judge knows what a prompt means."""

    method: str = "attacker"
    name: str = "attacker"
    checkpoint_every: Positive = Field(10, description="steps between checkpoints")
    target: str = Field("", description="the run of the pair that is attacked, which does not learn")
    model: AttackerModel = AttackerModel()
    steps: Natural = Field(100, description="steps of reinforcement learning after the warm start")

    def same_world(self, prompts: Recipe, whose: str) -> None:
        """Raises BadInput, naming the setting, where the attacker's world is not that of `prompts`, those of `whose`:
        in another one it may have learnt on what is held out here."""
        for name in ("reading", "split_seed", "languages"):
            own, its = getattr(self.world, name), getattr(prompts.world, name)
            if own != its:
                raise BadInput(f"world.{name} = {own}: {whose} has {its}; both must be in one world")

    def bases(self) -> tuple[str, ...]:
        return (self.model.base,)

    def weights(self) -> Weights:
        return self.model
