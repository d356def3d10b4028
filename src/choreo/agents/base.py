"""What an agent is asked for, and what it must be able to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from choreo.types import Spoken

Key = tuple[int | str, ...]


History = tuple[tuple[str, str], ...]  # (answer, the feedback string on it), earlier rounds first


@dataclass(frozen=True, slots=True)
class Asked:
    """One turn that is wanted of an agent.

    answer: of the feedback agent, the answer to review; "" asks the conversation agent for its next answer.
    key: names the randomness, as an engine's request does.
    earlier: (role, text) of the conversation before the prompt.
    """

    prompt: str
    history: History
    answer: str
    key: Key
    earlier: tuple[tuple[str, str], ...] = ()


class Speaker(Protocol):
    """A model that speaks as either agent. It knows how its model is told which one it is."""

    @property
    def name(self) -> str: ...

    def say(self, agent: str, asked: Sequence[Asked], *, max_tokens: int, temperature: float) -> list[Spoken]:
        """A turn for each, in order. A turn that failed says why (`Spoken.failure`).

        Raises BadInput where the model cannot be used at all, Interrupted where it went away in the middle.
        """
        ...
