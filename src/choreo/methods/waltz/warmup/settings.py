"""The `[warmup]` section of a recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from choreo.config.common import AboveZero, Fraction, Natural, NonNegative, Positive, Section, bare_names
from choreo.config.parts import FormatName

Cell = Literal["unsafe", "overrefuse", "satisfied_harmful", "satisfied_benign", "satisfied_general"]


class AnswerFile(Section):
    """Answers with labels, answers for the recipe's judge to label, or answers with reviews."""

    file: str = Field(description="JSON lines, a JSON array, CSV or TSV; docs/your-data.md has the formats")
    format: FormatName = Field("", description="by default known by the fields of its rows")


class Warmup(Section):
    """A supervised start of the feedback agent before RL, on reviews of labelled answers. It is on where answers, or a
    run that has one, are named."""

    answers: dict[str, AnswerFile] = Field({})
    run: str = Field("", description="a run whose finished warm start is taken, in place of one of its own")
    own: Natural = Field(
        0, description="answers of the model itself, to so many training prompts, labelled by the recipe's judge"
    )
    rows: Natural = Field(960, description="reviews per epoch; 0 leaves the warm start out")
    mix: dict[Cell, NonNegative] = Field(
        {"unsafe": 4, "overrefuse": 4, "satisfied_harmful": 2, "satisfied_benign": 1, "satisfied_general": 1},
        description="how often an epoch has answers of each verdict, and of the satisfied ones those to each kind of "
        "prompt, beside the others; rare ones are repeated",
    )
    epochs: Positive = Field(1, description="each draws its rows anew")
    batch: Positive = 16
    lr: AboveZero = Field(1e-3, description="at the beginning; it falls to nothing as a cosine")
    label_share: Fraction = Field(
        0.5, description="the weight of the labels in a constrained review's likelihood; words have the rest"
    )
    prompt_tokens: Positive = Field(512, description="answers to longer prompts are left out")
    aside: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of the prompts, by a checksum, whose answers are not learnt from but measured on"
    )
    measured: Positive = Field(150, description="at most so many answers that were kept aside are measured")

    @property
    def on(self) -> bool:
        return bool(self.rows and (self.run or self.own or self.answers))

    @field_validator("mix")
    @classmethod
    def _some_answers(cls, value: dict[Cell, float]) -> dict[Cell, float]:
        if sum(value.values()) <= 0:
            raise ValueError("must give at least one verdict a positive weight")
        return value

    @field_validator("answers")
    @classmethod
    def _bare_names(cls, value: dict[str, AnswerFile]) -> dict[str, AnswerFile]:
        return bare_names(value)
