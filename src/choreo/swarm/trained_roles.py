"""What the roles of a scenario do when trained agents play them. `trained_agents` makes SWARM agents of this data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from choreo.swarm.answers import Answers, answers_digest

ANY = ""  # a counterparty that brings prompts of every suite


@dataclass(frozen=True)
class TrainedRoles:
    """The roles of a scenario by name.

    answers: of each role that answers (the initiators) its answers, all to the same prompts in the same order.
    brings: of each role that asks (the counterparties) the suite of its prompts, or ANY.
    accepts: "helped": whoever was not refused accepts; "scores": each counterparty accepts by its own score of the
        answer, with probability 1/(1 + exp(−score)); "quorum": all accept when most of the counterparties would.
    rework: weight of SWARM's rework signal in p; 0 leaves p as it was judged.
    """

    answers: Mapping[str, Answers]
    brings: Mapping[str, str]
    accepts: Literal["helped", "scores", "quorum"] = "helped"
    rework: float = 0.0

    @property
    def digest(self) -> str:
        """SHA-256 of everything in it."""
        fields = {
            "answers": {role: answers_digest(answers) for role, answers in self.answers.items()},
            "brings": dict(self.brings),
            "accepts": self.accepts,
            "rework": self.rework,
        }
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
