"""The interface of an engine: what the rest of choreo asks of it, whatever runs the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from choreo.engine.constraint import Choices, Constraint, Ids

__all__ = ["Completion", "Engine", "Ids", "Request", "Scorable"]

Scorable = tuple[Ids, Ids] | tuple[Ids, Ids, Choices]
"""(context, ids), and the choices where a turn was constrained."""


@dataclass(frozen=True, slots=True)
class Request:
    """One context to continue.

    context: the token ids of the whole rendered history, at least one.
    key: names the random numbers, e.g. (seed, step, prompt id, sample, "answer", round). The same key
    draws the same numbers in any batch, so two requests with the same key and context get the same completion.
    constraint: what the completion is held to; None leaves it free.
    """

    context: Ids
    key: tuple[int | str, ...]
    constraint: Constraint | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """ids: the tokens produced, the end-of-turn id included when `finished`.

    logprobs: log π of each id at temperature 1, float32, as who sampled it computed it; 0 for a forced id.
    version: number of updates the policy had seen.
    choices: of a constrained completion, see `Choices`.
    """

    ids: Ids
    logprobs: tuple[float, ...]
    finished: bool
    version: int
    choices: Choices = ()


class Engine(Protocol):
    """Samples from policies and scores token ids.

    exact: what it samples follows from the keys of the requests, to the bit on one machine, and the log-probabilities
        of a completion are those of `score` to rounding. Otherwise π_old is what `score` says, not the completion's.
    positions: the most tokens of a context and its completion together; None is no limit.
    """

    end_id: int
    pad_id: int

    @property
    def exact(self) -> bool: ...

    @property
    def positions(self) -> int | None: ...

    def sample(
        self, agent: str, requests: Sequence[Request], *, max_new_tokens: int, temperature: float = 1.0
    ) -> list[Completion]:
        """One completion per request, in order. Temperature 0 is greedy."""
        ...

    def score(
        self, agent: str | None, pairs: Sequence[Scorable], masks: Tensor | None = None
    ) -> list[tuple[float, ...]]:
        """log π(ids | context) per id for every (context, ids). None is the reference, the base without adapters.

        masks: of the constraint under which turns with choices were sampled. A forced id has 0.
        """
        ...
