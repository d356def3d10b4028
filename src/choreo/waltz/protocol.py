"""The game, played: the one loop behind training, evaluation and the server (WaltzRL, section 3).

A game in play is an `Episode` that is not over yet. Its moves are pure functions (`turn_of`, `request`, `answered`,
`reviewed`); `play` makes them for many games at once, where every phase (all c_0, all f_0, the c_1 that were asked
for, …) is one batch, and a server makes the same moves for games that come and go. A turn has the ids of its writer;
a reader with another tokenizer is given its words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import compress
from typing import Any, Generic, NamedTuple

from typing_extensions import TypeVar

from choreo.engine.requests import Completion, Engine, Request
from choreo.text.chat import Chat, Ids
from choreo.text.feedback import parse_feedback, read_feedback
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, Prompt, S, Said, Turn

Key = tuple[int | str, ...]
ACT = {CONVERSATION: "answer", FEEDBACK: "feedback"}
NOBODY = "nobody"  # whose review it is where the reviewer's model has no room for an answer

E = TypeVar("E", bound=Engine, default=Engine, covariant=True)


class Player(NamedTuple, Generic[E]):
    """A model that agents play on: how it reads and writes, and what samples it."""

    chat: Chat
    engine: E


Players = Mapping[str, Player]
"""By agent. Agents on one base have one player."""


class Review(NamedTuple, Generic[S]):
    """One reviewer's turn on an answer and what was read in it (None: nothing that may be applied)."""

    turn: S
    feedback: Feedback | None


Reviewer = Callable[[Sequence[Episode]], list[Review[Turn]]]
"""Reviews the last answer of every game given, in order. The feedback agent is one; `systems.oracle` another."""


