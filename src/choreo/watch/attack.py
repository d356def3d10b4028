"""What the table says of the folder of an attack. It has tries in place of steps, and its figures are of several
systems and budgets: they stand in its report, and none of them in its row."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from choreo.models.hub import fingerprint
from choreo.models.resolve import BASES

Table = Mapping[str, Any]


def is_attack(info: Table) -> bool:
    """Whether a run.json is that of an attack."""
    return info.get("method") == "attack"


def attack_doing(state: str, info: Table, summary: Table, played: int | None) -> str:
    """What an attack is doing, and to whom, in words. An attack that has finished says how many tries there were.

    info: its run.json. played: tries that are in the index of games; None where some of its files have not been read.
    """
    target = info.get("attacks") or summary.get("target", {}).get("name", "")  # an older run.json does not say
    on = f" on {target}" if target else ""
    pace = attack_pace(info)
    of = f"; done or no longer needed: {pace['step']:,} of {pace['steps']:,}" if pace["steps"] else ""
    if state == "finished":
        sent = sum(one["sent"] for one in summary.get("systems", {}).values())
        return f"finished after {_tries(sent)}{on}"
    if state == "running":
        return f"attacking{f' {target}' if target else ''}{f', {_tries(played)} so far' if played else ''}{of}"
    if played is None:
        return "stopped; its tries are still being read"
    return f"stopped after {_tries(played)}{on}{of}" if played else f"stopped before its first try{on}"


def attack_pace(info: Table) -> dict[str, Any]:
    """step (tries that are done or no longer needed), steps (all tries), seconds (of one that is sent), left, and
    bound: "usually less than", since a prompt needs no more tries once one has succeeded. None is not known."""
    told = info.get("progress", {})
    done, total, seconds = told.get("done", 0), told.get("total"), told.get("seconds")
    left = (total - done) * seconds if total and seconds else None
    return {"step": done, "steps": total, "seconds": seconds, "left": left, "bound": "usually less than"}


def attacked_bases(info: Table) -> list[str]:
    """The bases of the pair that is attacked, the conversation agent's first: the names of those that ship with choreo,
    of others the fingerprint. Nothing is known of those behind a server."""
    found = info.get("target", {}).get("base")
    return [_shipped().get(one, one) for one in found.split("+")] if found else []


@cache
def _shipped() -> dict[str, str]:
    return {fingerprint(folder): folder.name for folder in sorted(BASES.glob("*")) if folder.is_dir()}


def _tries(count: int) -> str:
    return f"{count:,} {'try' if count == 1 else 'tries'}"
