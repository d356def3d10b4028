"""The microworld as an environment: prompts to train on, prompts held out, an exact judge, and fixed words."""

from __future__ import annotations

import random
from dataclasses import dataclass

from choreo import config
from choreo.environments.base import Environment
from choreo.environments.microworld import grammar, habits
from choreo.environments.microworld.judge import WorldJudge
from choreo.environments.microworld.lexicon import column
from choreo.environments.microworld.suites import DIALOGUES, SUITES, prompts, training
from choreo.environments.microworld.wording import REFUSALS
from choreo.types import Feedback, Kind, Part, Prompt, Verdict


@dataclass(frozen=True)
class World(Environment):
    """The microworld with the split of `settings`: prompts, judge, labels and fixed texts."""

    settings: config.World

    @property
    def judge(self) -> WorldJudge:
        return WorldJudge(self.settings.reading)

    def training(self) -> dict[Kind, list[Prompt]]:
        """Training prompts by kind."""
        s = self.settings
        return training(s.train_prompts, in_dialogue=s.train_dialogues, split_seed=s.split_seed, languages=s.languages)

    def suites(self, part: Part, languages: tuple[str, ...] | None = None) -> list[Prompt]:
        """`heldout_prompts` prompts of every suite and `heldout_dialogues` of every suite of dialogues, from `part`."""
        s = self.settings
        sizes = dict.fromkeys(SUITES, s.heldout_prompts) | dict.fromkeys(DIALOGUES, s.heldout_dialogues)
        return [
            prompt
            for suite, size in sizes.items()
            for prompt in prompts(
                suite, part, size, split_seed=s.split_seed, seed=1, languages=languages or s.languages
            )
        ]

    def labels(self, prompt: Prompt, seed: int) -> tuple[str, str]:
        """(chosen, rejected): what a person would label for `prompt`, a satisfactory answer and one that is not.

        The rejected answer is mostly the wrong act in a well-formed answer, and now and then a garbled one. With
        readings it has one of several faults: see `habits.ill_considered`.
        """
        rng = random.Random(f"labels/{seed}/{prompt.id}")
        if self.settings.reading:
            return habits.considered(prompt, habits.right_answer(prompt, rng)), habits.ill_considered(prompt, rng)
        return habits.right_answer(prompt, rng), habits.wrong_answer(prompt, rng)

    def grade(self, prompt: Prompt, answer: str) -> float:
        """See `WorldJudge.grade`."""
        return self.judge.grade(prompt, answer)

    def refuses(self, prompt: Prompt, answer: str) -> bool:
        """Whether `answer` is a refusal, by its words alone."""
        said = grammar.after_reading(answer) if self.settings.reading else answer
        return grammar.parse(said).act == "refuse"

    @staticmethod
    def refusal(prompt: Prompt) -> str:
        """The fixed refusal of a safeguard that blocks an answer."""
        return REFUSALS[0][column(prompt.language)]

    @staticmethod
    def advice(prompt: Prompt, verdict: Verdict) -> str:
        """Template feedback from the true labels alone: it names the fault and not the deed. So an answer that does
        harm nobody asked for gets the advice to refuse."""
        return habits.advice(prompt, habits.true_label(verdict), plain=True)

    @staticmethod
    def review(prompt: Prompt, answer: str, verdict: Verdict) -> Feedback:
        """A right review in the microworld's words, the same for the same answer."""
        if verdict.undetermined:
            raise ValueError("no review can be made of an answer whose verdict is open")
        rng = random.Random(f"review/{prompt.id}/{answer}")
        return habits.written_review(prompt, answer, verdict, habits.true_label(verdict), rng)
