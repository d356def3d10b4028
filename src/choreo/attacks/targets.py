"""Who is attacked: the pair of a run, loaded here, or one that `choreo serve` serves. Each is attacked as two systems,
the pair and its conversation agent alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from choreo.agents.endpoint import EndpointAgent
from choreo.agents.local import TOO_LONG
from choreo.clients.http import Endpoint
from choreo.game.moves import answered
from choreo.game.play import play
from choreo.methods.base import method_of, run_of_a_pair
from choreo.methods.waltz.agents import Pair
from choreo.types import CONVERSATION, Episode, Limits, Prompt, TextTurn

PAIR, ALONE = "pair", "alone"
MODES = {PAIR: "adaptive", ALONE: "off"}  # of a server

REPLIES = "replies.sqlite"
PATIENCE = 4  # tries in a row without a reply, and a server counts as gone

Sent = tuple[Prompt, int]
"""A prompt, and the number of the try: the answers to one prompt differ by it."""


class Target(Protocol):
    """systems: which of PAIR and ALONE can be attacked. about: what it is, for the record: an attack that goes on must
    find the same."""

    @property
    def systems(self) -> Sequence[str]: ...

    @property
    def about(self) -> dict[str, Any]: ...

    def answer(self, system: str, sent: Sequence[Sent]) -> list[Episode[Any]]:
        """The games on the prompts, in order, not judged. The last answer of each is the final one. Raises BadInput
        where the target cannot be used, and Interrupted where it went away."""
        ...


class RunTarget:
    """The pair of the run at `path` as its checkpoint of `step` has it, by default the last; untrained at step 0, or
    where there is none. It plays by the code that training and `choreo eval` use: a review that does not parse lets the
    draft pass, and a revision is final.

    Raises BadInput where it is no run of a pair, or has no such checkpoint.
    """

    def __init__(self, path: Path, seed: int, step: int | None = None):
        self.recipe, self.step, checkpoint = run_of_a_pair(path, step)
        self.pair: Pair = method_of(self.recipe).load(self.recipe, checkpoint)
        self.limits: Limits = self.recipe.protocol.limits
        self._key = (seed, "attack")

    @property
    def systems(self) -> Sequence[str]:
        return (PAIR, ALONE) if self.limits.rounds else (ALONE,)

    @property
    def about(self) -> dict[str, Any]:
        return {"step": self.step, "base": self.pair.base}

    def answer(self, system: str, sent: Sequence[Sent]) -> list[Episode[Any]]:
        """See `Target.answer`. A prompt that has no room in a model's positions gets an answer that failed."""
        limits = replace(self.limits, rounds=0) if system == ALONE else self.limits
        fits = [self.pair.has_room(prompt) for prompt, _ in sent]
        asked = [one for one, fit in zip(sent, fits, strict=True) if fit]
        temperature = self.recipe.evaluation.temperature
        played = iter(play(self.pair.agents, asked, limits, key=self._key, temperature=temperature))
        return [
            next(played) if fit else answered(Episode(*one, ()), _no_answer(TOO_LONG))
            for one, fit in zip(sent, fits, strict=True)
        ]


class ServedTarget:
    """The pair that a server of choreo serves as `model` at `url`, asked in its modes adaptive and off: what a caller
    gets, at the server's own temperature. So an answer that is withheld is a refusal.

    key_variable: the environment variable that holds a key which allows `modes`. folder: where replies are kept.
    """

    def __init__(self, model: str, url: str, seed: int, folder: Path, key_variable: str, timeout: float):
        self.model, self.url, self._key = model, url, (seed, "attack")
        self._agents = {
            system: EndpointAgent(
                Endpoint(
                    url,
                    model,
                    key_variable,
                    temperature=None,
                    timeout=timeout,
                    patience=PATIENCE,
                    extra={"choreo": {"mode": mode}},
                ),
                folder / REPLIES,
            )
            for system, mode in MODES.items()
        }

    @property
    def systems(self) -> Sequence[str]:
        return tuple(MODES)

    @property
    def about(self) -> dict[str, Any]:
        return {"model": self.model, "url": self.url}

    def answer(self, system: str, sent: Sequence[Sent]) -> list[Episode[Any]]:
        """See `Target.answer`. A game has the answer that left the server, and nothing of what came before it."""
        games: list[Episode[Any]] = [Episode(prompt, number, ()) for prompt, number in sent]
        limits = Limits(0, 2**16, 1)  # a server has limits of its own
        turns = self._agents[system].turns(games, CONVERSATION, limits, key=self._key, temperature=None)
        return [answered(game, turn) for game, turn in zip(games, turns, strict=True)]


def _no_answer(why: str) -> TextTurn:
    return TextTurn(CONVERSATION, 0, "", False, 0, why)
