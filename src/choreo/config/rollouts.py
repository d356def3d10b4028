"""The `[engine]` section of a recipe: who has the weights, and who samples."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from choreo.config.checking import check
from choreo.config.common import AboveZero, Section
from choreo.config.parts import BackendName
from choreo.errors import BadInput
from choreo.files import toml


def _several(value: Any) -> Any:
    return ((value,) if value else ()) if isinstance(value, str) else value


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False


class Rollouts(Section):
    backend: BackendName = Field(
        "local",
        description="who has the weights, samples and learns: this process, or a service that is asked for all of it "
        "(docs/tinker.md)",
    )
    model: str = Field("", description="a backend's name of the base, where it is not model.base")
    rollouts: Literal["local", "vllm", "llama.cpp"] = Field(
        "local",
        description="local: the engine of this process; vllm: a vLLM server with LoRA; llama.cpp: its server, for eval "
        "and serve alone (docs/rollouts.md, docs/llama-cpp.md)",
    )
    url: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (),
        description="of the server, as http://localhost:8000; or a list of several that serve the same base; or of the "
        "backend. None: choreo starts a vLLM server on this machine, and ends it after training",
        validate_default=True,
    )
    command: str = Field(
        "vllm serve",
        description='what starts vLLM where there is no url, as "vllm serve --gpu-memory-utilization 0.5"; choreo adds '
        "the model and what it needs",
    )
    staleness: Literal[0, 1] = Field(
        0,
        description="1: a second process plays the games of the next step while this one learns, by weights that are "
        "one update behind (docs/rollouts.md)",
    )
    truncate: Annotated[float, Field(ge=1)] = Field(
        2.0, description="the importance weight of a token, π_old / π_sampler, is at most this"
    )
    tolerance: AboveZero = Field(
        0.05, description="nats a token by which the server's log-probabilities may differ from ours, on average"
    )
    folder: str = Field(
        "",
        description="where adapters are written for the server, which has to see this path too; none: a temporary one",
    )

    @field_validator("model", "rollouts", "staleness", "tolerance", "folder")
    @classmethod
    def _is_for_this_backend(cls, value: Any, info: ValidationInfo) -> Any:
        backend = info.data.get("backend", "local")
        if (backend == "local") == (info.field_name == "model") and value != cls._default(info):
            raise ValueError(f"has no effect with backend = {backend!r}")
        return value

    @field_validator("truncate", "tolerance", "folder")
    @classmethod
    def _has_effect(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("backend", "local") != "local":
            return value
        served = ("vllm", "llama.cpp") if info.field_name == "tolerance" else ("vllm",)
        rollouts = info.data.get("rollouts", served[0])
        if info.field_name == "truncate" and info.data.get("staleness"):
            return value
        if rollouts not in served and value != cls._default(info):
            raise ValueError(f"has no effect with rollouts = {rollouts!r}")
        return value

    @field_validator("command")
    @classmethod
    def _starts_one(cls, value: str, info: ValidationInfo) -> str:
        if value != cls._default(info):
            if info.data.get("rollouts", "vllm") != "vllm" or info.data.get("url"):
                raise ValueError('goes with rollouts = "vllm" and no url alone')
            try:
                words = shlex.split(value)
            except ValueError as error:
                raise ValueError(f"is no command line: {error}") from None
            if not words:
                raise ValueError("must not be empty")
        return value

    @property
    def starts(self) -> bool:
        """Whether choreo starts the server that samples."""
        return self.rollouts == "vllm" and not self.url

    @classmethod
    def _default(cls, info: ValidationInfo) -> Any:
        return cls.model_fields[str(info.field_name)].default

    @property
    def local(self) -> bool:
        """Whether this process samples."""
        return self.rollouts == "local" and not self.remote

    @property
    def remote(self) -> bool:
        """Whether a service has the weights, and samples and learns."""
        return self.backend != "local"

    @field_validator("url")
    @classmethod
    def _addresses(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("backend", "local") != "local":
            if len(value) > 1:
                raise ValueError("names several addresses, and a backend has one")
        elif info.data.get("rollouts") == "local" and value:
            raise ValueError('goes with rollouts = "vllm" or "llama.cpp" alone, or with a backend')
        if info.data.get("rollouts") == "llama.cpp" and not value:
            raise ValueError('rollouts = "llama.cpp" needs the url of a server; choreo starts none')
        if not all(map(_is_address, value)):
            raise ValueError("must look like http://localhost:8000")
        if len({*value}) < len(value):
            raise ValueError("names a server twice")
        return value


class _Of(Section):
    engine: Rollouts = Rollouts()


def answering(overrides: Sequence[str]) -> Rollouts:
    """Who samples where a run is measured or served, from "engine.rollouts=llama.cpp" and others of `[engine]`; without
    any, this process. Raises BadInput for others, and for a server that only training asks."""
    given: dict[str, Any] = {}
    said: dict[toml.Keys, str] = {}
    for argument in overrides:
        keys = toml.assign(given, argument)
        said[keys] = argument
        if keys[0] != "engine":
            raise BadInput(
                f"--set {argument}: a run has its own settings; only who samples can be said: engine.rollouts"
            )

    def where(keys: toml.Keys) -> str:
        """The override of the key that is wrong; one that is missing is missed by who samples."""
        return "--set " + (said.get(keys[:2]) or said.get(("engine", "rollouts")) or overrides[-1])

    found = check(_Of, given, where).engine
    if found.remote:
        raise BadInput(f"--set engine.backend={found.backend}: a run's weights stay where they were trained")
    if found.rollouts == "vllm":
        raise BadInput('--set engine.rollouts=vllm: samples what is learnt from; "llama.cpp" measures and serves')
    if found.staleness:
        raise BadInput("--set engine.staleness=1: is for training alone")
    return found
