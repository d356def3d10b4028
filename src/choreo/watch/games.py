"""One game: what the index knows of it, and what the page shows of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from choreo.files.utf8 import repaired
from choreo.report.record import outcome_of, verdict_words

SNIPPET = 200  # letters of a prompt in the list of games

Record = Mapping[str, Any]
"""A record of an episode, as `choreo.runs.episodes` writes them."""


class IndexedGame(NamedTuple):
    """What games are found by. verdict: on the last answer. outcome: repaired, broken, revised or unrevised; won, for a
    try of an attack that did. agents: who wrote a turn. reward: of all components together; None where nothing was
    paid. words: all of its text."""

    kind: str
    suite: str
    verdict: str
    outcome: str
    agents: tuple[str, ...]
    reward: float | None
    prompt: str
    words: str


def indexed(record: Record) -> IndexedGame:
    """Raises LookupError, TypeError, ValueError or AttributeError for what is no record of an episode."""
    record = repaired(record)
    prompt, answers, reviews = record["prompt"], record["answers"], record["reviews"]
    verdicts = [verdict_words(verdict) for verdict in record.get("verdicts") or []]
    paid = [value for name, value in record["rewards"].items() if "/" in name and isinstance(value, int | float)]
    turns = [*answers, *reviews]
    before = [str(message["content"]) for message in prompt.get("earlier") or []]
    reasons = [reason for _, _, reason in verdicts]
    return IndexedGame(
        kind=str(prompt["kind"]),
        suite=str(prompt["suite"]),
        verdict=verdict_of(record["verdicts"][-1]) if verdicts else "unjudged",
        outcome=_outcome(record, [state for _, state, _ in verdicts]),
        agents=tuple(dict.fromkeys(str(turn["agent"]) for turn in turns)),
        reward=round(sum(paid), 6) if paid else None,
        prompt=str(prompt["text"])[:SNIPPET],
        words="\n".join([*before, str(prompt["text"]), *(str(turn["text"]) for turn in turns), *reasons]),
    )


def _outcome(record: Record, states: Sequence[str]) -> str:
    if (record.get("attack") or {}).get("won"):
        return "won"
    return outcome_of(states) if len(record["answers"]) > 1 else "unrevised"


def verdict_of(verdict: Record) -> str:
    """One word: the worst that the judge says of an answer."""
    if verdict.get("unsafe"):
        return "unsafe"
    if verdict.get("overrefuse"):
        return "over-refusing"
    if verdict.get("garbled"):
        return "garbled"
    if verdict.get("unsafe") is None or verdict.get("overrefuse") is None:
        return "undetermined"
    return "satisfactory"


def shown_game(record: Record, pieces: Callable[[str, Sequence[int]], Sequence[str] | None]) -> dict[str, Any]:
    """What the page shows: {prompt, sample, rewards, attack, turns, learnt}. attack: as `attacks.play` records it, of
    a try of an attack. turns: in the order of the game; a review has in "checked" what `checked_labels` says of it.
    learnt: which of them have advantages. pieces: gives the text of each of an agent's ids, or None where its tokenizer
    is not here."""
    advantages = record.get("advantages") or {}
    judged = record.get("verdicts") or []
    verdicts = [verdict_words(verdict) for verdict in judged]
    turns = []
    for number, answer in enumerate(record["answers"]):
        what = "draft" if number == 0 else "revision"
        verdict = verdicts[number] if number < len(verdicts) else None
        turns.append({"what": what, "verdict": verdict, **_turn(answer, advantages, pieces)})
        if number < len(record["reviews"]):
            parsed = record["feedback"][number] if number < len(record["feedback"]) else None
            checked = checked_labels(parsed, judged[number]) if parsed and number < len(judged) else {}
            review = _turn(record["reviews"][number], advantages, pieces)
            turns.append({"what": "review", "parsed": parsed, "checked": checked, **review})
    fields = ("prompt", "sample", "rewards", "attack")
    return {**{name: record.get(name) for name in fields}, "turns": turns, "learnt": sorted(advantages)}


def checked_labels(parsed: Record, verdict: Record) -> dict[str, str]:
    """Of the two labels of a review, by name: right or wrong by the judge's verdict on the answer that was reviewed, or
    open where the judge left that open."""
    found = {}
    for name in ("unsafe", "overrefuse"):
        known = verdict.get(name)
        found[name] = "open" if known is None else "right" if bool(parsed.get(name)) == known else "wrong"
    return found


def _turn(
    turn: Record, advantages: Record, pieces: Callable[[str, Sequence[int]], Sequence[str] | None]
) -> dict[str, Any]:
    ids = turn.get("ids") or []
    choices = turn.get("choices") or []
    return {
        **{name: turn.get(name) for name in ("agent", "round", "version", "text", "finished", "failure")},
        "pieces": pieces(turn["agent"], ids) if ids else None,
        "ids": ids,
        "logprobs": turn.get("logprobs") or [],
        "forced": [place for place, choice in enumerate(choices) if choice < 0],
        "advantages": advantages.get(f"{turn['agent']}/{turn['round']}"),
    }
