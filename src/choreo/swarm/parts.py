"""Who plays which part when trained agents are SWARM's participants. Plain data; `players` makes SWARM agents of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from choreo.swarm.answers import Answers
from choreo.swarm.answers import digest as digest_of_answers
from choreo.swarm.scenario import Scenario

if TYPE_CHECKING:
    from choreo.swarm.simulate import Cast

ANY = ""  # a counterparty that brings prompts of every suite


@dataclass(frozen=True)
class Parts:
    """What a scenario's roles do. As a `cast` of `run.Job` it makes the players of one run.

    answers: of each role that answers, the initiators; all to the same prompts, in the same order.
    brings: of each role that asks, the counterparties, the suite of its prompts, or ANY.
    accepts: helped, whoever was not refused is served; scores, each counterparty by its own score of the answer, with
        probability 1/(1 + exp(−score)); quorum, when most of all counterparties would.
    rework: weight of SWARM's rework signal in p; 0 leaves p as it was judged.
    """

    answers: Mapping[str, Answers]
    brings: Mapping[str, str]
    accepts: Literal["helped", "scores", "quorum"] = "helped"
    rework: float = 0.0

    def __call__(self, scenario: Scenario, seed: int) -> Cast:
        from choreo.swarm.players import cast

        return cast(self, scenario, seed)

    @property
    def digest(self) -> str:
        """SHA-256 of all of it."""
        said = {
            "answers": {role: digest_of_answers(written) for role, written in self.answers.items()},
            "brings": dict(self.brings),
            "accepts": self.accepts,
            "rework": self.rework,
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()
