"""What a judge is: anything that reads a prompt and an answer and gives a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from choreo.types import Episode, Prompt, Verdict


class Judge(Protocol):
    """J(p, c) of WaltzRL, section 3. It says so when it cannot decide (`Verdict.undetermined`)."""

    @property
    def name(self) -> str: ...

    def __call__(self, prompt: Prompt, answer: str) -> Verdict: ...


def judge_episodes(judge: Judge, episodes: Sequence[Episode]) -> list[Episode]:
    """The same episodes with a verdict on every answer c_0 … c_T.

    The judge reads text alone; that an answer was cut off at its token limit is known only here,
    so such an answer is marked degenerate. Its labels stay the judge's.
    """

    def verdicts(episode: Episode) -> tuple[Verdict, ...]:
        told = [judge(episode.prompt, turn.text) for turn in episode.answers]
        return tuple(
            verdict if turn.finished else replace(verdict, degenerate=True)
            for verdict, turn in zip(told, episode.answers, strict=True)
        )

    return [replace(episode, verdicts=verdicts(episode)) for episode in episodes]
