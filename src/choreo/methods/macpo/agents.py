"""The agents of MACPO: a strong student and its weak teachers, each with a positive and a negative policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from choreo.config.wording import Wording
from choreo.engine import checkpoint
from choreo.errors import BadInput
from choreo.methods.agents import Policy
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, teacher_names
from choreo.methods.trained_model import TrainedModel
from choreo.models.chat import Ids
from choreo.runs.progress import Progress
from choreo.types import Episode, Prompt, Turn


@dataclass(frozen=True)
class MacpoAgent(TrainedModel):
    """One model with two policies: `NAME+`, which is to become good, and `NAME-`, the negative agent, which writes what
    the other is to learn away from (MACPO, section 3)."""

    @property
    def positive(self) -> str:
        return f"{self.name}+"

    @property
    def negative(self) -> str:
        return f"{self.name}-"

    @classmethod
    def of(cls, name: str, base: str, recipe: MacpoRecipe) -> MacpoAgent:
        """Both policies, and a copy of the start where that is the reference, equal to the base."""
        start = [f"{name}-start"] if recipe.rounds.reference == "sft" else []
        wording = Wording(conversation=recipe.system)
        policies = [f"{name}+", f"{name}-", *start]
        return cls.load(name, base, policies, recipe, wording, recipe.agents.template_of(name))

    def fits_labelled(self, prompt: Prompt, label: str, room: int) -> bool:
        """Whether the prompt and the longer of its label and `room` more tokens are within the model's positions."""
        spelled = len(self.spell(label)) + self.chat.room(0, 0, 0) if label else 0
        before = self.chat.room(0, 1, 0, [role for role, _ in prompt.earlier]) - self.chat.room(0, 1, 0)
        return self.chat.fits(prompt.words, max(room, spelled) + before, self.team.positions)

    def adopt(self, turns: Sequence[Turn], author: MacpoAgent) -> list[Ids]:
        """The ids of another's answers in this agent's tokenizer: the very same where both share it."""
        if author.chat.same_tokenizer(self.chat):
            return [turn.ids for turn in turns]
        return [self.spell(turn.text, turn.finished) for turn in turns]

    def spell(self, text: str, finished: bool = True) -> Ids:
        """The ids of a text that was not sampled in this tokenizer, such as a label."""
        return (*self.chat.encode(text), *([self.chat.end_id] if finished else []))


@dataclass(frozen=True)
class MacpoAgents:
    """The strong student and its weak teachers. answer_tokens, temperature: of answers that are measured."""

    student: MacpoAgent
    teachers: tuple[MacpoAgent, ...]
    answer_tokens: int
    temperature: float

    @classmethod
    def load(cls, recipe: MacpoRecipe) -> MacpoAgents:
        models = zip(teacher_names(recipe), recipe.agents.teachers, strict=True)
        teachers = tuple(MacpoAgent.of(name, model, recipe) for name, model in models)
        student = MacpoAgent.of(STUDENT, recipe.agents.student, recipe)
        return cls(student, teachers, recipe.writing.answer_tokens, recipe.evaluation.temperature)

    def __iter__(self) -> Iterator[MacpoAgent]:
        return iter((self.student, *self.teachers))

    def __getitem__(self, name: str) -> MacpoAgent:
        return next(agent for agent in self if agent.name == name)

    @property
    def device(self) -> torch.device:
        return self.student.team.device

    @property
    def remarks(self) -> list[str]:
        """What a user should know of its agents' chat templates."""
        return [f"{agent.name}: {remark}" for agent in self for remark in agent.chat.remarks]

    def policies(self) -> dict[str, Policy]:
        return {name: policy for agent in self for name, policy in agent.policies().items()}

    def untrained(self) -> MacpoAgents:
        """The agents as they began, on the same models; they see nothing of what these learn."""
        return replace(
            self, student=self.student.untrained(), teachers=tuple(teacher.untrained() for teacher in self.teachers)
        )

    def fitting(self, prompts: Sequence[Prompt], what: str, progress: Progress | None = None) -> list[Prompt]:
        """See `methods.agents.Agents`. It is called before anything is trained: else one long prompt would end a run at
        its first measurement, and every resume again."""
        tokens = self.answer_tokens
        kept = [prompt for prompt in prompts if all(agent.fits(prompt, tokens) for agent in self)]
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
        """The student's answers; see `methods.agents.Agents`."""
        return self.answers_of(self.student, self.student.positive, prompts, seed, temperature)

    def answers_of(
        self, agent: MacpoAgent, policy: str, prompts: Sequence[Prompt], seed: int, temperature: float | None = None
    ) -> list[Episode]:
        """One answer of `policy`, one of `agent`, to each prompt; the noise follows from (seed, prompt, policy)."""
        turns = agent.write(
            policy,
            [agent.context(prompt) for prompt in prompts],
            [(seed, "evaluation", prompt.id) for prompt in prompts],
            tokens=self.answer_tokens,
            temperature=self.temperature if temperature is None else temperature,
        )
        return [Episode(prompt, 0, (turn,)) for prompt, turn in zip(prompts, turns, strict=True)]

    def state_dict(self) -> dict[str, Any]:
        return {
            agent.name: {
                "base": agent.fingerprint,
                "frame": agent.chat.frame,
                "agents": {policy: agent.team.state_dict(policy) for policy in agent.team.agents},
            }
            for agent in self
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Raises BadInput, blaming `where`, for the state of agents on other bases, or of other agents, or in another
        chat format."""
        checkpoint.check(where, state, {agent.name: {"base": ""} for agent in self})
        for agent in self:
            saved, team = state[agent.name], agent.team
            if saved["base"] != agent.fingerprint:
                raise BadInput(f"{where}: {agent.name} was trained on another base than the recipe names now")
            agent.chat.check_frame(saved.get("frame"), f"{where}: {agent.name}")
            checkpoint.check(where, saved, {"agents": {policy: team.example(policy) for policy in team.agents}})
            for policy in team.agents:
                team.load_state_dict(policy, saved["agents"][policy])
