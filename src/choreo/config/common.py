"""What every recipe has, whatever its method."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def bare(value: dict[str, Any]) -> dict[str, Any]:
    """`value`, whose names must be such that TOML takes them without quotes."""
    for name in value:
        if not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise ValueError(f"{name!r} is no name: letters, digits, - and _ alone")
    return value


class World(Section):
    """The microworld's data: which reserve pairs and wrapper families are held out, and how many prompts."""

    split_seed: Annotated[int, Field(ge=0)] = Field(0, description="divides the reserve into training and held-out")
    languages: Annotated[tuple[Literal["en", "es", "de"], ...], Field(min_length=1)] = ("en", "es", "de")
    train_prompts: Positive = Field(6000, description="prompts drawn from the training part")
    heldout_prompts: Positive = Field(300, description="prompts per held-out suite")


class Evaluation(Section):
    temperature: Annotated[float, Field(ge=0)] = Field(
        0.6, description="0 is greedy; 0.6 is what Llama 3.1 ships in its generation_config.json"
    )


class Common(Section):
    """One experiment. `choreo train RECIPE` runs it; every field has a default and a meaning.

    A method's own recipe adds what it takes, and says its name in `method`.
    """

    method: str
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    world: World = World()
    evaluation: Evaluation = Evaluation()
