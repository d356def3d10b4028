"""The settings of `choreo eval` without training: two models as they are, files of prompts, a judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.addresses import model_at_url
from choreo.config.checking import check
from choreo.config.common import AboveZero, Natural, NonNegative, Positive, Section, bare_names
from choreo.config.judge import Judge
from choreo.config.prompts import Source, blame_exact
from choreo.config.wording import Wording
from choreo.errors import BadInput
from choreo.files import toml
from choreo.types import Limits

AGENT = (
    "MODEL@URL of an OpenAI-compatible server, a shipped base, smollm2, a GGUF file, or a folder in Hugging Face format"
)


class Collaboration(Section):
    conversation: str = Field(description=f"who answers: {AGENT}")
    feedback: str = Field("", description=f"who reviews: {AGENT}; by default the same as conversation")
    suites: Annotated[dict[str, Source], Field(min_length=1)] = Field(description="files of prompts, by name")
    judge: Judge = Field(Judge(kind="offline"), validate_default=True)
    json_schema: bool = Field(True, description="hold reviews to their schema; false for servers that refuse it")
    rounds: Annotated[int, Field(ge=1, le=8)] = Field(1, description="feedback rounds at most")
    answer_tokens: Positive = Field(1024, description="at most this many new tokens per answer")
    feedback_tokens: Positive = Field(512, description="at most this many new tokens per feedback")
    temperature: NonNegative = 0.6
    seed: Natural = 0
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="of a model that is loaded here")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="of a model that is loaded here")
    template: str = Field(
        "", description="a file with a chat template (Jinja) in place of the own of a conversation model loaded here"
    )
    feedback_template: str = Field("", description="the same for feedback, where that is another model")
    wording: Wording = Field(Wording(), description="what the agents are told")
    key_variable: str = Field("OPENAI_API_KEY", description="the environment variable that holds the API key, if any")
    timeout: AboveZero = Field(120.0, description="seconds for one try of a turn")
    retries: Natural = 4
    concurrency: Positive = Field(8, description="requests at a time")

    @property
    def limits(self) -> Limits:
        return Limits(self.rounds, self.answer_tokens, self.feedback_tokens)

    @field_validator("suites")
    @classmethod
    def _bare_names(cls, value: dict[str, Source]) -> dict[str, Source]:
        return bare_names(value)

    @field_validator("template", "feedback_template")
    @classmethod
    def _of_a_model_here(cls, value: str, info: ValidationInfo) -> str:
        agents = "conversation", "feedback"
        conversation, feedback = (info.data.get(agent, "") for agent in agents)
        mine = info.field_name == "template"
        if value and not mine and feedback in ("", conversation):
            raise ValueError("goes with a feedback model of its own alone; template is for both where they are one")
        if value and model_at_url(conversation if mine else feedback):
            other = f"; {'feedback_template' if mine else 'template'} is of {agents[mine]}"
            raise ValueError(f"{agents[not mine]} is on a server, which has its own template{other}")
        return value

    @field_validator("judge")
    @classmethod
    def _suited(cls, value: Judge, info: ValidationInfo) -> Judge:
        return blame_exact(value)


def collaboration(file: Path | None, given: Mapping[str, Any], overrides: Sequence[str] = ()) -> Collaboration:
    """The settings from a TOML file, from the command line (`given`), and from "a.b=c" overrides; later ones win.

    Raises BadInput, naming the file's line or the option.
    """
    data, lines = toml.read(file) if file else ({}, {})
    merged = {**data, **given}
    overridden = {toml.assign(merged, argument)[0] for argument in overrides}

    def where(keys: toml.Keys) -> str:
        if file and keys and keys[0] not in overridden and keys[0] not in given:
            return f"{file}:{toml.line_of(lines, keys)}"
        return "eval"

    return check(Collaboration, merged, where)


def sources(files: Sequence[Path], formats: Sequence[str] = ()) -> dict[str, Source]:
    """Files as sources, under their own names. A second file with the same name gets a number.

    formats: one for all files, or one for each; none means that each format is recognised by its fields. Raises
    BadInput for another number of formats.
    """
    if len(formats) not in (0, 1, len(files)):
        raise BadInput(f"--format: expected one for all files, or one for each of the {len(files)}, got {len(formats)}")
    every = formats if len(formats) == len(files) else [*formats, ""][:1] * len(files)
    named: dict[str, Source] = {}
    for file, format in zip(files, every, strict=True):
        stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in file.name.split(".")[0]) or "x"
        free = (stem, *(f"{stem}-{n}" for n in range(2, len(files) + 2)))
        named[next(name for name in free if name not in named)] = Source(file=str(file), format=format)
    return named
