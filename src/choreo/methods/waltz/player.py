"""Who plays the games that a step learns from: the pair as it is now, or a second process, one step ahead.

One step ahead (`engine.staleness = 1`) the games of step n + 1 are played while step n learns, by the weights as they
were before that update (one-step off-policy: Noukhovitch et al. 2025, "Asynchronous RLHF", arXiv 2410.18252). What a
step plays still follows from (recipe, step, weights): the weights that play the next step are in every checkpoint, so
that a run is resumed exactly.
"""

from __future__ import annotations

import io
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from choreo import parallel
from choreo.engine import checkpoint
from choreo.errors import BadInput, Interrupted, Unavailable
from choreo.game.play import play
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe, learners
from choreo.types import Episode, Prompt

Batch = Sequence[tuple[Prompt, int]]
States = Mapping[str, Mapping[str, Any]]  # of the agents that learn, as `Team.state_dict` gives them
GRACE = 30.0  # seconds for the games in hand, when a run ends before they are needed


class Player:
    """Plays with the weights of now."""

    def __init__(self, recipe: WaltzRecipe, rollouts: Pair):
        self.recipe, self.rollouts = recipe, rollouts

    @property
    def exact(self) -> bool:
        """Whether its samples have the learner's own log-probabilities under the weights that are updated."""
        return self.rollouts.exact

    def games(self, step: int, batch_of: Callable[[int], Batch]) -> list[Episode]:
        """The games of `step` (1, 2, …), in the order of their batch, not judged. batch_of: the (prompt, sample) of a
        step. Called once for every step, in order."""
        return _played(self.rollouts, self.recipe, step, batch_of(step))

    def state_dict(self, step: int) -> dict[str, Any]:
        """What a checkpoint after `step` holds of it; `step` is the last one whose games were given, or that before."""
        return {}

    def load_state_dict(self, where: Path, step: int, saved: Mapping[str, Any]) -> None:
        """Takes from the checkpoint at `where`, after `step`, what `state_dict` gave. Raises BadInput where it does not
        fit."""


class PlayerAhead(Player):
    """Has a second process play the games of the next step, with the weights of now, while this one learns.

    Of several ranks the first one has that process, and all get the games.
    """

    def __init__(self, recipe: WaltzRecipe, rollouts: Pair, process: Connection | None):
        super().__init__(recipe, rollouts)
        self.process = process
        self.weights: dict[int, States] = {}  # by the step whose games they play: of this step and the next one
        self.begun: int | None = None  # the step whose games are being played

    @property
    def exact(self) -> bool:
        return False

    def games(self, step: int, batch_of: Callable[[int], Batch]) -> list[Episode]:
        """See `Player.games`. Raises what playing raised; Unavailable where the process died."""
        if self.begun != step:  # the first step, or the first one after a resume
            self._begin(step, self.weights.get(step) or self._now(), batch_of(step))
        games = parallel.first(self._received)
        if step < self.recipe.learning.steps:
            self._begin(step + 1, self._now(), batch_of(step + 1))
        self.weights = {at: states for at, states in self.weights.items() if at >= step}
        return games

    def state_dict(self, step: int) -> dict[str, Any]:
        states = self.weights.get(step + 1)  # after the last step there are none
        return {"next_games": dict(states)} if states else {}

    def load_state_dict(self, where: Path, step: int, saved: Mapping[str, Any]) -> None:
        if "next_games" in saved:
            example = {agent: self.rollouts.team(agent).example(agent) for agent in self._learners}
            checkpoint.check(where, saved["next_games"], example)
            self.weights = {step + 1: saved["next_games"]}

    @property
    def _learners(self) -> tuple[str, ...]:
        return learners(self.recipe.stages, stage=2)

    def _now(self) -> States:
        return {agent: self.rollouts.team(agent).state_dict(agent) for agent in self._learners}

    def _begin(self, step: int, states: States, batch: Batch) -> None:
        self.begun, self.weights[step] = step, states
        if self.process is None:
            return
        # As bytes: PyTorch would send tensors through shared memory, of which containers have little.
        written = io.BytesIO()
        torch.save(states, written)
        try:
            self.process.send((step, batch, written.getvalue()))
        except OSError:
            raise _dead() from None

    def _received(self) -> list[Episode]:
        assert self.process is not None  # of the first rank
        try:
            found = self.process.recv()
        except (EOFError, OSError):
            raise _dead() from None
        if isinstance(found, Exception):
            raise found
        games: list[Episode] = found
        return games


@contextmanager
def player_of(recipe: WaltzRecipe, rollouts: Pair) -> Iterator[Player]:
    """Who plays, as the recipe says. Within it a second process that plays and this one share the threads.

    rollouts: the pair as it samples what it learns from.
    """
    if not recipe.engine.staleness:
        yield Player(recipe, rollouts)
        return
    if parallel.rank():
        yield PlayerAhead(recipe, rollouts, None)
        return
    context, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    here, there = context.Pipe()
    share = max(1, threads // 2)
    process = context.Process(target=_serve, args=(recipe, share, there), name="choreo player", daemon=True)
    process.start()
    there.close()  # so that a process that dies is an end of file here, not silence
    torch.set_num_threads(max(1, threads - share))
    try:
        yield PlayerAhead(recipe, rollouts, here)
    finally:
        torch.set_num_threads(threads)
        here.close()
        process.join(GRACE)
        process.kill()
        process.join()


def _serve(recipe: WaltzRecipe, threads: int, trainer: Connection) -> None:
    """The second process: plays what it is sent, until the trainer is gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # both reach the whole group; the trainer decides
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        with Pair(recipe).rollouts() as rollouts:
            while True:
                step, batch, written = trainer.recv()
                states = torch.load(io.BytesIO(written), map_location=rollouts.device, weights_only=True)
                for agent, state in states.items():
                    rollouts.team(agent).load_state_dict(agent, state)
                trainer.send(_played(rollouts, recipe, step, batch))
    except (EOFError, ConnectionError):
        return  # the trainer is gone
    except (BadInput, Interrupted) as error:
        trainer.send(error)
    except Exception:
        trainer.send(RuntimeError(f"the process that plays failed\n{traceback.format_exc()}"))


def _played(rollouts: Pair, recipe: WaltzRecipe, step: int, batch: Batch) -> list[Episode]:
    return play(rollouts.agents, batch, recipe.protocol.limits, key=(recipe.seed, step))


def _dead() -> Unavailable:
    return Unavailable("the process that plays the games is dead; with --resume the run goes on")
