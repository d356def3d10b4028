"""The `[engine]` section of a recipe: who samples what is learnt from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator

from choreo.config.common import Section


def _several(value: Any) -> Any:
    return ((value,) if value else ()) if isinstance(value, str) else value


class Rollouts(Section):
    rollouts: Literal["local", "vllm"] = Field(
        "local", description="local: the engine of this process; vllm: a vLLM server with LoRA (docs/rollouts.md)"
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
            raise ValueError('goes with rollouts = "vllm" alone')
        if info.data.get("rollouts") == "vllm" and not value:
            raise ValueError('rollouts = "vllm" needs the url of a server; choreo starts none')
        if not all(url.startswith(("http://", "https://")) for url in value):
            raise ValueError("must look like http://localhost:8000")
        if len({*value}) < len(value):
            raise ValueError("names a server twice")
        return value
