"""The driver of the game: the one loop that plays batches, for training and evaluation (WaltzRL, section 3).

The rules are in `moves`. `play` makes the moves for many games at once: every phase (all c_0, all f_0, the c_1 that
were asked for, …) is one batch, whoever the agents are. The server plays games that come and go, one at a time and
against a deadline, so it has a loop of its own over the same moves (`server.session`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from choreo.agents.base import Agent, Key
from choreo.game.moves import Review, Reviewer, answered, read_review, reviewed, turn_of
from choreo.types import CONVERSATION, FEEDBACK, Episode, Limits, Prompt, S, TextTurn

NOTHING = "no answer to review"


def play(
    agents: Mapping[str, Agent[S]],
    prompts: Sequence[tuple[Prompt, int]],
    limits: Limits,
    *,
    key: Key,
    temperature: float = 1.0,
    reviewer: Reviewer[S] | None = None,
) -> list[Episode[S]]:
    """Play every (prompt, sample index) to its end; episodes come in the order of `prompts`, not yet judged.

    agents: by role; the feedback agent is needed only where it reviews.
    key: what the noise is drawn from, e.g. (seed, step); `turn_key` completes it for every turn.
    reviewer: who reviews; by default the feedback agent.

    Raises ValueError for a (prompt id, sample) that is given twice, which would repeat one game, and for an agent that
    gives more or fewer turns than it was given games.
    """
    if len({(prompt.id, sample) for prompt, sample in prompts}) != len(prompts):
        raise ValueError("each (prompt id, sample) may be given once: the same key would sample the same game again")
    if reviewer is None:
        reviewer = partial(review, agents, limits=limits, key=key, temperature=temperature)
    games: list[Episode[S]] = [Episode(prompt, sample, ()) for prompt, sample in prompts]
    live = list(range(len(games)))
    while live := [i for i in live if turn_of(games[i], limits.rounds)]:
        batch = [games[i] for i in live]
        # All games began together, so all that are not over are at the same act.
        if turn_of(batch[0], limits.rounds) == FEEDBACK:
            batch = [reviewed(game, given) for game, given in zip(batch, reviewer(batch), strict=True)]
        else:
            turns = _turns(agents[CONVERSATION], batch, CONVERSATION, limits, key, temperature)
            batch = [answered(game, turn) for game, turn in zip(batch, turns, strict=True)]
        for i, game in zip(live, batch, strict=True):
            games[i] = game
    return games


def review(
    agents: Mapping[str, Agent[S]],
    games: Sequence[Episode[S]],
    limits: Limits,
    *,
    key: Key,
    temperature: float = 1.0,
) -> list[Review[S]]:
    """The feedback agent on the last answer of every game, as one batch.

    After an answer that failed there is nothing to review, and an untrained reviewer is not asked. In training the
    reviewer is asked all the same: it has to learn what to say of such an answer.
    """
    agent = agents[FEEDBACK]
    asked = [agent.trained or not game.answers[-1].failure for game in games]
    batch = [game for game, ask in zip(games, asked, strict=True) if ask]
    turns = iter(_turns(agent, batch, FEEDBACK, limits, key, temperature))
    return [
        read_review(game, next(turns), trained=agent.trained) if ask else Review(_nothing(game), None)
        for game, ask in zip(games, asked, strict=True)
    ]


def _turns(
    agent: Agent[S], games: Sequence[Episode[S]], role: str, limits: Limits, key: Key, temperature: float
) -> Sequence[S]:
    turns = agent.turns(games, role, limits, key=key, temperature=temperature) if games else ()
    if len(turns) != len(games):
        raise ValueError(f"agent {agent.name} gave {len(turns)} turns in {len(games)} games")
    return turns


def _nothing(game: Episode[Any]) -> Any:
    """A turn that nobody wrote, in place of a review of no answer."""
    return TextTurn(FEEDBACK, len(game.reviews), "", True, 0, NOTHING)
