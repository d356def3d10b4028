"""What an attack that goes on must find as it was, and in words what is another thing now: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

LETTERS = 120  # of a name in a message


def difference(name: str, before: Any, now: Any) -> str:
    """What differs, in a part of a line, with the option that brings back what was, where there is one: "step 40, and
    not 54; go on with --step 40".

    name: of what an attack keeps in its run.json: target, seed, prompts, judge or writer. before, now: two values of
    it that are not the same.
    """
    told: dict[str, Callable[[Any, Any], str]]
    told = {"target": _target, "seed": _seed, "prompts": _prompts, "judge": _judge, "writer": _writer}
    return told[name](before, now)


def _target(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    if "step" not in before or "step" not in now:
        return f"{_whom(before)}, and not {_whom(now)}"
    if before["step"] != now["step"]:
        return f"step {before['step']}, and not {now['step']}; go on with --step {before['step']}"
    return f"the weights of step {now['step']} are others now, or of another run"


def _whom(target: Mapping[str, Any]) -> str:
    if "step" in target:
        return f"step {target['step']} of a run"
    return f"{target.get('model')}@{target.get('url')}"[:LETTERS]


def _seed(before: int, now: int) -> str:
    return f"{before}, and not {now}; go on with --seed {before}"


def _prompts(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    counts = before["count"], now["count"]
    found = f"{counts[0]}, and not {counts[1]}" if counts[0] != counts[1] else f"as many, {counts[0]}, but not the same"
    return f"{found}; go on with --most and --suite as they were"


def _writer(before: Mapping[str, Any] | None, now: Mapping[str, Any]) -> str:
    was, named = (str(one.get("name", "")) for one in (before or {}, now))
    if was != named:
        hint = f"with --writer {was}" if was else "without --writer"
        return f"{was or 'none'}, and not {named or 'none'}; go on {hint}"[: 2 * LETTERS]
    steps = [(before or {}).get("step"), now.get("step")]
    if steps[0] != steps[1]:
        return f"{named} at step {steps[0]}, and it is at {steps[1]} now"
    return f"the weights of {named} are others now"


def _judge(before: Mapping[str, Any] | str | None, now: Mapping[str, Any]) -> str:
    was = before.get("judge") if isinstance(before, Mapping) else before
    if was != now["judge"] or not isinstance(before, Mapping):
        return f"{str(was)[:LETTERS]}, and not {str(now['judge'])[:LETTERS]}"
    others = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    return f"{str(was)[:LETTERS]}, of which {', '.join(others)} changed"
