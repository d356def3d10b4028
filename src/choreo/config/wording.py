"""The words that tell the agents what to do, as a recipe may set them."""

from __future__ import annotations

import re

from pydantic import Field, ValidationInfo, field_validator

from choreo.config.common import Section

PLACES = {"review": ("prompt", "answer"), "revise": ("feedback",)}
"""The contents that stand in each of the user's turns, in their order."""


class Wording(Section):
    """What stands in the agents' contexts beside contents. An empty text is what the model's chat format has for it."""

    conversation: str = Field("", description="the system prompt of the conversation agent; none: the default one")
    feedback: str = Field("", description="the system prompt of the feedback agent; none: the default one")
    review: str = Field(
        "", description="the user's turn that asks for a review, with {prompt} and {answer}; none: the default one"
    )
    revise: str = Field(
        "", description="the user's turn that asks for a revision, with {feedback}; none: the default one"
    )

    def over(self, default: Wording) -> Wording:
        """These words, and those of `default` where there are none."""
        return default.model_copy(update={name: text for name, text in self if text})

    @field_validator("review", "revise")
    @classmethod
    def _has_its_contents(cls, value: str, info: ValidationInfo) -> str:
        wanted = PLACES[str(info.field_name)]
        if value and tuple(places(value, wanted)[1::2]) != wanted:
            raise ValueError(f"must have {' and then '.join(f'{{{name}}}' for name in wanted)}, once each")
        return value


DEFAULT = Wording()  # of the model's chat format in everything


def places(text: str, names: tuple[str, ...]) -> list[str]:
    """`text` cut at {name} for every name in `names`: text, name, text, …, text. Other braces are text."""
    return re.split(rf"\{{({'|'.join(names)})\}}", text)


def filled(text: str, **contents: str) -> str:
    """`text` with every {name} of `contents` replaced in one pass, so that braces inside a content mean nothing."""
    parts = places(text, tuple(contents))
    return "".join(contents[part] if i % 2 else part for i, part in enumerate(parts))
