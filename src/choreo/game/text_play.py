"""The protocol in text: two models that a user has already, each behind a server or here, play it as they are.

The rules are those of `protocol.rally`. What a text interface cannot give (ids, log-probabilities) is not made up:
turns are `Spoken`, so that a learner cannot take them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from choreo.agents.base import Speaker
from choreo.game.moves import Key, Review, asked_of, read_by_words
from choreo.game.play import rally
from choreo.types import CONVERSATION, FEEDBACK, Episode, Prompt, Spoken

NOTHING = "no answer to review"


def play(
    conversation: Speaker,
    feedback: Speaker,
    prompts: Sequence[tuple[Prompt, int]],
    *,
    rounds: int,
    answer_tokens: int,
    feedback_tokens: int,
    key: Key,
    temperature: float,
    told: Callable[[str, int], None] = lambda agent, count: None,
) -> list[Episode[Spoken]]:
    """`protocol.play` in text. told: hears, after each phase, which agent spoke and in how many games.

    These models were never trained to review, so their reviews are read leniently (`text.feedback.read_feedback`).
    A review that failed is one that does not parse: nothing of it is applied. After an answer that failed there is
    nothing to review, and the reviewer is not asked.
    """

    def say(speaker: Speaker, agent: str, games: Sequence[Episode[Spoken]], tokens: int) -> list[Spoken]:
        asked = [asked_of(game, agent, key) for game in games]
        turns = speaker.say(agent, asked, max_tokens=tokens, temperature=temperature) if asked else []
        told(agent, len(asked))
        return turns

    def answer(games: Sequence[Episode[Spoken]]) -> list[Spoken]:
        return say(conversation, CONVERSATION, games, answer_tokens)

    def review(games: Sequence[Episode[Spoken]]) -> list[Review[Spoken]]:
        turns = iter(say(feedback, FEEDBACK, [g for g in games if not g.answers[-1].failure], feedback_tokens))
        nothing = [Spoken(FEEDBACK, len(g.reviews), "", True, 0, NOTHING) for g in games]
        said = [none if g.answers[-1].failure else next(turns) for g, none in zip(games, nothing, strict=True)]
        return [Review(turn, read_by_words(game, turn)) for game, turn in zip(games, said, strict=True)]

    begun: list[Episode[Spoken]] = [Episode(prompt, sample, ()) for prompt, sample in prompts]
    return rally(begun, rounds, answer, review)
