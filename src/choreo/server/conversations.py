"""The conversations whose answers LiteLLM has not sent yet, kept in memory (see `guardrail`)."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from choreo.types import Prompt

KEPT_SECONDS, KEPT_LETTERS = 600.0, 4_000_000  # how long a conversation is kept, and the letters kept for each key


@dataclass
class Conversations:
    """The conversations that LiteLLM has announced with one key, by LiteLLM's id of the call.

    Every key has its own, so that no caller can push out the conversations of another.
    """

    clock: Callable[[], float] = time.monotonic
    _kept: OrderedDict[str, tuple[float, Prompt | None]] = field(default_factory=OrderedDict)
    _letters: int = 0

    def keep(self, call: str, prompt: Prompt | None) -> None:
        """Keeps a conversation until its answer comes. None: it has no text to review.

        Two different conversations with one id are both dropped: a client may choose the id (x-litellm-call-id), and a
        harmless question must not stand in for a harmful one.
        """
        while self._kept and self._oldest() < self.clock() - KEPT_SECONDS:
            self._drop(next(iter(self._kept)))
        if call in self._kept:
            before = self._drop(call)
            prompt = prompt if prompt == before else None
        self._kept[call] = (self.clock(), prompt)
        self._letters += _letters(prompt)
        while self._letters > KEPT_LETTERS:
            self._drop(next(iter(self._kept)))

    def find(self, call: str) -> Prompt | None:
        """The conversation of a call; None where there is none, or where it is too old."""
        when, prompt = self._kept.get(call, (0.0, None))
        return prompt if when >= self.clock() - KEPT_SECONDS else None

    def _oldest(self) -> float:
        return next(iter(self._kept.values()))[0]

    def _drop(self, call: str) -> Prompt | None:
        prompt = self._kept.pop(call)[1]
        self._letters -= _letters(prompt)
        return prompt


def _letters(prompt: Prompt | None) -> int:
    """The letters of a conversation, and 256 for its place."""
    return 256 if prompt is None else 256 + len(prompt.text) + sum(len(text) for _, text in prompt.earlier)
