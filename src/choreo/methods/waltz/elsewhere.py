"""What a recipe of WaltzRL may not ask for where a service has the weights (`[engine] backend`), and why."""

from __future__ import annotations

from typing import Any, NamedTuple

from choreo.config.checking import shown
from choreo.config.common import Section

NO_EFFECT = "the service has no such setting"


class NotThere(NamedTuple):
    """key: of a section. why: it may have no other value than `allowed`, the default unless said."""

    key: str
    why: str
    allowed: Any = ...


REFUSED: dict[str, tuple[NotThere, ...]] = {
    "model": (
        NotThere("train", "the service trains adapters, not whole models"),
        NotThere("feedback_base", "the service has one base for both agents"),
        NotThere("one_policy", "the service has an adapter for each agent"),
        *(NotThere(key, NO_EFFECT) for key in ("alpha", "targets", "dtype", "device", "shard", "recompute")),
        NotThere("temperature", "the service learns at temperature 1"),
    ),
    "protocol": (NotThere("constrained", "the service gives no log-probabilities under choreo's grammar"),),
    "warmup": tuple(NotThere(key, "a warm start is not built for a service") for key in ("answers", "own", "run")),
    "learning": (
        NotThere("beta", "the service's policy loss has no KL", 0.0),
        NotThere("baseline", "the service gives no hidden states to predict values from"),
        NotThere("micro_tokens", NO_EFFECT),
    ),
}


def complaint(section: str, value: Section | None) -> str:
    """What of a section is refused, in words; "" where nothing is. value: None is a section that is left out."""
    if value is None:
        return ""
    if section == "attack":
        return "an attacker beside the pair is not built for a service (engine.backend)"
    wrong = []
    for key, why, allowed in REFUSED.get(section, ()):
        found, least = getattr(value, key), type(value).model_fields[key].default if allowed is ... else allowed
        if found != least:
            wrong.append(f"{key} = {shown(found)}: {why}; it has to be {shown(least)}")
    return f"{', and '.join(wrong)} (engine.backend)" if wrong else ""
