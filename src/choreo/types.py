"""The nouns of choreo: plain frozen data that every other module uses.

Tokens are the truth: a `Turn` keeps the ids that it was given and the ids that it produced. Judges and people read
its `text`, which is never encoded again on the way to a loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Literal, Protocol

from typing_extensions import TypeVar

Kind = Literal["harmful", "benign", "general"]
KINDS: tuple[Kind, ...] = ("harmful", "benign", "general")
# How the suite of a prompt ends that is measured once more, under a system message of a caller. Such prompts are in no
# figures of a system but those by suite, and those with a system message.
AGAIN = "+system"
Part = Literal["heldout", "train"]
"""Which of a task's prompts are measured on."""

Turns = tuple[tuple[str, str], ...]
"""A conversation, as (role, text)."""

CONVERSATION = "conversation"
FEEDBACK = "feedback"
AGENTS = (CONVERSATION, FEEDBACK)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user request.

    `kind` says what a right answer does: refuse (harmful), help (benign), or be correct (general).
    `suite` is the finer set it is reported under. `meaning` is whatever the judge of this data
    needs to decide exactly (the microworld's meaning), or the check of a right answer (`text.checks`); None where the
    judge reads text alone.
    `earlier` is the conversation before `text`, as (role, text), the role being user, assistant or system.
    """

    id: str
    text: str
    kind: Kind
    suite: str
    language: str = "en"
    family: str = ""
    meaning: Any = None
    earlier: Turns = ()

    @property
    def turns(self) -> Turns:
        """The whole conversation, the request last."""
        return (*self.earlier, ("user", self.text))

    @property
    def words(self) -> str:
        """The text of the whole conversation, a line for every turn."""
        return "\n".join(text for _, text in self.turns)

    @property
    def user_turns(self) -> int:
        """How many turns of the user it has: 1 without a history."""
        return sum(role == "user" for role, _ in self.turns)

    @property
    def told(self) -> bool:
        """Whether it stands under a system message of a caller: its conversation begins with one."""
        return self.turns[0][0] == "system"

    def under(self, system: str) -> Prompt:
        """The same prompt under a caller's system message, which comes before all of its turns."""
        return replace(self, earlier=(("system", system), *self.earlier))


@dataclass(frozen=True, slots=True)
class Limits:
    """How long a game may become.

    rounds: feedback rounds at most (T_max of WaltzRL, section 3); 0 plays without a reviewer.
    answer_tokens, feedback_tokens: the most new tokens in one turn of the conversation agent, of the feedback agent.

    Raises ValueError for negative rounds, or for tokens below 1.
    """

    rounds: int
    answer_tokens: int
    feedback_tokens: int

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds must be 0 or more, not {self.rounds}")
        if min(self.answer_tokens, self.feedback_tokens) < 1:
            raise ValueError(f"a turn has at least 1 token, not {self.answer_tokens} and {self.feedback_tokens}")

    def tokens(self, role: str) -> int:
        """The most new tokens in one turn of `role`, which is CONVERSATION or FEEDBACK."""
        return self.feedback_tokens if role == FEEDBACK else self.answer_tokens


class AnyTurn(Protocol):
    """What judges, measures and reports need of a turn, whoever wrote it.

    agent: the role that wrote it. round: feedback rounds before it.
    finished: the model ended the turn itself; False where it was cut at its limit.
    tokens: the number of tokens that were written; None where nobody counted.
    failure: why the turn has no text; "" where it has one. A failed turn is counted and is never judged.
    """

    @property
    def agent(self) -> str: ...

    @property
    def round(self) -> int: ...

    @property
    def text(self) -> str: ...

    @property
    def finished(self) -> bool: ...

    @property
    def tokens(self) -> int | None: ...

    @property
    def failure(self) -> str: ...


@dataclass(frozen=True, slots=True)
class TextTurn:
    """A turn that came as text, from a server. It has no ids and no log-probabilities, so no learner can take it.

    All fields are those of `AnyTurn`.
    """

    agent: str
    round: int
    text: str
    finished: bool
    tokens: int | None = None
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Turn:
    """What one agent was given and what it wrote.

    context: token ids given (the whole rendered history).
    ids: token ids produced, the end-of-turn id included when `finished`.
    logprobs: float32 log π of each id in `ids`, at temperature 1, as who sampled it computed it: log π_old where the
        engine is exact.
    version: the policy version (number of updates) that wrote it.
    text: decoded `ids` without the end-of-turn token.
    failure: as in `AnyTurn`.
    choices: of a constrained turn, for every id the row of the constraint's masks under which it was chosen, or -1 for
        a forced id, whose log-probability is 0 and which no loss counts. Empty where the turn is free.
    """

    agent: str
    round: int
    context: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    version: int
    text: str
    finished: bool
    failure: str = ""
    choices: tuple[int, ...] = ()

    @property
    def tokens(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Feedback:
    """The parsed JSON of the feedback agent (WaltzRL, section 3: exactly these four fields)."""

    reasoning: str
    unsafe: bool
    overrefuse: bool
    feedback: str

    @property
    def satisfied(self) -> bool:
        return not self.unsafe and not self.overrefuse


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's word on one answer. None means the judge could not decide: counted, never folded.

    degenerate: garbled, empty, or cut off: text that says nothing.
    garbled: why it says nothing by its words alone (`text.garbled`), "" where it does not, or was only cut off.
    """

    unsafe: bool | None
    overrefuse: bool | None
    degenerate: bool = False
    reason: str = ""
    garbled: str = ""

    @property
    def undetermined(self) -> bool:
        return self.unsafe is None or self.overrefuse is None

    @property
    def satisfactory(self) -> bool:
        """R_c of WaltzRL: neither unsafe nor over-refusing. False when undetermined, and of garbled text: a loop of
        "I'm sorry." harms nobody, and a policy must not be paid for it."""
        return self.unsafe is False and self.overrefuse is False and not self.garbled


@dataclass(frozen=True, slots=True)
class ReviewedAnswer:
    """An answer as text, and what a right review of it says: what a feedback agent learns from before it learns by RL.

    group: rows of one group (one question, one behaviour) must be on the same side of a split.
    verdict: None until somebody has judged the answer.
    feedback: the review; None until one is made.
    """

    prompt: Prompt
    answer: str
    group: str
    verdict: Verdict | None = None
    feedback: Feedback | None = None


S = TypeVar("S", bound=AnyTurn, default=Turn)


@dataclass(frozen=True, slots=True)
class Episode(Generic[S]):
    """One played trajectory: p, c_0, f_0, c_1, …, c_T. Its turns are `Turn`, or `TextTurn` where a server wrote them.

    answers[t] is c_t and verdicts[t] its verdict (verdicts are empty until judged).
    reviews[t] is the feedback agent's turn on c_t, feedback[t] its parse (None: did not parse).
    len(reviews) is len(answers) - 1 when the last answer was not reviewed (round limit reached),
    and len(answers) when the last review ended the game (satisfied, or unparsable), 0 when the
    game was played without a feedback agent.
    """

    prompt: Prompt
    sample: int
    answers: tuple[S, ...]
    reviews: tuple[S, ...] = ()
    feedback: tuple[Feedback | None, ...] = ()
    verdicts: tuple[Verdict, ...] = ()

    @property
    def reviewed(self) -> tuple[tuple[Verdict, Feedback | None], ...]:
        """Per review: the verdict on the answer it read, and its parse."""
        return tuple(zip(self.verdicts, self.feedback, strict=False))

    @property
    def triggered(self) -> bool:
        """A revision was asked for (the T of FTR)."""
        return any(f is not None and not f.satisfied for f in self.feedback)


@dataclass(frozen=True, slots=True)
class Preference:
    """A chosen and a rejected answer to one context, all as ids."""

    prompt: Prompt
    context: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One action of one agent, ready for a learner: the single-agent view of an episode.

    context, ids, choices: as in `Turn`.
    logprobs: float32 log π_old per id: of the policy before its update, as the learner computes it.
    sampler: float32 log π_sampler per id, as who sampled them computed it. With an exact engine it is the very object
        that `logprobs` is. Empty for ids that nobody sampled.
    group: samples that answer the same state share it (group baselines).
    reward: scalar R of this action; parts: its components, for the record.
    reference: float32 log π_ref per id, same length as `ids` (empty until scored).
    advantages: float per id (empty until computed). Those of forced ids mean nothing.
    """

    agent: str
    context: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    group: str
    reward: float
    parts: Mapping[str, float] = field(default_factory=dict)
    reference: tuple[float, ...] = ()
    advantages: tuple[float, ...] = ()
    choices: tuple[int, ...] = ()
    sampler: tuple[float, ...] = ()

    @property
    def actions(self) -> Sequence[int]:
        """Places in `ids` of what the policy chose: all of them, but for forced ids."""
        return [i for i, row in enumerate(self.choices) if row >= 0] if self.choices else range(len(self.ids))
