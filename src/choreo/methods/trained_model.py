"""A model and the policies that are trained on it, as methods use them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

from choreo.agents.base import Key
from choreo.config.recipe import Recipe
from choreo.config.wording import DEFAULT, Wording
from choreo.engine.agent import Team
from choreo.engine.local import LocalEngine, Untrained
from choreo.engine.requests import Request
from choreo.methods.agents import Policy
from choreo.models.chat import Chat, Ids
from choreo.models.hub import fingerprint
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import Prompt, Turn


@dataclass(frozen=True)
class TrainedModel:
    """One model with its policies.

    name: of the agent that it is, in messages. base: as the recipe names it. fingerprint: of the base's files.
    chat: turns text into the ids of prompts and back. team: the weights of the policies, which a `Learner` trains.
    engine: samples from a policy, and scores ids under one (`preference_pairs` takes it).
    """

    name: str
    base: str
    fingerprint: str
    chat: Chat
    team: Team
    engine: LocalEngine

    @classmethod
    def load(
        cls,
        name: str,
        base: str,
        policies: Sequence[str],
        recipe: Recipe,
        wording: Wording = DEFAULT,
        template: str | None = None,
    ) -> Self:
        """Every policy starts equal to the base. wording: has its system prompt, as a conversation agent's. template:
        in place of the recipe's.

        Raises BadInput where there is no such base, or it cannot be used.
        """
        folder, weights = base_folder(base), recipe.weights()
        chat = load_chat(folder, weights.template if template is None else template, wording=wording)
        team = Team.open(folder, policies, seed=recipe.seed, **weights.loading())
        engine = LocalEngine(team, pad_id=chat.pad_id, end_id=chat.end_id)
        return cls(name, base, fingerprint(folder), chat, team, engine)

    def untrained(self) -> Self:
        """The model as it began; it sees nothing of what this one learns."""
        return replace(self, engine=Untrained(self.team, pad_id=self.chat.pad_id, end_id=self.chat.end_id))

    def policies(self) -> dict[str, Policy]:
        return {policy: Policy(self.chat, self.team, self.base) for policy in self.team.agents}

    def context(self, prompt: Prompt) -> Ids:
        """The ids of everything before the answer to `prompt`."""
        return self.chat.answer_context(self.chat.encode(prompt.text), earlier=self.chat.encoded(prompt.earlier))

    def fits(self, prompt: Prompt, tokens: int) -> bool:
        """Whether the prompt and an answer of `tokens` new ones are within the model's positions."""
        room = self.chat.room(0, tokens, 0, [role for role, _ in prompt.earlier])
        return self.chat.fits(prompt.words, room, self.team.positions)

    def write(
        self, policy: str, contexts: Sequence[Ids], keys: Sequence[Key], *, tokens: int, temperature: float
    ) -> list[Turn]:
        """One answer of `policy` per context, of at most `tokens` ids. Its noise is drawn from the key and the policy's
        name, so it is the same whatever is sampled beside it."""
        requests = [Request(context, (*key, policy)) for context, key in zip(contexts, keys, strict=True)]
        done = self.engine.sample(policy, requests, max_new_tokens=tokens, temperature=temperature)
        decode, failure = self.chat.decode, self.chat.failure
        return [
            Turn(policy, 0, context, c.ids, c.logprobs, c.version, decode(c.ids), c.finished, failure(c.ids))
            for context, c in zip(contexts, done, strict=True)
        ]
