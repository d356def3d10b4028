"""The two agents of WaltzRL, loaded: two policies on one base, or each on a base of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from choreo.agents.base import Key
from choreo.agents.constrained_review import ReviewGrammar
from choreo.agents.local import TOO_LONG, LocalAgent
from choreo.config.rollouts import Rollouts
from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.local import Kept, LocalEngine, Untrained
from choreo.engine.rollouts import sampler_of
from choreo.errors import BadInput
from choreo.game.moves import answered
from choreo.game.play import play
from choreo.methods.agents import Policy
from choreo.methods.waltz.recipe import Protocol, WaltzRecipe
from choreo.models.chat import Chat
from choreo.models.hub import fingerprint
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder, other_base
from choreo.runs.progress import Progress
from choreo.types import CONVERSATION, FEEDBACK, Episode, Limits, Prompt, Sample, TextTurn

Found = TypeVar("Found")
START = f"{FEEDBACK}-start"  # the feedback agent as it was after its warm start; RL does not change it


class Pair:
    """The agents of a recipe, ready to play.

    agents: by role; one for both roles where both are on one base.
    base: the fingerprint of it, or of both, joined by +.
    """

    def __init__(self, recipe: WaltzRecipe):
        """Raises BadInput where there is no such base, before any is loaded, or its chat template cannot be used."""
        shared = recipe.model.shared()
        folders = [base_folder(base) for base, _ in shared]
        self.base = "+".join(map(fingerprint, folders))
        self.agents: dict[str, LocalAgent[LocalEngine]] = {}
        self._kept: dict[Team, Kept] = {}  # shared by all pairs that this one gives of what it was
        self._named: list[tuple[str, Chat]] = []
        for folder, ((base, template), roles) in zip(folders, shared.items(), strict=True):
            chat = load_chat(folder, template, rounds=recipe.protocol.rounds, wording=recipe.protocol.wording)
            self._named.append((base, chat))
            kept = [START] if recipe.warmup.on and FEEDBACK in roles else []
            team = Team.open(folder, [*roles, *kept], seed=recipe.seed, **recipe.model.loading())
            engine = LocalEngine(team, pad_id=chat.pad_id, end_id=chat.end_id)
            writer = self.agents[CONVERSATION].chat if CONVERSATION in self.agents else chat
            grammar = _grammar(chat, recipe.protocol, base) if FEEDBACK in roles else None
            self.agents |= dict.fromkeys(roles, LocalAgent(chat, engine, writer, name=base, grammar=grammar))
        self.warms_up = recipe.warmup.on
        self.protocol, self.temperature = recipe.protocol, recipe.evaluation.temperature
        self._rollouts = recipe.engine

    @contextmanager
    def rollouts(self) -> Iterator[Pair]:
        """The pair as it samples what it learns from, by the engine that the recipe names: itself, where that is the
        one of this process. Raises BadInput where a server cannot be used."""
        with self.sampled_by(self._rollouts) as other:
            yield other

    @contextmanager
    def sampled_by(self, settings: Rollouts) -> Iterator[Pair]:
        """The pair as it samples by another engine: itself, where that is the one of this process. Raises BadInput
        where a server cannot be used."""
        if settings.local:
            yield self
            return
        if len(self.models()) > 1:
            raise BadInput("a server has one base, and the agents are on two (engine.rollouts)")
        with ExitStack() as open_engines:
            other = copy(self)
            other.agents, other._kept = {}, {}
            for agent, roles in self.models().items():
                engine = open_engines.enter_context(sampler_of(settings, agent.engine))
                other.agents |= dict.fromkeys(roles, replace(agent, engine=engine))
            yield other

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

    def team(self, agent: str) -> Team:
        return self.agents[agent].engine.team

    def masks(self, role: str) -> torch.Tensor | None:
        """The masks that the turns of `role` are scored under (`Learner`). None where they are free.

        Both agents of one base have those of its reviews, and its answers, which are free, need none.
        """
        grammar = self.agents[role].grammar
        return None if grammar is None else grammar.masks

    @property
    def device(self) -> torch.device:
        return self.team(CONVERSATION).device

    def policies(self) -> dict[str, Policy]:
        return {role: Policy(agent.chat, agent.engine.team, agent.name) for role, agent in self.agents.items()}

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

    def models(self) -> dict[LocalAgent[LocalEngine], list[str]]:
        """Every model that is loaded, once, with the agents on it."""
        return {agent: [role for role, own in self.agents.items() if own is agent] for agent in self.agents.values()}

    def untrained(self) -> Pair:
        """The pair as it began, on the same models; it sees nothing of what this one learns."""
        return self._answering_as({})

    def warm(self) -> Pair:
        """The pair as it was after its warm start and before RL: its conversation agent is the base."""
        return self._answering_as({FEEDBACK: START})

    def _answering_as(self, policies: Mapping[str, str]) -> Pair:
        other = copy(self)
        other.agents = {}
        for agent, roles in self.models().items():
            own = agent.engine
            kept = self._kept.setdefault(own.team, {})
            sampler = None if own.exact else own
            engine = Untrained(
                own.team, policies=policies, kept=kept, sampler=sampler, pad_id=own.pad_id, end_id=own.end_id
            )
            other.agents |= dict.fromkeys(roles, replace(agent, engine=engine))
        return other

    def reference(self, agent: str) -> str | None:
        """The policy that is π_ref of the agent's KL: what it was after its warm start, else the base (None).

        Most codes take the SFT model, and have to: the base gives a review no probability worth its name, so a KL from
        it would pay the agent for forgetting how to write one.
        """
        return START if agent == FEEDBACK and self.warms_up else None

    def start_state(self) -> dict[str, Any]:
        """What a checkpoint holds of the warm start: nothing, or the feedback agent as it was after it."""
        return {"start": self.team(FEEDBACK).state_dict(START)} if self.warms_up else {}

    def load_start(self, where: str | Path, saved: Mapping[str, Any]) -> None:
        """Takes from a checkpoint what `start_state` gave. Raises BadInput where it has none."""
        if self.warms_up:
            team = self.team(FEEDBACK)
            checkpoint.check(where, saved, {"start": team.example(START)})
            team.load_state_dict(START, saved["start"])

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

    def of_each(
        self, samples: Sequence[Sample], ask: Callable[[LocalEngine, list[Sample]], Sequence[Found]]
    ) -> list[Found]:
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

    def _fits(self, prompt: Prompt, agent: LocalAgent[LocalEngine], roles: Sequence[str]) -> bool:
        room = self._room(agent, roles, [role for role, _ in prompt.earlier])
        return agent.chat.fits(prompt.words, room, agent.engine.positions)

    def _room(self, agent: LocalAgent[LocalEngine], roles: Sequence[str], earlier: Sequence[str] = ()) -> int:
        """The tokens that a game takes at most beyond its prompt, in the contexts of `roles`."""
        limits = self.protocol.limits
        return agent.chat.room(max(1, limits.rounds), limits.answer_tokens, limits.feedback_tokens, earlier, roles)


def _grammar(chat: Chat, protocol: Protocol, base: str) -> ReviewGrammar | None:
    """What the recipe holds reviews to. Raises BadInput where `feedback_tokens` is too few for any review."""
    if not protocol.constrained:
        return None
    try:
        grammar = ReviewGrammar.of(chat, protocol.reasoning_tokens)
    except BadInput as error:
        raise BadInput(f"{base}: {error}") from None
    if grammar.need > protocol.feedback_tokens:
        raise BadInput(
            f"protocol.feedback_tokens = {protocol.feedback_tokens}: a constrained review by {base} takes at least "
            f"{grammar.need} tokens"
        )
    return grammar


def _length(prompt: Prompt) -> int:
    return len(prompt.words)
