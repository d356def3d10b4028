"""The `[track]` section of a recipe: where its figures are shown beside those of other runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from choreo.config.common import Natural, Section
from choreo.config.parts import TrackerName


class Track(Section):
    to: tuple[TrackerName, ...] = Field((), description="trackers; each needs its library (choreo-rl[NAME])")
    project: Annotated[str, Field(min_length=1)] = "choreo"
    episodes_every: Natural = Field(50, description="steps between two tables of sampled episodes; 0: none")
