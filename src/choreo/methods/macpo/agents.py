"""The agents of MACPO: a student and its teachers, each with a negative twin on the same base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from choreo.engine import checkpoint
from choreo.errors import BadInput
from choreo.methods.agents import Policy
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT
from choreo.methods.trained_model import TrainedModel
from choreo.models.chat import Ids
from choreo.runs.progress import Progress
from choreo.types import Episode, Prompt, Turn


@dataclass(frozen=True)
class Member(TrainedModel):
    """One model with its two policies: `NAME+`, which is to become good, and `NAME-`, its negative twin."""

    @property
    def positive(self) -> str:
        return f"{self.name}+"

    @property
    def negative(self) -> str:
        return f"{self.name}-"

    @classmethod
    def of(cls, name: str, base: str, recipe: MacpoRecipe) -> Member:
        """Both policies, and a copy of the start where that is the reference, equal to the base."""
        start = [f"{name}-start"] if recipe.rounds.reference == "sft" else []
        return cls.load(name, base, [f"{name}+", f"{name}-", *start], recipe)

    def fits_labelled(self, prompt: Prompt, label: str, room: int) -> bool:
        """Whether the prompt and the longer of its label and `room` more tokens are within the model's positions."""
        spelled = len(self.spell(label)) + self.chat.room(0, 0, 0) if label else 0
        return self.chat.fits(prompt.text, max(room, spelled), self.team.positions)

    def adopt(self, turns: Sequence[Turn], writer: Member) -> list[Ids]:
        """The ids of another's answers as this member would write them: the very same where both share a tokenizer."""
        if writer.chat.same_tokenizer(self.chat):
            return [turn.ids for turn in turns]
        return [self.spell(turn.text, turn.finished) for turn in turns]

    def spell(self, text: str, finished: bool = True) -> Ids:
        """The ids of a text that nobody here sampled, such as a label."""
        return (*self.chat.encode(text), *([self.chat.end_id] if finished else []))


@dataclass(frozen=True)
class Crew:
    """The student and its teachers. answer_tokens, temperature: of answers that are measured."""

    student: Member
    teachers: tuple[Member, ...]
    answer_tokens: int
    temperature: float

    @classmethod
    def load(cls, recipe: MacpoRecipe) -> Crew:
        models = {f"teacher-{k}": model for k, model in enumerate(recipe.agents.teachers, start=1)}
        teachers = tuple(Member.of(name, model, recipe) for name, model in models.items())
        student = Member.of(STUDENT, recipe.agents.student, recipe)
        return cls(student, teachers, recipe.writing.answer_tokens, recipe.evaluation.temperature)

    def __iter__(self) -> Iterator[Member]:
        return iter((self.student, *self.teachers))

    def __getitem__(self, name: str) -> Member:
        return next(member for member in self if member.name == name)

    @property
    def device(self) -> torch.device:
        return self.student.team.device

    @property
    def remarks(self) -> list[str]:
        """What a user should know of its members' chat templates."""
        return [f"{member.name}: {remark}" for member in self for remark in member.chat.remarks]

    def policies(self) -> dict[str, Policy]:
        return {name: policy for member in self for name, policy in member.policies().items()}

    def untrained(self) -> Crew:
        """The crew as it began, on the same models; it sees nothing of what this one learns."""
        return replace(
            self, student=self.student.untrained(), teachers=tuple(teacher.untrained() for teacher in self.teachers)
        )

    def fitting(self, prompts: Sequence[Prompt], what: str, progress: Progress | None = None) -> list[Prompt]:
        """The prompts that every member can be measured on: their models have room for an answer. How many have not is
        reported to `progress`. Raises BadInput where there are prompts and none fits.

        It is asked before anything is trained, or one long prompt would end a run at its first measurement, and every
        resume again.
        """
        tokens = self.answer_tokens
        kept = [prompt for prompt in prompts if all(member.fits(prompt, tokens) for member in self)]
        if prompts and not kept:
            raise BadInput(
                f"{what}: no prompt to measure on and an answer of {tokens} tokens fit into the positions of every "
                "agent's model; lower writing.answer_tokens"
            )
        if progress and (lost := len(prompts) - len(kept)):
            progress.say(
                f"! {lost} of {len(prompts)} prompts to measure on are left out: with an answer of "
                f"{tokens} tokens they are too long for some agent's model"
            )
        return kept

    def answer(self, prompts: Sequence[Prompt], *, seed: int = 0, temperature: float | None = None) -> list[Episode]:
        """The student's answers; see `Agents.answer`."""
        return self.answers_of(self.student, self.student.positive, prompts, seed, temperature)

    def answers_of(
        self, member: Member, policy: str, prompts: Sequence[Prompt], seed: int, temperature: float | None = None
    ) -> list[Episode]:
        """One answer of `policy` to each prompt; the noise follows from (seed, prompt, policy)."""
        turns = member.write(
            policy,
            [member.context(prompt) for prompt in prompts],
            [(seed, "evaluation", prompt.id) for prompt in prompts],
            tokens=self.answer_tokens,
            temperature=self.temperature if temperature is None else temperature,
        )
        return [Episode(prompt, 0, (turn,)) for prompt, turn in zip(prompts, turns, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {
            member.name: {
                "base": member.fingerprint,
                "frame": member.chat.frame,
                "agents": {policy: member.team.state_dict(policy) for policy in member.team.agents},
            }
            for member in self
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Raises BadInput, blaming `where`, for the state of agents on other bases, or of other agents, or in another
        chat format."""
        checkpoint.check(where, state, {member.name: {"base": ""} for member in self})
        for member in self:
            saved, team = state[member.name], member.team
            if saved["base"] != member.fingerprint:
                raise BadInput(f"{where}: {member.name} was trained on another base than the recipe names now")
            member.chat.check_frame(saved.get("frame"), f"{where}: {member.name}")
            checkpoint.check(where, saved, {"agents": {policy: team.example(policy) for policy in team.agents}})
            for policy in team.agents:
                team.load_state_dict(policy, saved["agents"][policy])
