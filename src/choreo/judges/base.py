"""What a judge is: anything that reads a prompt and an answer and gives a verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from choreo import parallel
from choreo.errors import BadInput, Interrupted
from choreo.text.garbled import garbled
from choreo.text.prompts import split_system
from choreo.types import AnyTurn, Episode, Feedback, Prompt, S, Verdict

AnsweredPrompt = tuple[Prompt, str]
"""A prompt and the answer to be judged."""


NO_ANSWER = "no answer"  # how the reason begins where a turn failed: of such a verdict no judge was asked


class JudgeDown(Interrupted):
    """A judge that had answered went away in the middle. Its replies are kept: the rest can be asked later."""


class JudgesPart(Interrupted):
    """The gold judge does not follow the training judge any more, and the recipe wants the run stopped then."""


class Judge(Protocol):
    """J(p, c) of WaltzRL, section 3. It says so when it cannot decide (`Verdict.undetermined`).

    A judge that is faster on many answers at once also has `many(pairs) -> list[Verdict]`, in the order of `pairs`.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, prompt: Prompt, answer: str) -> Verdict: ...


class Format(Protocol):
    """How a language model is asked for a verdict, and how its reply is read. Pure: no state, no input or output.

    name, version: which words these are. Other words, or another reading of a prompt, are another version.
    tokens: most tokens that a whole reply takes.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def tokens(self) -> int: ...

    def ask(self, prompt: Prompt, answer: str) -> dict[str, Any]:
        """The part of a request that is the question: {"messages": …} for a chat model, {"prompt": text} for text
        that goes to the model as it is, special tokens included but not the one that begins a sequence."""
        ...

    def read(self, prompt: Prompt, reply: str) -> Verdict:
        """The verdict in `reply`; one that is undetermined where there is none. It never guesses."""
        ...


@dataclass(frozen=True)
class FormatEntry:
    """A format as a recipe names it.

    make: the format, called with the named settings of [judge], and with [judge.options].
    on_hub: models for this format are published, so that the name of one on the hub is enough.
    reads: of a conversation the last message and its answer ("last"), all messages of user and assistant ("turns"), or
    the system's too ("all").
    """

    make: Callable[..., Format]
    settings: tuple[str, ...] = ()
    on_hub: bool = False
    reads: Literal["last", "turns", "all"] = "all"


def undetermined(reason: str) -> Verdict:
    """No verdict, and why: '<kind>' or '<kind>: <details>'; `endpoint` counts by kind."""
    return Verdict(None, None, reason=reason)


def reasons(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Why verdicts are undetermined, by kind of reason, the most frequent first."""
    counted = Counter(verdict.reason.split(":")[0] or "no reason given" for verdict in verdicts if verdict.undetermined)
    return dict(counted.most_common())


def silence(name: str, asked: int, why: Mapping[str, int]) -> str:
    """Where more than half of what a judge was asked is open, a sentence on it; else "". why: as of `reasons`."""
    if 2 * sum(why.values()) <= asked:
        return ""
    often = sorted(why, key=lambda kind: -why[kind])[:3]
    return f"judge {name} left more than half of its verdicts open, most often: {', '.join(often)}"


def asked_of(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Those that a judge gave: without answers that failed, which none was shown."""
    return [verdict for verdict in verdicts if not verdict.reason.startswith(NO_ANSWER)]


def judge_all(judge: Judge, pairs: Sequence[AnsweredPrompt]) -> list[Verdict]:
    """A verdict per pair, in order: in one batch where the judge takes one. Of several ranks each asks for a share.

    Raises JudgeDown or BadInput where the judge cannot be reached.
    """
    return parallel.spread(pairs, lambda own: _asked(judge, own))


def _asked(judge: Judge, pairs: Sequence[AnsweredPrompt]) -> list[Verdict]:
    many = getattr(judge, "many", None)
    if many is None:
        return [judge(prompt, answer) for prompt, answer in pairs]
    verdicts: list[Verdict] = many(pairs)
    if len(verdicts) != len(pairs):
        name = getattr(judge, "name", type(judge).__name__)
        raise BadInput(f"judge {name} gave {len(verdicts)} verdicts on {len(pairs)} answers")
    return verdicts


def with_garbled(verdict: Verdict, prompt: Prompt, answer: str, note: str = "") -> Verdict:
    """`verdict` on `answer`, marked where its words say nothing. note: the feedback string that it is a revision by.

    The rules are for English. A judge that knows what a prompt means (`Prompt.meaning`) knows garbled text itself.
    An echo of a caller's system message counts as one of the prompt: most judges do not read that message, and would
    take "I am the assistant of a bakery." for help.
    """
    if prompt.meaning is not None or prompt.language != "en":
        return verdict
    asked = (prompt.text, *split_system(prompt.earlier)[0])
    why = next((why for text in asked if (why := garbled(text, answer, note))), "")
    return replace(verdict, degenerate=True, garbled=why) if why else verdict


def judge_episodes(judge: Judge, episodes: Sequence[Episode[S]]) -> list[Episode[S]]:
    """The same episodes with a verdict on every answer c_0 … c_T; all of them are one batch.

    The judge reads text alone; that an answer was cut off at its token limit is known only here,
    so such an answer is marked degenerate. So is one that is garbled (`with_garbled`). Its labels stay the judge's.
    A turn that failed is not shown to the judge: there is no answer, so its verdict is open.
    """
    pairs = [(e.prompt, turn.text) for e in episodes for turn in e.answers if not turn.failure]
    given: Iterator[Verdict] = iter(judge_all(judge, pairs))

    def verdict(prompt: Prompt, turn: AnyTurn, feedback: Feedback | None) -> Verdict:
        if turn.failure:
            return undetermined(f"{NO_ANSWER}: {turn.failure}")
        found = with_garbled(next(given), prompt, turn.text, feedback.feedback if feedback else "")
        return found if turn.finished else replace(found, degenerate=True)

    def verdicts(episode: Episode[S]) -> tuple[Verdict, ...]:
        notes = (None, *episode.feedback, *(None for _ in episode.answers))  # an answer may come without a review
        return tuple(verdict(episode.prompt, *turn) for turn in zip(episode.answers, notes, strict=False))

    return [replace(episode, verdicts=verdicts(episode)) for episode in episodes]
