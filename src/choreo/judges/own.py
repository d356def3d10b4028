"""A judge of the user's own, as the rest of choreo has it: with a name, a record, and verdicts that are checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from choreo.errors import BadInput
from choreo.judges.base import AnsweredPrompt, Judge, judge_all
from choreo.registry import origin
from choreo.types import Prompt, Verdict


class OwnJudge:
    """The judge that a recipe names as `module:object`: a class called with [judge.options], an object, or a function.

    All that it must do is to give a `Verdict` for (prompt, answer). It may have what other judges have, `name`, `many`,
    `strict`, `describe` and `counts`, and then those are asked.
    """

    def __init__(self, kind: str, found: Any, options: Mapping[str, Any]):
        self.kind = kind
        self._options = dict(options)
        self._found = found
        self._judge: Any = found(**options) if isinstance(found, type) else found

    @property
    def name(self) -> str:
        return str(getattr(self._judge, "name", self.kind.rpartition(":")[2]))

    def __call__(self, prompt: Prompt, answer: str) -> Verdict:
        return self._checked(self._judge(prompt, answer))

    def many(self, pairs: Sequence[AnsweredPrompt]) -> list[Verdict]:
        """A verdict per pair, in order: in one batch where the judge takes one."""
        return [self._checked(verdict) for verdict in judge_all(self._judge, pairs)]

    def strict(self) -> Judge:
        """The judge for training, where it has one of its own."""
        for_training = getattr(self._judge, "strict", None)
        return OwnJudge(self.kind, for_training(), {}) if for_training else self

    def describe(self) -> dict[str, Any]:
        """Who judges, for the record: its name and options, where its code is, and what it says of itself."""
        itself: dict[str, Any] = getattr(self._judge, "describe", dict)()
        options = {"options": self._options} if self._options else {}
        return {"judge": self.name} | origin(self.kind, self._found) | options | itself

    def counts(self) -> dict[str, Any]:
        """What it counts of its work; nothing where it does not."""
        counts: dict[str, Any] = getattr(self._judge, "counts", dict)()
        return counts

    def _checked(self, verdict: Any) -> Verdict:
        if not isinstance(verdict, Verdict):
            raise BadInput(f"judge {self.kind}: expected a choreo.types.Verdict, got {verdict!r:.60}")
        return verdict
