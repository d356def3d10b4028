"""The `[engine]` section of a recipe: who samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from choreo.config.checking import check
from choreo.config.common import Section
from choreo.errors import BadInput
from choreo.files import toml


def _several(value: Any) -> Any:
    return ((value,) if value else ()) if isinstance(value, str) else value


class Rollouts(Section):
    rollouts: Literal["local", "vllm", "llama.cpp"] = Field(
        "local",
        description="local: the engine of this process; vllm: a vLLM server with LoRA; llama.cpp: its server, for eval "
        "and serve alone (docs/rollouts.md, docs/llama-cpp.md)",
    )
    url: Annotated[tuple[str, ...], BeforeValidator(_several)] = Field(
        (),
        description="of the server, as http://localhost:8000; or a list of several that serve the same base",
        validate_default=True,
    )
    truncate: Annotated[float, Field(ge=1)] = Field(
        2.0, description="the importance weight of a token, π_old / π_sampler, is at most this"
    )
    tolerance: Annotated[float, Field(gt=0)] = Field(
        0.05, description="nats a token by which the server's log-probabilities may differ from ours, on average"
    )
    folder: str = Field(
        "",
        description="where adapters are written for the server, which has to see this path too; none: a temporary one",
    )

    @property
    def local(self) -> bool:
        """Whether this process samples."""
        return self.rollouts == "local"

    @field_validator("url")
    @classmethod
    def _addresses(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("rollouts") == "local" and value:
            raise ValueError('goes with rollouts = "vllm" or "llama.cpp" alone')
        if info.data.get("rollouts", "local") != "local" and not value:
            raise ValueError(f'rollouts = "{info.data["rollouts"]}" needs the url of a server; choreo starts none')
        if not all(url.startswith(("http://", "https://")) for url in value):
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
    for argument in overrides:
        if toml.assign(given, argument)[0] != "engine":
            raise BadInput(
                f"--set {argument}: a run has its own settings; only who samples can be said: engine.rollouts"
            )
    found = check(_Of, given, lambda keys: f"--set {overrides[-1]}").engine
    if found.rollouts == "vllm":
        raise BadInput('--set engine.rollouts=vllm: samples what is learnt from; "llama.cpp" measures and serves')
    return found
