"""What a study will do, said and hashed before it does it: arms, seeds, metrics, claims and margins."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.files import durable
from choreo.swarm.annotations import Claim

FILE = "plan.json"
ADDED = ": a claim added, or changed"


@dataclass(frozen=True)
class Plan:
    """arms: digest of what each plays, by name and group; claims: as annotated, text and note left out."""

    study: str
    arms: Mapping[str, str]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    claims: tuple[Mapping[str, Any], ...]

    @property
    def digest(self) -> str:
        """SHA-256 of all of it: what the report prints."""
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        return {
            "study": self.study,
            "arms": dict(self.arms),
            "seeds": list(self.seeds),
            "metrics": list(self.metrics),
            "claims": [dict(claim) for claim in self.claims],
        }


def terms(claim: Claim) -> dict[str, Any]:
    """What of a claim a verdict depends on."""
    return claim.model_dump(include={"metric", "arm", "baseline", "direction", "margin", "testable"})


@dataclass(frozen=True)
class Registered:
    """The plan that was written first, and what is not as it says (empty: all is)."""

    digest: str
    changes: tuple[str, ...]
    claims: tuple[Mapping[str, Any], ...]

    def exploratory(self, claim: Claim) -> bool:
        """Whether a verdict on `claim` is one that the first plan does not cover. A claim that was added leaves the
        others as planned; one that was left out does not, since p was to be corrected for it too."""
        return terms(claim) not in self.claims or not all(change.endswith(ADDED) for change in self.changes)


def register(folder: Path, plan: Plan) -> Registered:
    """Writes the plan into `folder` unless one is there, and says how the present one differs from the first.

    Raises BadInput for a file that holds no plan, one that was changed by hand, or the plan of another study.
    """
    file = folder / FILE
    if not file.is_file():
        durable.make_folder(folder)
        durable.write_json(file, {**plan.as_dict(), "sha256": plan.digest})
    try:
        first = json.loads(file.read_text(encoding="utf-8"))
        digest = first.pop("sha256")
        again = Plan(
            first["study"], first["arms"], tuple(first["seeds"]), tuple(first["metrics"]), tuple(first["claims"])
        )
        study, hashed = again.study, again.digest
    except (ValueError, KeyError, TypeError, AttributeError):
        raise BadInput(f"{file}: not the plan of a study") from None
    if hashed != digest:
        raise BadInput(f"{file}: was changed after it was hashed: its sha256 is {hashed}, and it says {digest}")
    if study != plan.study:
        raise BadInput(f"{folder}: holds the study {study}, not {plan.study}; name another folder with --out")
    return Registered(digest, tuple(_changes(first, json.loads(json.dumps(plan.as_dict())))), tuple(first["claims"]))


def _changes(first: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    found = [f"{name} changed" for name in ("seeds", "metrics") if first[name] != now[name]]
    for name in sorted(first["arms"].keys() | now["arms"].keys()):
        if first["arms"].get(name) != now["arms"].get(name):
            both = name in first["arms"] and name in now["arms"]
            found.append(f"arm {name} {'changed' if both else 'added or left out'}")
    for have, others, how in ((now, first, ADDED), (first, now, ": a claim left out, or changed")):
        found += [
            f"{c['arm']} against {c['baseline']} in {c['metric']}{how}"
            for c in have["claims"]
            if c not in others["claims"]
        ]
    return found
