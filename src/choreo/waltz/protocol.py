"""The game, played: the one loop behind training, evaluation and the server (WaltzRL, section 3).

A game in play is an `Episode` that is not over yet; every phase (all c_0, all f_0, the c_1 that were
asked for, …) is one batch, and gives back the same games one turn longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from choreo.engine.requests import Engine, Request
from choreo.text.chat import Chat, Ids
from choreo.text.feedback import parse_feedback
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, Prompt, Turn

Key = tuple[int | str, ...]
ACT = {CONVERSATION: "answer", FEEDBACK: "feedback"}


class Review(NamedTuple):
    """One reviewer's turn on an answer and what was read in it (None: nothing that may be applied)."""

    turn: Turn
    feedback: Feedback | None


Reviewer = Callable[[Sequence[Episode]], list[Review]]
"""Reviews the last answer of every game given, in order. The feedback agent is one; `systems.oracle` another."""


def play(
    engine: Engine,
    chat: Chat,
    prompts: Sequence[tuple[Prompt, int]],
    *,
    rounds: int,
    answer_tokens: int,
    feedback_tokens: int,
    key: Key,
    temperature: float = 1.0,
    reviewer: Reviewer | None = None,
) -> list[Episode]:
    """Play every (prompt, sample index) to its end; episodes come in the order of `prompts`, not yet judged.

    A game ends when a review is satisfied (both labels false), when it does not parse (nothing of it is
    applied), or after `rounds` (T_max) reviews; 0 rounds plays without a reviewer. Only the `feedback`
    string of a review reaches the conversation agent.

    answer_tokens, feedback_tokens: most new tokens per turn of each agent.
    key: what the noise is drawn from, e.g. (seed, step). With it goes (prompt id, sample, act, round), so
        a game is the same whatever it is batched with, and c_0 is the same for any number of rounds.
    reviewer: who reviews; by default the engine's feedback agent.

    Raises ValueError for negative rounds or a (prompt id, sample) given twice, which would repeat one game.
    """
    if rounds < 0:
        raise ValueError(f"rounds must be 0 or more, not {rounds}")
    if len({(prompt.id, sample) for prompt, sample in prompts}) != len(prompts):
        raise ValueError("each (prompt id, sample) may be given once: the same key would sample the same game again")
    if reviewer is None:
        reviewer = partial(review, engine, chat, feedback_tokens=feedback_tokens, key=key, temperature=temperature)

    def answer(games: list[Episode]) -> list[Episode]:
        contexts = [_state(chat, game, feedback_tokens) for game in games]
        turns = _sample(engine, chat, CONVERSATION, games, contexts, answer_tokens, key, temperature)
        return [replace(game, answers=(*game.answers, turn)) for game, turn in zip(games, turns, strict=True)]

    games = answer([Episode(prompt, sample, ()) for prompt, sample in prompts])
    live = list(range(len(games)))
    for _ in range(rounds):
        reviews = reviewer([games[i] for i in live])
        for i, (turn, feedback) in zip(live, reviews, strict=True):
            games[i] = replace(games[i], reviews=(*games[i].reviews, turn), feedback=(*games[i].feedback, feedback))
        live = [i for i in live if _wants_revision(games[i])]
        for i, game in zip(live, answer([games[i] for i in live]), strict=True):
            games[i] = game
    return games


def review(
    engine: Engine,
    chat: Chat,
    games: Sequence[Episode],
    *,
    feedback_tokens: int,
    key: Key,
    temperature: float = 1.0,
) -> list[Review]:
    """The feedback agent on the last answer of every game: one batch, state (p, c_t) (WaltzRL, section 4.2)."""
    contexts = [chat.review_context(chat.encode(game.prompt.text), game.answers[-1].ids) for game in games]
    turns = _sample(engine, chat, FEEDBACK, games, contexts, feedback_tokens, key, temperature)
    return [Review(turn, parse_feedback(turn.text)) for turn in turns]


def _wants_revision(game: Episode) -> bool:
    last = game.feedback[-1]
    return last is not None and not last.satisfied


def _state(chat: Chat, game: Episode, feedback_tokens: int) -> Ids:
    """What the conversation agent sees next: (p, H_{t-1}), with the feedback string alone standing for f.

    That string had to be read out of JSON, so its ids are new ones (nobody's action, in no loss). It was
    written in at most `feedback_tokens` ids, but broken bytes or other merges can make the new ids more,
    and another reviewer may write what it likes; the cut bounds every context by what the recipe allows.
    """
    said = [chat.encode(f.feedback)[:feedback_tokens] if f else () for f in game.feedback]
    history = [(turn.ids, ids) for turn, ids in zip(game.answers, said, strict=True)]
    return chat.answer_context(chat.encode(game.prompt.text), history)


def _sample(
    engine: Engine,
    chat: Chat,
    agent: str,
    games: Sequence[Episode],
    contexts: Sequence[Ids],
    max_new_tokens: int,
    key: Key,
    temperature: float,
) -> list[Turn]:
    """One turn of `agent` in every game, as one batch."""
    if not games:
        return []
    rounds = [len(game.reviews) for game in games]
    requests = [
        Request(context, (*key, game.prompt.id, game.sample, ACT[agent], t))
        for game, context, t in zip(games, contexts, rounds, strict=True)
    ]
    completions = engine.sample(agent, requests, max_new_tokens=max_new_tokens, temperature=temperature)
    return [
        Turn(agent, t, context, done.ids, done.logprobs, done.version, chat.decode(done.ids), done.finished)
        for t, context, done in zip(rounds, contexts, completions, strict=True)
    ]
