"""Sections that recipes and other settings share."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

MICROWORLD = "microworld"  # the environment of recipes that name none
Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Weights(Section):
    """How a model is loaded, and which of its weights are trained."""

    train: Literal["lora", "full"] = Field("lora", description="adapters on a shared base, or full weights per agent")
    shard: bool = Field(
        False,
        description='with train = "full", in several ranks: each keeps a share of every agent\'s weights and moments '
        "(FSDP2); one process has the whole all the same",
    )
    rank: Positive = 16
    alpha: AboveZero = 32.0
    targets: tuple[str, ...] = Field(
        (), description="linear layers that get an adapter, by the last part of their names, as q_proj; none: all do"
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the base and of what runs on it; what is learnt is float32"
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        "auto", description="auto: CUDA, Apple's or the CPU, the first that is there"
    )
    recompute: bool = Field(
        False, description="gradient checkpointing: a third more time, and memory for one layer instead of all"
    )
    temperature: AboveZero = Field(
        1.0,
        description="of the policies themselves, softmax(logits / temperature), in sampling and learning; below 1 "
        "a small model writes clearer text. evaluation.temperature comes on top",
    )
    template: str = Field(
        "",
        description="a file with a chat template (Jinja), where the tokenizer has none or is to use another; "
        "or the name of one of several that it has",
    )

    def loading(self) -> dict[str, Any]:
        """The settings that the engine needs to load a model, as arguments of `Team.load`."""
        return self.model_dump(
            include={"train", "shard", "rank", "alpha", "targets", "dtype", "device", "recompute", "temperature"}
        )

    @field_validator("shard")
    @classmethod
    def _of_whole_models(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("train", "full") != "full":
            raise ValueError('goes with train = "full" alone: adapters are small, and each rank has them whole')
        return value


def bare_names(value: dict[str, Any]) -> dict[str, Any]:
    """`value`, after a check that TOML allows its names without quotes. Raises ValueError."""
    for name in value:
        if not re.fullmatch(r"[\w-]+", name, re.ASCII):
            raise ValueError(f"{name!r} is no name: letters, digits, - and _ alone")
    return value


class World(Section):
    """The microworld's data: which reserve pairs and wrapper families are held out, and how many prompts."""

    split_seed: Natural = Field(0, description="divides the reserve into training and held-out")
    languages: Annotated[tuple[Literal["en", "es", "de"], ...], Field(min_length=1)] = ("en", "es", "de")
    train_prompts: Positive = Field(6000, description="prompts drawn from the training part")
    heldout_prompts: Positive = Field(300, description="prompts per held-out suite")
    train_dialogues: Natural = Field(0, description="dialogues of two and three turns, trained on beside them")
    heldout_dialogues: Natural = Field(0, description="dialogues per held-out suite of dialogues; 0 measures on none")
    reading: bool = Field(
        False,
        description="an answer is one line that says what the prompt asks for, and then the answer proper, which is "
        "judged; labels are of this form",
    )


class Evaluation(Section):
    temperature: NonNegative = Field(
        0.6, description="0 is greedy; 0.6 is what Llama 3.1 ships in its generation_config.json"
    )
