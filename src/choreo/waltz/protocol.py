"""The game, played: the one loop behind training, evaluation and the server (WaltzRL, section 3).

A game in play is an `Episode` that is not over yet. Its moves are pure functions (`turn_of`, `request`, `answered`,
`reviewed`); `play` makes them for many games at once, where every phase (all c_0, all f_0, the c_1 that were asked
for, …) is one batch, and a server makes the same moves for games that come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from choreo.engine.requests import Completion, Engine, Request
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

    games = [Episode(prompt, sample, ()) for prompt, sample in prompts]
    live = list(range(len(games)))
    while live := [i for i in live if turn_of(games[i], rounds)]:
        batch = [games[i] for i in live]
        # All began together, so that all that still play are at the same act.
        if turn_of(batch[0], rounds) == FEEDBACK:
            batch = [reviewed(game, said) for game, said in zip(batch, reviewer(batch), strict=True)]
        else:
            turns = _sample(engine, chat, CONVERSATION, batch, answer_tokens, feedback_tokens, key, temperature)
            batch = [answered(game, turn) for game, turn in zip(batch, turns, strict=True)]
        for i, game in zip(live, batch, strict=True):
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
    turns = _sample(engine, chat, FEEDBACK, games, feedback_tokens, feedback_tokens, key, temperature)
    return [Review(turn, parse_feedback(turn.text)) for turn in turns]


# ---- the moves: what `play` does with a batch, a server does with one game at a time ------------


def turn_of(game: Episode, rounds: int, always: bool = False) -> str | None:
    """The agent whose turn it is, or None where the game is over (see `play`).

    always: a satisfied review asks for a revision too; one that does not parse has no words, and never does.
    """
    if len(game.answers) > len(game.reviews):
        return FEEDBACK if len(game.reviews) < rounds else None
    if not game.answers:
        return CONVERSATION
    last = game.feedback[-1]
    return CONVERSATION if last is not None and (always or not last.satisfied) else None


def answered(game: Episode, turn: Turn) -> Episode:
    """The game with one more answer."""
    return replace(game, answers=(*game.answers, turn))


def reviewed(game: Episode, said: Review) -> Episode:
    """The game with one more review."""
    return replace(game, reviews=(*game.reviews, said.turn), feedback=(*game.feedback, said.feedback))


def request(chat: Chat, game: Episode, agent: str, *, feedback_tokens: int, key: Key) -> Request:
    """What an engine is asked for `agent`'s turn in `game`: its state as ids, and the name of its noise."""
    if agent == FEEDBACK:  # state (p, c_t): no earlier rounds (WaltzRL, section 4.2)
        context = chat.review_context(chat.encode(game.prompt.text), game.answers[-1].ids, _earlier(chat, game))
    else:
        context = _state(chat, game, feedback_tokens)
    return Request(context, (*key, game.prompt.id, game.sample, ACT[agent], len(game.reviews)))


def spoken(chat: Chat, game: Episode, agent: str, context: Ids, done: Completion) -> Turn:
    """What `agent` said in `game`, from what its engine completed."""
    text = chat.decode(done.ids)
    return Turn(agent, len(game.reviews), context, done.ids, done.logprobs, done.version, text, done.finished)


def _state(chat: Chat, game: Episode, feedback_tokens: int) -> Ids:
    """What the conversation agent sees next: (p, H_{t-1}), with the feedback string alone standing for f.

    That string had to be read out of JSON, so its ids are new ones (nobody's action, in no loss). It was
    written in at most `feedback_tokens` ids, but broken bytes or other merges can make the new ids more,
    and another reviewer may write what it likes; the cut bounds every context by what the recipe allows.
    """
    said = [chat.encode(f.feedback)[:feedback_tokens] if f else () for f in game.feedback]
    history = [(turn.ids, ids) for turn, ids in zip(game.answers, said, strict=True)]
    return chat.answer_context(chat.encode(game.prompt.text), history, _earlier(chat, game))


def _earlier(chat: Chat, game: Episode) -> list[tuple[str, Ids]]:
    return [(role, chat.encode(text)) for role, text in game.prompt.earlier]


def _sample(
    engine: Engine,
    chat: Chat,
    agent: str,
    games: Sequence[Episode],
    max_new_tokens: int,
    feedback_tokens: int,
    key: Key,
    temperature: float,
) -> list[Turn]:
    """One turn of `agent` in every game, as one batch."""
    if not games:
        return []
    requests = [request(chat, game, agent, feedback_tokens=feedback_tokens, key=key) for game in games]
    completions = engine.sample(agent, requests, max_new_tokens=max_new_tokens, temperature=temperature)
    return [
        spoken(chat, game, agent, asked.context, done)
        for game, asked, done in zip(games, requests, completions, strict=True)
    ]
