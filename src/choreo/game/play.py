"""The game, played: the one loop behind training, evaluation and the server (WaltzRL, section 3).

A game in play is an `Episode` that is not over yet. Its moves are pure functions (`turn_of`, `request`, `answered`,
`reviewed`); `play` makes them for many games at once, where every phase (all c_0, all f_0, the c_1 that were asked
for, …) is one batch, and a server makes the same moves for games that come and go. A turn has the ids of its writer;
a reader with another tokenizer is given its words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import compress

from choreo.engine.requests import Request
from choreo.game.moves import NOBODY, Key, Players, Review, Reviewer, answered, request, reviewed, spoken, turn_of
from choreo.text.feedback import parse_feedback
from choreo.types import CONVERSATION, FEEDBACK, Episode, Prompt, S, Turn


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


def _requests(players: Players, agent: str, games: Sequence[Episode], feedback_tokens: int, key: Key) -> list[Request]:
    chat, writer = players[agent].chat, players[CONVERSATION].chat
    return [request(chat, game, agent, writer=writer, feedback_tokens=feedback_tokens, key=key) for game in games]


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
