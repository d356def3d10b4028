"""A language model over an OpenAI-compatible endpoint as a judge: many at a time, cached, counted.

What cannot be judged is an undetermined verdict with its reason, and is counted under it; a judge that is not there at
all stops the work instead (`BadInput` where it never answered, `JudgeDown` where it went away).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from choreo.clients.asker import Asker
from choreo.clients.cache import key_of
from choreo.clients.http import Endpoint
from choreo.clients.reply import Failure, Reply
from choreo.errors import BadInput
from choreo.judges.base import AnsweredPrompt, Format, JudgeDown, undetermined
from choreo.text.replies import shortened
from choreo.types import Prompt, Verdict


class EndpointJudge:
    """`format` asked at `endpoint`. `cache` is a file; None keeps replies for as long as the judge lives.

    A reply is stored as the server gave it and read anew each time, so a better reading costs no call. Failures are
    not stored: what failed is asked again the next time. One thread at a time may use a judge.
    Raises BadInput for a cache that cannot be opened.
    """

    def __init__(self, format: Format, endpoint: Endpoint, cache: Path | None = None):
        self.format = format
        self.endpoint = endpoint
        self._asker = Asker(endpoint, cache, "judge")
        self._answered = False  # the server has replied to this object
        self._known = False  # … or to an earlier one: the cache holds replies to this very judge
        self._missing = 0  # rows in a row, in the order they ended, that got no reply
        self._numbers: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()

    @property
    def name(self) -> str:
        return f"{self.format.name}/{self.endpoint.model}"

    def __call__(self, prompt: Prompt, answer: str) -> Verdict:
        return self.many([(prompt, answer)])[0]

    def many(self, pairs: Sequence[AnsweredPrompt]) -> list[Verdict]:
        """A verdict per pair, in order; `endpoint.concurrency` requests at a time. Pairs that ask the same share one.

        Raises BadInput where the server cannot be used: it never answered, or says that key, address or model are
        wrong. Raises JudgeDown where it stopped answering. Either way, every reply that came is in the cache.
        """
        bodies = [self.endpoint.body(self.format.ask(*pair), self.format.tokens) for pair in pairs]
        keys = [self._key(body) for body in bodies]
        questions = dict(zip(keys, bodies, strict=True))
        outcomes: dict[str, Reply | Failure] = {**self._asker.kept(questions)}
        self._known |= bool(outcomes)
        asked = {key: body for key, body in questions.items() if key not in outcomes}
        outcomes |= self._ask(asked)
        verdicts = [self._read(prompt, outcomes[key]) for (prompt, _), key in zip(pairs, keys, strict=True)]
        self._numbers["rows"] += len(pairs)
        self._numbers["cached"] += len(pairs) - len(asked)
        self._reasons.update(verdict.reason.split(":")[0] for verdict in verdicts if verdict.undetermined)
        self._numbers["judged"] += sum(not verdict.undetermined for verdict in verdicts)
        return verdicts

    def strict(self) -> EndpointJudge:
        """The same judge for training, with the same cache and counts: one row without a reply stops the work."""
        made = copy(self)
        made.endpoint = replace(self.endpoint, patience=1)
        return made

    def counts(self) -> dict[str, Any]:
        """What was done since the judge was made; judged + the undetermined = rows.

        cached: rows without a call of their own. calls: requests sent, `retries` of them after a failure.
        unmetered: replies whose tokens the server did not count (they are in no sum). Requests that failed cost nothing
        here, whatever the server charges for them.
        cost: by the endpoint's prices, in their currency.
        """
        names = ("rows", "judged", "calls", "cached", "retries", "prompt_tokens", "completion_tokens", "unmetered")
        found = self._numbers + self._asker.counts
        counts: dict[str, Any] = {name: found[name] for name in names}
        prompt, completion = counts["prompt_tokens"], counts["completion_tokens"]
        cost = (prompt * self.endpoint.prompt_price + completion * self.endpoint.completion_price) / 1e6
        return counts | {"undetermined": dict(sorted(self._reasons.items())), "cost": cost}

    def describe(self) -> dict[str, Any]:
        """Who judges, for the record: format, version, a hash of the words that are sent, and the endpoint's settings.

        words: SHA-256 of everything sent about an empty exchange.
        """
        empty = self.format.ask(Prompt(id="", text="", kind="general", suite=""), "")
        asked = {"format": self.format.name, "version": self.format.version, "words": key_of(empty)}
        return {"judge": self.name} | asked | {"endpoint": asdict(self.endpoint) | {"extra": dict(self.endpoint.extra)}}

    def close(self) -> None:
        self._asker.close()

    def _key(self, body: dict[str, Any]) -> str:
        """Of everything that matters for a reply: address, the whole request body, and which words these are."""
        return key_of([self.endpoint.address(body), body, self.format.name, self.format.version])

    def _ask(self, questions: dict[str, dict[str, Any]]) -> dict[str, Reply | Failure]:
        """The outcome of each question."""
        outcomes = self._asker.ask(questions, self._check)
        failures = [outcome for outcome in outcomes.values() if isinstance(outcome, Failure)]
        if failures and not self._known:  # fewer rows than patience, and not one reply
            raise self._down(failures[0])
        return outcomes

    def _check(self, outcome: Reply | Failure) -> None:
        """Raises once going on makes no sense."""
        if isinstance(outcome, Reply):
            self._answered = self._known = True
            self._missing = 0
            return
        if outcome.kind == "wrong":
            raise self._down(outcome)
        if outcome.kind == "stopped" or (outcome.of_row and self._known):
            return  # another row says why; or the server is there, and does not want this row
        self._missing += 1
        never_there = outcome.kind == "unreachable" and not self._answered
        if never_there or self._missing >= self.endpoint.patience:
            self._missing = 0
            raise self._down(outcome)

    def _down(self, failure: Failure) -> BadInput | JudgeDown:
        where = f"judge {self.name} at {self.endpoint.url}"
        told = f"{failure.kind}: {failure.details}"
        if failure.kind == "wrong":
            key = self.endpoint.key_variable
            return BadInput(f"{where}: {failure.details} (is the address, the model or the key in {key} wrong?)")
        if failure.of_row:
            return BadInput(f"{where}: takes no request; it says {failure.details}")
        tries = f"after {self.endpoint.retries + 1} tries of at most {self.endpoint.timeout:g} s"
        if not self._answered:
            return BadInput(f"{where}: no answer {tries}, last {told}; is the server running, and is this its address?")
        cache = self._asker.cache
        kept = f"its {len(cache)} replies are kept" + (f" in {cache.path}" if cache.path else "")
        return JudgeDown(f"{where}: stopped answering; {tries}, last {told}; {kept}")

    def _read(self, prompt: Prompt, outcome: Reply | Failure) -> Verdict:
        if isinstance(outcome, Failure):
            return undetermined(f"{outcome.kind}: {outcome.details}")
        if outcome.refused or outcome.finish == "content_filter":
            return undetermined(f"judge refused: {shortened(outcome.refused or outcome.text or '')}")
        if outcome.finish == "length":
            return undetermined(f"cut off: {shortened(outcome.text or '')}")
        text, failure = outcome.answer
        return undetermined(failure) if failure else self.format.read(prompt, text)
