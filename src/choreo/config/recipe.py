"""The settings that the recipes of all methods share."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.common import MICROWORLD, Evaluation, Natural, Section, Weights, World, bare_names
from choreo.config.judge import Gold, Judge
from choreo.config.parts import ENVIRONMENTS, EnvironmentName
from choreo.config.prompts import HeldOut, suited
from choreo.config.rollouts import Rollouts
from choreo.config.track import Track
from choreo.errors import BadInput
from choreo.registry import made_by


class Recipe(Section):
    """One experiment. `choreo train RECIPE` runs it; every field has a default and a meaning.

    A method's own recipe is a subclass. It gives `method` and `name` their defaults, adds what the method takes, and
    says in `bases` and `weights` which models it loads and how. A method that trains on prompts from files declares
    `prompts: Prompts = Prompts()`, which adds `[prompts.train.NAME]`.
    """

    # Whether its method can learn from what a server or a second process samples.
    samples_remotely: ClassVar[bool] = False
    # Whether it can train where a service has the weights.
    learns_remotely: ClassVar[bool] = False

    method: str
    name: str
    seed: Natural = 0
    environment: EnvironmentName = Field(MICROWORLD, description="the source of prompts where no file gives them")
    environment_options: dict[str, Any] = Field({}, validate_default=True)
    world: World = World()
    evaluation: Evaluation = Evaluation()
    prompts: HeldOut = HeldOut()
    judge: Judge = Field(Judge(), validate_default=True)
    gold: Gold | None = Field(None, description="a second judge, which measures and gives no reward")

    track: Track = Track()
    engine: Rollouts = Rollouts()

    def from_files(self) -> bool:
        """Whether its prompts come from files, and not from its environment."""
        return bool(self.prompts.heldout or getattr(self.prompts, "train", {}))

    def bases(self) -> tuple[str, ...]:
        """The models that are loaded, as the recipe names them, each once for each that is loaded. A method's recipe
        has to say this; raises BadInput where it does not."""
        raise BadInput(f"recipe {type(self).__name__}: does not say which models it takes: define bases()")

    def weights(self) -> Weights:
        """How they are loaded, and what of them learns. Raises BadInput as `bases` does."""
        raise BadInput(f"recipe {type(self).__name__}: does not say how its models are loaded: define weights()")

    @field_validator("environment_options")
    @classmethod
    def _what_it_is_made_of(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("environment", MICROWORLD)
        if name != MICROWORLD:
            if wrong := made_by(ENVIRONMENTS.get(name), value):
                raise ValueError(f"{name}: {wrong}")
        elif value:
            raise ValueError("are of an environment of your own; the microworld's settings are in [world]")
        return bare_names(value)

    @field_validator("engine")
    @classmethod
    def _sampled_here(cls, value: Rollouts, info: ValidationInfo) -> Rollouts:
        if value.rollouts == "llama.cpp":
            raise ValueError(
                'rollouts = "llama.cpp" cannot be learnt from: it loads adapters when it starts alone; choreo eval and '
                "serve take it, by --set"
            )
        if value.remote and not cls.learns_remotely:
            raise ValueError(f'backend = "{value.backend}" is not for method = "{info.data.get("method")}" yet')
        if not (value.local or value.remote or cls.samples_remotely):
            raise ValueError(f'rollouts = "{value.rollouts}" is not for method = "{info.data.get("method")}" yet')
        if value.staleness and not cls.samples_remotely:
            raise ValueError(f'staleness = 1 is not for method = "{info.data.get("method")}" yet')
        return value

    @field_validator("judge")
    @classmethod
    def _suited(cls, value: Judge, info: ValidationInfo) -> Judge:
        return suited(value, info)

    @field_validator("gold")
    @classmethod
    def _suited_too(cls, value: Gold | None, info: ValidationInfo) -> Gold | None:
        if value is not None:
            suited(value, info)
        return value

    def judges(self) -> tuple[Judge, ...]:
        """The settings of its judges: the training judge, and the gold judge where it names one."""
        return (self.judge, self.gold) if self.gold else (self.judge,)
