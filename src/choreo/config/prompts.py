"""Prompts from files: the `[prompts]` section of a recipe, with a table for every file."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.common import AboveZero, Natural, Section, bare_names
from choreo.config.judge import Judge
from choreo.config.parts import FormatName


class Source(Section):
    file: str = Field(
        description="JSON lines, a JSON array, CSV, TSV or Parquet, a folder of these, or "
        "hf:OWNER/NAME[:CONFIG][/SPLIT] of the hub; choreo data check says what is in it. "
        "choreo:english/train.jsonl, and heldout.jsonl and ability.jsonl there, ship with choreo"
    )
    format: FormatName = Field("", description="by default known by the fields of its rows")
    kind: Literal["", "harmful", "benign", "general"] = Field(
        "", description="what a right answer does, for all rows: refuse, help, or be correct; by default as rows say"
    )
    wrap: str = Field("", description="a file of jailbreaks without a request; each prompt is put into one of them")
    weight: AboveZero = Field(1.0, description="how often it is drawn, relative to others of the same kind")
    most: Natural = Field(0, description="at most so many of its prompts, drawn at random; 0: all")


class HeldOut(Section):
    """Files to measure on, by name, in place of the microworld's held-out suites."""

    heldout: dict[str, Source] = Field({})

    @field_validator("heldout")
    @classmethod
    def _bare_names(cls, value: dict[str, Source]) -> dict[str, Source]:
        return bare_names(value)


class Prompts(HeldOut):
    """Files to train on and to measure on, by name, in place of the microworld. Without a held-out file, about one
    prompt in ten of the training files is held out, chosen by a checksum of its text and of what stands before it."""

    train: dict[str, Source] = Field({})

    @field_validator("train")
    @classmethod
    def _bare_names_too(cls, value: dict[str, Source]) -> dict[str, Source]:
        return bare_names(value)


class SystemMessages(Section):
    """System messages of callers, which some prompts are given. What a right answer does must stay what it is."""

    train: str = Field(
        "",
        description="a file with a message in each row, {role, content}, as choreo:english/system_messages.jsonl that "
        "ships; some prompts are trained on under one of these",
    )
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="share of the training prompts that are given one; a prompt with its own keeps it"
    )
    heldout: str = Field(
        "",
        description="another such file, as choreo:english/system_messages_heldout.jsonl; every prompt that is measured "
        "is measured once more under one of these",
    )

    @field_validator("share")
    @classmethod
    def _of_some(cls, value: float, info: ValidationInfo) -> float:
        if value != 0.5 and not info.data.get("train"):
            raise ValueError("goes with train alone, which names the file")
        return value


def suited(value: Judge, info: ValidationInfo) -> Judge:
    """`value`, after a check that it can judge the recipe's prompts. The exact judge needs the meanings of the
    microworld's prompts, which prompts from files do not have."""
    prompts = info.data.get("prompts")
    from_files = prompts and (prompts.heldout or getattr(prompts, "train", {}))
    return blame_exact(value) if from_files else value


def blame_exact(judge: Judge) -> Judge:
    """`judge`, after a check that the exact judge, which needs the microworld's meanings, is not among its kinds."""
    if "exact" in judge.kinds():
        raise ValueError('kind = "exact" knows the microworld alone; prompts from files need another judge')
    return judge
