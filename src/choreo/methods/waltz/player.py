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
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from choreo import parallel
from choreo.engine import checkpoint
from choreo.errors import BadInput, Interrupted, Unavailable
from choreo.game.play import play
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.pairs import here
from choreo.methods.waltz.recipe import PLAYS_ALONE, WaltzRecipe, learners
from choreo.types import Episode, Prompt

Batch = Sequence[tuple[Prompt, int]]
States = Mapping[str, Mapping[str, Any]]  # of the agents that learn, as `Team.state_dict` gives them
GRACE = 30.0  # seconds for the games in hand, when a run ends before they are needed
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Player:
    """Plays with the weights of now."""

    def __init__(self, recipe: WaltzRecipe, rollouts: AnyPair[Any]):
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

    The process starts with the first games. From then on it and this one share the threads, until `close`. Of several
    ranks the first one has that process, and all get the games.
    """

    def __init__(self, recipe: WaltzRecipe, rollouts: Pair):
        """Raises BadInput in several processes, unless servers sample: each would play all games."""
        if recipe.engine.local and parallel.started() > 1:
            raise BadInput(PLAYS_ALONE)
        super().__init__(recipe, rollouts)
        self.pair = rollouts
        self.weights: dict[int, States] = {}  # by the step whose games they play: of this step and the next one
        self.begun: int | None = None  # the step whose games are being played
        self.threads = torch.get_num_threads()
        self._process: SpawnProcess | None = None
        self._connection: Connection | None = None

    @property
    def exact(self) -> bool:
        return False

    def games(self, step: int, batch_of: Callable[[int], Batch]) -> list[Episode]:
        """See `Player.games`. Raises what playing raised; Unavailable where the process died."""
        following = step < self.recipe.learning.steps
        weights = self.weights.get(step) or self._now()
        self.weights = {step: weights, **({step + 1: self._now()} if following else {})}

        def exchanged() -> list[Episode]:
            if self.begun != step:  # the first step, or the first one after a resume
                self._begin(step, batch_of(step))
            games = self._received()
            if following:
                self._begin(step + 1, batch_of(step + 1))
            return games

        return parallel.first(exchanged)

    def state_dict(self, step: int) -> dict[str, Any]:
        states = self.weights.get(step + 1)  # after the last step there are none
        return {"next_games": dict(states)} if states else {}

    def load_state_dict(self, where: Path, step: int, saved: Mapping[str, Any]) -> None:
        if "next_games" in saved:
            example = {agent: self.pair.team(agent).example(agent) for agent in self._learners}
            checkpoint.check(where, saved["next_games"], example)
            self.weights = {step + 1: saved["next_games"]}

    def close(self, wait: float = 0.0) -> None:
        """Ends the process, which has so many seconds for the games in hand: a server's adapters are then unloaded."""
        torch.set_num_threads(self.threads)
        if self._process is None or self._connection is None:
            return
        self._connection.close()
        try:
            if wait:
                self._process.join(wait)
        finally:
            self._process.kill()
            self._process.join()

    @property
    def _learners(self) -> tuple[str, ...]:
        return learners(self.recipe.stages, stage=2)

    def _now(self) -> States:
        """The weights of now, on the CPU."""
        states = {agent: self.pair.team(agent).state_dict(agent) for agent in self._learners}
        return {
            agent: {**state, "weights": {name: value.cpu() for name, value in state["weights"].items()}}
            for agent, state in states.items()
        }

    def _begin(self, step: int, batch: Batch) -> None:
        connection = self._connection or self._started()
        # As bytes: PyTorch would send tensors through shared memory, of which containers have little.
        written = io.BytesIO()
        torch.save(self.weights[step], written)
        try:
            connection.send((step, batch, written.getvalue()))
        except OSError:
            self._received()  # what ended it, where it has said that
            raise _dead() from None
        self.begun = step

    def _started(self) -> Connection:
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        share = max(1, self.threads // 2)
        self._process = context.Process(target=_serve, args=(self.recipe, share, there), daemon=True)
        # Until the process has its own handlers, a Ctrl-C for the whole group must not end it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        there.close()  # so that a process that dies is an end of file here, not silence
        torch.set_num_threads(max(1, self.threads - share))
        return self._connection

    def _received(self) -> list[Episode]:
        assert self._connection is not None
        try:
            found = self._connection.recv()
        except (EOFError, OSError):
            raise _dead() from None
        if isinstance(found, Exception):
            raise found
        games: list[Episode] = found
        return games


@contextmanager
def player_of(recipe: WaltzRecipe, rollouts: AnyPair[Any]) -> Iterator[Player]:
    """Who plays, as the recipe says.

    rollouts: the pair as it samples what it learns from.
    """
    if not recipe.engine.staleness:
        yield Player(recipe, rollouts)
        return
    player, wait = PlayerAhead(recipe, here(rollouts)), 0.0 if recipe.engine.local else GRACE
    try:
        yield player
    except KeyboardInterrupt:  # the user wants a stop at once
        wait = 0.0
        raise
    finally:
        player.close(wait)


def _serve(recipe: WaltzRecipe, threads: int, trainer: Connection) -> None:
    """The second process: plays what it is sent, until the trainer is gone."""
    for number in SIGNALS:  # both reach the whole group; the trainer decides
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    torch.set_num_threads(threads)
    answer: list[Episode] | Exception
    try:
        disable_progress_bar()
        with Pair(recipe).rollouts() as rollouts:
            while True:
                try:
                    step, batch, written = trainer.recv()
                except (EOFError, OSError):
                    return  # the trainer is gone
                states = torch.load(io.BytesIO(written), map_location=rollouts.device, weights_only=True)
                for agent, state in states.items():
                    rollouts.team(agent).load_state_dict(agent, state)
                answer = _played(rollouts, recipe, step, batch)
                with suppress(OSError):
                    trainer.send(answer)
    except (BadInput, Interrupted) as error:
        answer = error
    except Exception:
        answer = RuntimeError(f"the process that plays failed\n{traceback.format_exc()}")
    with suppress(OSError):
        trainer.send(answer)


def _played(rollouts: AnyPair[Any], recipe: WaltzRecipe, step: int, batch: Batch) -> list[Episode]:
    return play(rollouts.agents, batch, recipe.protocol.limits, key=(recipe.seed, step))


def _dead() -> Unavailable:
    return Unavailable("the process that plays the games is dead; with --resume the run goes on")
