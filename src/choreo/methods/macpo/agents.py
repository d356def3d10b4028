"""The agents of MACPO: a student and its teachers, each with a negative twin on the same base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.local import LocalEngine, Untrained
from choreo.engine.requests import Request
from choreo.errors import BadInput
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.models.chat import Chat, Ids
from choreo.models.hub import fingerprint
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import Prompt, Turn

Key = tuple[int | str, ...]
STUDENT = "student"


@dataclass(frozen=True)
class Member:
    """One model with its two policies: `NAME+`, which is to become good, and `NAME-`, its negative twin.

    base: fingerprint of the model's files.
    """

    name: str
    base: str
    chat: Chat
    team: Team
    engine: LocalEngine

    @property
    def positive(self) -> str:
        return f"{self.name}+"

    @property
    def negative(self) -> str:
        return f"{self.name}-"

    @classmethod
    def load(cls, name: str, model: str, recipe: MacpoRecipe) -> Member:
        """Both policies start equal to the base. Raises BadInput where there is no such base."""
        folder, agents = base_folder(model), recipe.agents
        policies = [f"{name}+", f"{name}-", *([f"{name}-start"] if recipe.rounds.reference == "sft" else [])]
        chat = load_chat(folder, agents.template)
        team = Team.open(folder, policies, seed=recipe.seed, **agents.loading())
        return cls(name, fingerprint(folder), chat, team, LocalEngine(team, pad_id=chat.pad_id, end_id=chat.end_id))

    def untrained(self) -> Member:
        """The member as it began, on the same model; it sees nothing of what this one learns."""
        return replace(self, engine=Untrained(self.team, pad_id=self.chat.pad_id, end_id=self.chat.end_id))

    def context(self, prompt: Prompt) -> Ids:
        return self.chat.answer_context(self.chat.encode(prompt.text))

    def fits(self, prompt: str, label: str, room: int) -> bool:
        """Whether the prompt and the longer of its label and `room` more tokens are within the model's positions."""
        spelled = len(self.spell(label)) + self.chat.room(0, 0, 0) if label else 0
        return self.chat.fits(prompt, max(room, spelled), self.team.positions)

    def write(
        self, policy: str, contexts: Sequence[Ids], keys: Sequence[Key], *, tokens: int, temperature: float
    ) -> list[Turn]:
        """One answer of `policy` per context. Its noise is drawn from the key and the policy's name."""
        requests = [Request(context, (*key, policy)) for context, key in zip(contexts, keys, strict=True)]
        done = self.engine.sample(policy, requests, max_new_tokens=tokens, temperature=temperature)
        decode, failure = self.chat.decode, self.chat.failure
        return [
            Turn(policy, 0, context, c.ids, c.logprobs, c.version, decode(c.ids), c.finished, failure(c.ids))
            for context, c in zip(contexts, done, strict=True)
        ]

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
    student: Member
    teachers: tuple[Member, ...]

    @classmethod
    def load(cls, recipe: MacpoRecipe) -> Crew:
        models = {f"teacher-{k}": model for k, model in enumerate(recipe.agents.teachers, start=1)}
        teachers = tuple(Member.load(name, model, recipe) for name, model in models.items())
        return cls(Member.load(STUDENT, recipe.agents.student, recipe), teachers)

    def __iter__(self) -> Iterator[Member]:
        return iter((self.student, *self.teachers))

    def __getitem__(self, name: str) -> Member:
        return next(member for member in self if member.name == name)

    def remarks(self) -> list[str]:
        """What a user should know of its members' chat templates."""
        return [f"{member.name}: {remark}" for member in self for remark in member.chat.remarks]

    def fitting(self, prompts: Sequence[Prompt], tokens: int) -> list[Prompt]:
        """The prompts to which every member has room for an answer of `tokens`. Raises BadInput where there are prompts
        and none has."""
        kept = [p for p in prompts if all(m.fits(p.text, "", m.chat.room(0, tokens, 0)) for m in self)]
        if prompts and not kept:
            raise BadInput(
                f"no prompt to measure on and an answer of {tokens} tokens fit into the positions of every "
                "agent's model; lower writing.answer_tokens"
            )
        return kept

    def state_dict(self) -> dict[str, Any]:
        return {
            member.name: {
                "base": member.base,
                "frame": member.chat.frame,
                "agents": {policy: member.team.state_dict(policy) for policy in member.team.agents},
            }
            for member in self
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Raises BadInput, blaming `where`, for the state of agents on other bases, or of other agents, or in another
        chat format."""
        checkpoint.hold(where, state, {member.name: {"base": ""} for member in self})
        for member in self:
            saved, team = state[member.name], member.team
            if saved["base"] != member.base:
                raise BadInput(f"{where}: {member.name} was trained on another base than the recipe names now")
            member.chat.check_frame(saved.get("frame"), f"{where}: {member.name}")
            checkpoint.hold(where, saved, {"agents": {policy: team.example(policy) for policy in team.agents}})
            for policy in team.agents:
                team.load_state_dict(policy, saved["agents"][policy])
