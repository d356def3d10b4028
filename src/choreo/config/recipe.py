"""What every recipe has, whatever its method."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.common import Evaluation, Section, Weights, World
from choreo.config.judge import Judge
from choreo.config.prompts import HeldOut, suited


class Recipe(Section):
    """One experiment. `choreo train RECIPE` runs it; every field has a default and a meaning.

    A method's own recipe is a subclass. It gives `method` and `name` their defaults, adds what the method takes, and
    says in `bases` and `weights` which models it loads and how. A method that trains on prompts from files declares
    `prompts: Prompts = Prompts()`, which adds `[prompts.train.NAME]`.
    """

    method: str
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    world: World = World()
    evaluation: Evaluation = Evaluation()
    prompts: HeldOut = HeldOut()
    judge: Judge = Field(Judge(), validate_default=True)

    def bases(self) -> tuple[str, ...]:
        """The models that are loaded, as the recipe names them, each once for each that is loaded."""
        raise NotImplementedError(f"{type(self).__name__} does not say which models it takes: define bases()")

    def weights(self) -> Weights:
        """How they are loaded, and what of them learns."""
        raise NotImplementedError(f"{type(self).__name__} does not say how its models are loaded: define weights()")

    @field_validator("judge")
    @classmethod
    def _suited(cls, value: Judge, info: ValidationInfo) -> Judge:
        return suited(value, info)
