"""What an agent is, and what it is shown when its turn comes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from choreo.types import CONVERSATION, FEEDBACK, AnyTurn, Episode, Limits, Prompt, S, Turn

Key = tuple[int | str, ...]

ACT = {CONVERSATION: "answer", FEEDBACK: "feedback"}


@dataclass(frozen=True, slots=True)
class State(Generic[S]):
    """What an agent sees when its turn comes (WaltzRL, section 4.2). The prompt carries the conversation before it.

    history: for the conversation agent, each earlier answer with the feedback string on it, oldest first.
    answer: for the feedback agent, the answer to review. None asks the conversation agent for its next answer.
    """

    prompt: Prompt
    history: tuple[tuple[S, str], ...] = ()
    answer: S | None = None

    @property
    def role(self) -> str:
        """Whose turn it is: CONVERSATION or FEEDBACK."""
        return CONVERSATION if self.answer is None else FEEDBACK


def state_of(game: Episode[S], role: str) -> State[S]:
    """The state of `role` in `game`: (p, H_{t-1}) for the conversation agent, (p, c_t) for the feedback agent.

    Of a review, only the `feedback` string reaches the conversation agent. The feedback agent sees no earlier rounds.
    """
    if role == FEEDBACK:
        return State(game.prompt, answer=game.answers[-1])
    strings = [parsed.feedback if parsed else "" for parsed in game.feedback]
    return State(game.prompt, tuple(zip(game.answers, strings, strict=True)))


def turn_key(game: Episode[Any], role: str, key: Key) -> Key:
    """The name of the noise of one turn: `key`, then prompt id, sample, act and round.

    So a turn has the same noise in any batch, and the first answer has it for any number of rounds.
    """
    return (*key, game.prompt.id, game.sample, ACT[role], len(game.reviews))


S_co = TypeVar("S_co", bound=AnyTurn, default=Turn, covariant=True)


class Agent(Protocol[S_co]):
    """A model that plays one role of the game, or both.

    name: how reports call it.
    trained: the model was trained to review, so its reviews are read strictly; those of any other model are read
        leniently (`text.feedback.read_feedback`).
    """

    @property
    def name(self) -> str: ...

    @property
    def trained(self) -> bool: ...

    def turns(
        self, games: Sequence[Episode[Any]], role: str, limits: Limits, *, key: Key, temperature: float
    ) -> Sequence[S_co]:
        """The next turn of `role` in every game, in order, as one batch.

        A turn that failed alone says why in `failure`. key: what the noise is drawn from, completed by `turn_key`.
        Temperature 0 is greedy.

        Raises BadInput where the model cannot be used at all, Interrupted where it went away in the middle.
        """
        ...