def play(
    players: Players,
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
        a game has the same noise whatever it is batched with, and c_0 has it for any number of rounds.
    reviewer: who reviews; by default the feedback agent.

    Raises ValueError for negative rounds or a (prompt id, sample) given twice, which would repeat one game.
    """
    if rounds < 0:
        raise ValueError(f"rounds must be 0 or more, not {rounds}")
    if len({(prompt.id, sample) for prompt, sample in prompts}) != len(prompts):
        raise ValueError("each (prompt id, sample) may be given once: the same key would sample the same game again")
    if reviewer is None:
        reviewer = partial(review, players, feedback_tokens=feedback_tokens, key=key, temperature=temperature)

    def answer(games: Sequence[Episode]) -> list[Turn]:
        asked = _requests(players, CONVERSATION, games, feedback_tokens, key)
        return _sample(players, CONVERSATION, games, asked, answer_tokens, temperature)

    return rally([Episode(prompt, sample, ()) for prompt, sample in prompts], rounds, answer, reviewer)


def rally(
    begun: Sequence[Episode[S]],
    rounds: int,
    answer: Callable[[Sequence[Episode[S]]], list[S]],
    review: Callable[[Sequence[Episode[S]]], list[Review[S]]],
) -> list[Episode[S]]:
    """Plays games that begin together to their ends, whoever answers and reviews; see `play`."""
    games = list(begun)
    live = list(range(len(games)))
    while live := [i for i in live if turn_of(games[i], rounds)]:
        batch = [games[i] for i in live]
        # All began together, so that all that still play are at the same act.
        if turn_of(batch[0], rounds) == FEEDBACK:
            batch = [reviewed(game, said) for game, said in zip(batch, review(batch), strict=True)]
        else:
            batch = [answered(game, turn) for game, turn in zip(batch, answer(batch), strict=True)]
        for i, game in zip(live, batch, strict=True):
            games[i] = game
    return games


def review(
    players: Players,
    games: Sequence[Episode],
    *,
    feedback_tokens: int,
    key: Key,
    temperature: float = 1.0,
) -> list[Review[Turn]]:
    """The feedback agent on the last answer of every game: one batch, state (p, c_t) (WaltzRL, section 4.2).

    In another tokenizer an answer may be longer than its writer was allowed. It is never cut: where the reviewer's
    model has no room for it, nobody reviews it, which is as a review that does not parse.
    """
    asked = _requests(players, FEEDBACK, games, feedback_tokens, key)
    limit = players[FEEDBACK].engine.positions
    fits = [limit is None or len(one.context) + feedback_tokens <= limit for one in asked]
    fitting = list(compress(games, fits)), list(compress(asked, fits))
    said = iter(_sample(players, FEEDBACK, *fitting, feedback_tokens, temperature))
    turns = [
        next(said) if fit else Turn(NOBODY, len(game.reviews), (), (), (), 0, "", False)
        for game, fit in zip(games, fits, strict=True)
    ]
    return [Review(turn, parse_feedback(turn.text)) for turn in turns]


# ---- the moves: what `play` does with a batch, a server does with one game at a time ------------


def turn_of(game: Episode[Any], rounds: int, always: bool = False) -> str | None:
    """The agent whose turn it is, or None where the game is over (see `play`).

    always: a satisfied review asks for a revision too; one that does not parse has no words, and never does.
    """
    if len(game.answers) > len(game.reviews):
        return FEEDBACK if len(game.reviews) < rounds else None
    if not game.answers:
        return CONVERSATION
    last = game.feedback[-1]
    return CONVERSATION if last is not None and (always or not last.satisfied) else None


def read_by_words(game: Episode[Any], turn: Said) -> Feedback | None:
    """What a model that was never trained to review says in `turn` of the last answer, read leniently."""
    material = [*(text for _, text in game.prompt.earlier), game.prompt.text, game.answers[-1].text]
    return None if turn.failure else read_feedback(turn.text, material, turn.finished)


def answered(game: Episode[S], turn: S) -> Episode[S]:
    """The game with one more answer."""
    return replace(game, answers=(*game.answers, turn))


def reviewed(game: Episode[S], said: Review[S]) -> Episode[S]:
    """The game with one more review."""
    return replace(game, reviews=(*game.reviews, said.turn), feedback=(*game.feedback, said.feedback))


def request(chat: Chat, game: Episode, agent: str, *, writer: Chat, feedback_tokens: int, key: Key) -> Request:
    """What an engine is asked for `agent`'s turn in `game`: its state as ids, and the name of its noise.

    chat: the agent's; writer: the one that answers are written in.
    """
    if agent == FEEDBACK:  # state (p, c_t): no earlier rounds (WaltzRL, section 4.2)
        answer = chat.heard(game.answers[-1], writer)
        context = chat.review_context(chat.encode(game.prompt.text), answer, _earlier(chat, game))
    else:
        context = _state(chat, game, feedback_tokens)
    return Request(context, (*key, game.prompt.id, game.sample, ACT[agent], len(game.reviews)))


def spoken(chat: Chat, game: Episode, agent: str, context: Ids, done: Completion) -> Turn:
    """What `agent` said in `game`, from what its engine completed."""
    text, failure = chat.decode(done.ids), chat.failure(done.ids)
    return Turn(agent, len(game.reviews), context, done.ids, done.logprobs, done.version, text, done.finished, failure)


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


def _requests(
    players: Players, agent: str, games: Sequence[Episode], feedback_tokens: int, key: Key
) -> list[Request]:
    chat, writer = players[agent].chat, players[CONVERSATION].chat
    return [
        request(chat, game, agent, writer=writer, feedback_tokens=feedback_tokens, key=key) for game in games
    ]


def _sample(
    players: Players,
    agent: str,
    games: Sequence[Episode],
    requests: Sequence[Request],
    max_new_tokens: int,
    temperature: float,
) -> list[Turn]:
    """One turn of `agent` in every game, as one batch."""
    if not games:
        return []
    chat, engine = players[agent]
    completions = engine.sample(agent, requests, max_new_tokens=max_new_tokens, temperature=temperature)
    return [
        spoken(chat, game, agent, asked.context, done)
        for game, asked, done in zip(games, requests, completions, strict=True)
    ]
