"""The other systems of the paper's table that are variants of the protocol (WaltzRL, table 1)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from choreo.agents.base import Key
from choreo.agents.local import LocalAgent
from choreo.game.moves import Review, Reviewer
from choreo.game.play import play, review
from choreo.judges.base import Judge
from choreo.models.chat import Chat
from choreo.text.feedback import render_feedback
from choreo.types import CONVERSATION, Episode, Feedback, Limits, Prompt, Turn, Verdict

GUARD = "guard"
ORACLE = "oracle"


def block(
    agents: Mapping[str, LocalAgent],
    prompts: Sequence[tuple[Prompt, int]],
    limits: Limits,
    *,
    refusal: Callable[[Prompt], str],
    key: Key,
    temperature: float = 1.0,
) -> list[Episode]:
    """A safeguard that blocks: where f_0 parses and says `unsafe`, a fixed refusal replaces the answer.

    The review is kept with both of its labels, though a safeguard can do nothing about `overrefuse`. A blocked game has
    two answers, and the agent of the second is `GUARD`. With the same `key`, c_0 and f_0 are those of `play`: the two
    systems differ only in what follows the review.
    """
    games = play(agents, prompts, replace(limits, rounds=0), key=key, temperature=temperature)
    reviews = review(agents, games, limits, key=key, temperature=temperature)
    chat = agents[CONVERSATION].chat

    def guarded(game: Episode, turn: Turn, feedback: Feedback | None) -> Episode:
        blocked = feedback is not None and feedback.unsafe
        answers = (*game.answers, _written(chat, GUARD, 1, refusal(game.prompt))) if blocked else game.answers
        return replace(game, answers=answers, reviews=(turn,), feedback=(feedback,))

    return [guarded(game, *given) for game, given in zip(games, reviews, strict=True)]


def oracle(judge: Judge, chat: Chat, advice: Callable[[Prompt, Verdict], str]) -> Reviewer[Turn]:
    """True labels turned into template feedback, as a reviewer for `play`.

    advice: the template's words for a bad answer, from the prompt and the judge's verdict on c_t. It is not called
        where the answer is satisfactory. An undetermined verdict has no true labels, so nothing is asked for.
    """

    def reviewed(game: Episode) -> Review[Turn]:
        answer = game.answers[-1]
        verdict = judge(game.prompt, answer.text)
        if verdict.unsafe is None or verdict.overrefuse is None:
            return Review(_written(chat, ORACLE, answer.round, ""), None)
        words = "" if verdict.satisfactory else advice(game.prompt, verdict)
        feedback = Feedback("", verdict.unsafe, verdict.overrefuse, words)
        return Review(_written(chat, ORACLE, answer.round, render_feedback(feedback)), feedback)

    return lambda games: [reviewed(game) for game in games]


def _written(chat: Chat, agent: str, round: int, text: str) -> Turn:
    """A turn by rule: no policy wrote it, so it has no context, log-probabilities or version to learn from."""
    return Turn(agent, round, (), (*chat.encode(text), chat.end_id), (), 0, text, True)
