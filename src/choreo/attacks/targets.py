"""Who is attacked: the pair of a run, loaded here, or one that `choreo serve` serves. Each is attacked as two systems,
the pair and its conversation agent alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from choreo.agents.endpoint import EndpointAgent
from choreo.clients.http import Endpoint
from choreo.game.moves import answered
from choreo.methods.attacker.play import AttackedPair
from choreo.types import CONVERSATION, Episode, Limits, Prompt

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
        self._attacked = AttackedPair.load(path, step)
        self.recipe, self.pair = self._attacked.recipe, self._attacked.pair
        self._key = (seed, "attack")

    @property
    def systems(self) -> Sequence[str]:
        return (PAIR, ALONE) if self.recipe.protocol.limits.rounds else (ALONE,)

    @property
    def about(self) -> dict[str, Any]:
        return self._attacked.about

    def answer(self, system: str, sent: Sequence[Sent]) -> list[Episode[Any]]:
        """See `Target.answer`. A prompt that has no room in a model's positions gets an answer that failed."""
        return self._attacked.answer(sent, self._key, rounds=0 if system == ALONE else None)


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
