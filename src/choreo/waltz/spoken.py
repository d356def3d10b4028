"""The protocol in text: two models that a user has already, each behind a server or here, play it as they are.

The rules are those of `protocol.rally`. What a text interface cannot give (ids, log-probabilities) is not made up:
turns are `Spoken`, so that a learner cannot take them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from choreo.types import CONVERSATION, FEEDBACK, Episode, Prompt, S, Spoken
from choreo.waltz.protocol import ACT, Key, Review, rally, read_by_words

NOTHING = "no answer to review"
History = tuple[tuple[str, str], ...]  # (answer, the feedback string on it), earlier rounds first


@dataclass(frozen=True, slots=True)
class Asked:
    """One turn that is wanted of an agent.

    answer: of the feedback agent, the answer to review; "" asks the conversation agent for its next answer.
    key: names the randomness, as an engine's request does.
    earlier: (role, text) of the conversation before the prompt.
    """

    prompt: str
    history: History
    answer: str
    key: Key
    earlier: tuple[tuple[str, str], ...] = ()


class Speaker(Protocol):
    """A model that speaks as either agent. It knows how its model is told which one it is."""

    @property
    def name(self) -> str: ...

    def say(self, agent: str, asked: Sequence[Asked], *, max_tokens: int, temperature: float) -> list[Spoken]:
        """A turn for each, in order. A turn that failed says why (`Spoken.failure`).

        Raises BadInput where the model cannot be used at all, Interrupted where it went away in the middle.
        """
        ...


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


def asked_of(game: Episode[S], agent: str, key: Key) -> Asked:
    """What `agent` is asked for in `game`: its state as text, and the name of its noise."""
    said = [parsed.feedback if parsed else "" for parsed in game.feedback]
    history = tuple((turn.text, words) for turn, words in zip(game.answers, said, strict=False))
    own = (*key, game.prompt.id, game.sample, ACT[agent], len(game.reviews))
    if agent == FEEDBACK:  # state (p, c_t): no earlier rounds (WaltzRL, section 4.2)
        return Asked(game.prompt.text, (), game.answers[-1].text, own, game.prompt.earlier)
    return Asked(game.prompt.text, history, "", own, game.prompt.earlier)
