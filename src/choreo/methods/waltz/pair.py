"""A pair of WaltzRL, wherever its weights are: what both roles' agents have in common, and read alike."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

import torch

from choreo.agents.base import Key
from choreo.agents.local import TOO_LONG, LocalAgent
from choreo.config.rollouts import Rollouts
from choreo.engine import checkpoint
from choreo.engine.losses import PolicyLoss
from choreo.engine.requests import Engine
from choreo.errors import BadInput
from choreo.game.moves import answered
from choreo.game.play import play
from choreo.methods.agents import Policy
from choreo.methods.waltz.recipe import Learning, WaltzRecipe
from choreo.models.chat import Chat
from choreo.models.resolve import other_base
from choreo.runs.progress import Progress
from choreo.types import CONVERSATION, Episode, Limits, Prompt, Sample, TextTurn

Found = TypeVar("Found")
E = TypeVar("E", bound=Engine)


class PolicyLearner(Protocol):
    """What updates one agent: `engine.learner.Learner` and those that ask a service for it."""

    def update(self, samples: Sequence[Sample], loss: PolicyLoss, *, lr: float | None = None) -> dict[str, float]:
        """One step of the agent; the figures of it."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def example(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class AnyPair(ABC, Generic[E]):
    """The agents of a recipe, ready to play, on engines of one kind.

    agents: by role; one for both roles where both are on one base.
    base: the fingerprint of it, or of both, joined by +.
    """

    base: str
    agents: dict[str, LocalAgent[E]]

    def __init__(self, recipe: WaltzRecipe):
        self._named: list[tuple[str, Chat]] = []
        self.warms_up = recipe.warmup.on
        self.protocol, self.temperature = recipe.protocol, recipe.evaluation.temperature

    # ---- what a pair has to give --------------------------------------------------------------------

    @abstractmethod
    def rollouts(self) -> AbstractContextManager[Self]:
        """The pair as it samples what it learns from. Raises BadInput where a server cannot be used."""

    @abstractmethod
    def sampled_by(self, settings: Rollouts) -> AbstractContextManager[Self]:
        """The pair as it samples by another engine: itself, where that is its own. Raises BadInput where a server
        cannot be used."""

    @abstractmethod
    def untrained(self) -> Self:
        """The pair as it began, on the same models; it sees nothing of what this one learns."""

    @abstractmethod
    def warm(self) -> Self:
        """The pair as it was after its warm start and before RL: its conversation agent is the base."""

    @abstractmethod
    def learner(self, agent: str, learning: Learning, lr: float) -> PolicyLearner:
        """What updates an agent. lr: its first learning rate."""

    @abstractmethod
    def example(self, agent: str) -> dict[str, Any]:
        """An example (`checkpoint.check`) of what `take` is given."""

    @abstractmethod
    def take(self, agent: str, state: Mapping[str, Any]) -> None:
        """The agent plays as a checkpoint has it. state: what a learner's state holds under "agent"."""

    @property
    @abstractmethod
    def device(self) -> torch.device | str:
        """Where the weights are."""

    @abstractmethod
    def policies(self) -> dict[str, Policy]:
        """See `methods.agents.Agents`."""

    def reference(self, agent: str) -> str | None:
        """The policy that is π_ref of the agent's KL: the base (None), unless a pair has another."""
        return None

    def start_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the warm start."""
        return {}

    def load_start(self, where: str | Path, saved: Mapping[str, Any]) -> None:
        """Takes from a checkpoint what `start_state` gave. Raises BadInput where it has none."""

    # ---- what all have ------------------------------------------------------------------------------

    def load(self, path: Path) -> None:
        """The pair plays as the checkpoint at `path` has it. Raises BadInput where that does not fit."""
        saved = self.read_checkpoint(path)
        agents = saved["agents"]
        checkpoint.check(path, agents, {agent: {"agent": self.example(agent)} for agent in agents})
        for agent, state in agents.items():
            self.take(agent, state["agent"])
        self.load_start(path, saved)

    @property
    def exact(self) -> bool:
        """Whether the engines of all agents are exact (`Engine`)."""
        return all(agent.engine.exact for agent in self.agents.values())

    @property
    def remarks(self) -> list[str]:
        """What a user should know of the agents' chat templates."""
        return [f"{base}: {remark}" for base, chat in self._named for remark in chat.remarks]

    def frames(self) -> dict[str, Any]:
        """What each agent is trained in, for a checkpoint."""
        return {role: agent.chat.frame for role, agent in self.agents.items()}

    def check_frames(self, frames: Mapping[str, Any], where: str) -> None:
        """See `Chat.check_frame`. frames: by agent, as a checkpoint at `where` has them."""
        for agent, roles in self.models().items():
            agent.chat.check_frame(frames.get(roles[0]), where)

    def masks(self, role: str) -> torch.Tensor | None:
        """The masks that the turns of `role` are scored under (`Learner`). None where they are free.

        Both agents of one base have those of its reviews, and its answers, which are free, need none.
        """
        grammar = self.agents[role].grammar
        return None if grammar is None else grammar.masks

    def answer(self, prompts: Sequence[Prompt], *, seed: int = 0, temperature: float | None = None) -> list[Episode]:
        """The games that the pair plays on the prompts, by the recipe's protocol; see `methods.agents.Agents`."""
        chosen = self.temperature if temperature is None else temperature
        games = [(prompt, 0) for prompt in prompts]
        return play(self.agents, games, self.protocol.limits, key=(seed, "evaluation"), temperature=chosen)

    def games(
        self, sent: Sequence[tuple[Prompt, int]], limits: Limits, *, key: Key, temperature: float
    ) -> list[Episode[Any]]:
        """The pair's games on (prompt, sample), in order, not judged. A prompt that has no room in a model's positions
        gets an answer that failed."""
        fits = [self.has_room(prompt) for prompt, _ in sent]
        asked = [one for one, fit in zip(sent, fits, strict=True) if fit]
        played = iter(play(self.agents, asked, limits, key=key, temperature=temperature))
        unasked = TextTurn(CONVERSATION, 0, "", False, 0, TOO_LONG)
        return [
            next(played) if fit else answered(Episode(*one, ()), unasked) for one, fit in zip(sent, fits, strict=True)
        ]

    def models(self) -> dict[LocalAgent[E], list[str]]:
        """Every model that is loaded, once, with the agents on it."""
        return {agent: [role for role, own in self.agents.items() if own is agent] for agent in self.agents.values()}

    def read_checkpoint(self, path: Path) -> dict[str, Any]:
        """The state that a checkpoint holds. Raises BadInput where it is of other agents, bases or chat formats."""
        saved = checkpoint.load(path)
        if saved.get("base") != self.base:
            named = " and ".join(dict.fromkeys(base for base, _ in self._named))
            raise BadInput(f"{path}: {other_base(named, saved.get('base'))}")
        agents = saved.get("agents")
        if not isinstance(agents, dict) or not agents:  # an agent that is not trained has none, but one always is
            raise BadInput(f"{path}: holds no agent's state")
        if alien := agents.keys() - self.agents.keys():
            raise BadInput(f"{path}: {checkpoint.UNFIT}: it is of an agent {min(map(str, alien))!r}")
        self.check_frames(saved.get("frames") or {}, str(path))
        return saved

    def of_each(self, samples: Sequence[Sample], ask: Callable[[E, list[Sample]], Sequence[Found]]) -> list[Found]:
        """What `ask` finds for each sample, in order, on the base of its agent. It is called once per base, with all
        samples of that base."""
        found: dict[int, Found] = {}
        for agent, roles in self.models().items():
            places = [i for i, sample in enumerate(samples) if sample.agent in roles]
            if places:
                found |= zip(places, ask(agent.engine, [samples[i] for i in places]), strict=True)
        return [found[i] for i in range(len(samples))]

    def fitting(self, prompts: Sequence[Prompt], what: str, progress: Progress | None = None) -> list[Prompt]:
        """The prompts whose longest game has room in every model's positions, if an answer takes as many tokens in its
        reader's tokenizer as in its writer's. How many have none is reported to `progress`.

        Raises BadInput where there are prompts and none fits.
        """
        kept, models = list(prompts), self.models()
        for agent, roles in models.items():
            whose = "the model" if len(models) == 1 else f"the {roles[0]} agent's model"
            room, positions = self._room(agent, roles), agent.engine.positions
            before, kept = kept, [prompt for prompt in kept if self._fits(prompt, agent, roles)]
            if before and not kept:
                shortest = min(len(agent.chat.encode(prompt.words)) for prompt in sorted(before, key=_length)[:9])
                lower = "lower protocol.answer_tokens or feedback_tokens, or "
                raise BadInput(
                    f"{what}: no prompt fits: the shortest has {shortest} tokens, a game takes {room} more, "
                    f"and {whose} has {positions} positions; "
                    f"{lower if shortest < (positions or 0) else ''}give shorter prompts"
                )
            if progress and len(kept) < len(before):
                progress.say(
                    f"! {what}: {len(before) - len(kept)} of {len(prompts)} prompts are left out: a game may "
                    f"take {room} tokens more, and {whose} has {positions} positions"
                )
        return kept

    def has_room(self, prompt: Prompt) -> bool:
        """Whether the longest game on `prompt` has room in every model's positions; see `fitting`."""
        return all(self._fits(prompt, agent, roles) for agent, roles in self.models().items())

    def _fits(self, prompt: Prompt, agent: LocalAgent[E], roles: Sequence[str]) -> bool:
        room = self._room(agent, roles, [role for role, _ in prompt.earlier])
        return agent.chat.fits(prompt.words, room, agent.engine.positions)

    def _room(self, agent: LocalAgent[E], roles: Sequence[str], earlier: Sequence[str] = ()) -> int:
        """The tokens that a game takes at most beyond its prompt, in the contexts of `roles`."""
        limits = self.protocol.limits
        return agent.chat.room(max(1, limits.rounds), limits.answer_tokens, limits.feedback_tokens, earlier, roles)


def _length(prompt: Prompt) -> int:
    return len(prompt.words)
