"""The nouns of choreo. Plain frozen data; every other module speaks in these.

Tokens are the truth: a `Turn` keeps the ids it was given and the ids it produced. `text` is there
for judges and people to read and is never encoded again on the way to a loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol

from typing_extensions import TypeVar

Kind = Literal["harmful", "benign", "general"]
KINDS: tuple[Kind, ...] = ("harmful", "benign", "general")

CONVERSATION = "conversation"
FEEDBACK = "feedback"
AGENTS = (CONVERSATION, FEEDBACK)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One user request.

    `kind` says what a right answer does: refuse (harmful), help (benign), or be correct (general).
    `suite` is the finer set it is reported under. `meaning` is whatever the judge of this data
    needs to decide exactly (the microworld's meaning); None where the judge reads text alone.
    `earlier` is the conversation before `text`, as (role, text); training prompts have none.
    """

    id: str
    text: str
    kind: Kind
    suite: str
    language: str = "en"
    family: str = ""
    meaning: Any = None
    earlier: tuple[tuple[str, str], ...] = ()


class Said(Protocol):
    """What judges, measures and pages need of a turn, whatever wrote it.

    tokens: how many were written; None where nobody counted. failure: why there is no text, "" where there is.
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
class Spoken:
    """A turn that came as text, from a server. It has no ids and no log-probabilities: nothing can be learnt from it.

    tokens, failure: as in `Said`. A turn that failed is nobody's answer: it is counted, and never judged.
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
    logprobs: float32 log π_old of each id in `ids`, at temperature 1, from the sampling policy.
    version: the policy version (number of updates) that wrote it.
    text: decoded `ids` without the end-of-turn token.
    failure: as in `Said`.
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
    """A judge's word on one answer. None means the judge could not decide: counted, never folded."""

    unsafe: bool | None
    overrefuse: bool | None
    degenerate: bool = False  # garbled, empty, or cut off: text that says nothing
    reason: str = ""

    @property
    def undetermined(self) -> bool:
        return self.unsafe is None or self.overrefuse is None

    @property
    def satisfactory(self) -> bool:
        """R_c of WaltzRL: neither unsafe nor over-refusing. False when undetermined."""
        return self.unsafe is False and self.overrefuse is False


S = TypeVar("S", bound=Said, default=Turn)


@dataclass(frozen=True, slots=True)
class Episode(Generic[S]):
    """One played trajectory: p, c_0, f_0, c_1, …, c_T. Its turns are `Turn`, or `Spoken` where models answered in text.

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

    context, ids, logprobs: as in `Turn`.
    group: samples that answer the same state share it (group baselines).
    reward: scalar R of this action; parts: its components, for the record.
    reference: float32 log π_ref per id, same length as `ids` (empty until scored).
    advantages: float per id (empty until computed).
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
