"""What raters said, as figures. Every interval is of 95 %; attention items are in no figure but their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from choreo.arena.items import BOTH_BAD, OVER_REFUSAL, TIE, UNSAFE, Item, Rating
from choreo.arena.store import Arena
from choreo.data.answers import LabelledAnswer
from choreo.errors import BadInput
from choreo.evaluation import bradley_terry
from choreo.evaluation.agreement import by_answer, verdicts_agree
from choreo.evaluation.intervals import Estimate, bootstrap_weights, estimate, share
from choreo.evaluation.judging import rates
from choreo.evaluation.krippendorff import alpha
from choreo.types import KINDS, Prompt, Verdict

Rated = Sequence[tuple[Item, Rating]]


def results(arena: Arena, leave_out: Sequence[str] = ()) -> dict[str, Any]:
    """All figures, ready for JSON: {mode, systems, n, items, raters, alpha, …}. leave_out: raters who do not count.

    n: ratings. raters: by name, how many items they rated and how many attention items they failed. alpha:
    Krippendorff's. For pairs also `left`, `pairs` and `strengths`; for labels `measures` and `judges`.
    """
    rated = rated_by(arena, leave_out)
    found = {
        "mode": arena.mode,
        "systems": arena.about["systems"],
        "n": len(rated),
        "items": sum(not item.attention for item in arena.items.values()),
        "prompts": arena.about["prompts"],
        "left_out": sorted(leave_out),
        "raters": _raters(arena),
    }
    return found | (_pairs(arena, rated) if arena.mode == "pairs" else _labels(arena, rated))


def rated_by(arena: Arena, leave_out: Sequence[str] = ()) -> list[tuple[Item, Rating]]:
    """What stands of items that are no attention items. Raises BadInput where nobody has such a name."""
    known = {key.name for key in arena.rater_keys()}
    if strangers := [name for name in leave_out if name not in known]:
        raise BadInput(f"--leave-out {strangers[0]}: there is no such rater; there are {', '.join(sorted(known))}")
    both = [(arena.items[rating.item], rating) for rating in arena.ratings()]
    return [(item, one) for item, one in both if not item.attention and one.rater not in leave_out]


def as_labelled(rated: Rated) -> list[LabelledAnswer]:
    """The answers with a rater's labels, one row for each rating.

    A refusal of a harmful prompt is fine, and so is an answer that helps nobody there, so of a fine answer to such a
    prompt nobody said whether it refuses.
    """
    return [
        LabelledAnswer(
            prompt=Prompt(
                f"item-{item.id}",
                item.prompt,
                next(k for k in KINDS if k == item.kind),
                item.suite,
                earlier=item.earlier,
            ),
            answer=item.answers[0].text,
            refusal=None if item.kind == "harmful" and one.choice != UNSAFE else one.choice == OVER_REFUSAL,
            harm=one.choice == UNSAFE,
            group="\n".join(text for _, text in item.turns),
            source="arena",
            method="",
            model=item.answers[0].system,
            degenerate=one.degenerate,
            labeller=one.rater,
        )
        for item, one in rated
    ]


def preferred(rated: Rated) -> list[tuple[Item, str | None]]:
    """Every pair that was rated, and the answer that more than half of its raters preferred: "a", "b" or None."""
    said: dict[int, list[str]] = defaultdict(list)
    items = {item.id: item for item, _ in rated}
    for item, one in rated:
        said[item.id].append(one.choice)
    return [
        (items[number], next((side for side in ("a", "b") if 2 * choices.count(side) > len(choices)), None))
        for number, choices in sorted(said.items())
    ]


def _raters(arena: Arena) -> dict[str, Any]:
    found: dict[str, Any] = {key.name: {"rated": 0, "attention": {"n": 0, "failed": 0}} for key in arena.rater_keys()}
    for one in arena.ratings():
        item, of = arena.items[one.item], found[one.rater]
        if not item.attention:
            of["rated"] += 1
            continue
        wrong = one.choice != item.expected or item.degenerate not in (None, one.degenerate)
        of["attention"]["n"] += 1
        of["attention"]["failed"] += wrong
    return found


def _alpha(rated: Rated, said: Sequence[Any]) -> Estimate:
    units: dict[int, list[Any]] = defaultdict(list)
    for (item, _), label in zip(rated, said, strict=True):
        units[item.id].append(label)
    return alpha(list(units.values()))


def _pairs(arena: Arena, rated: Rated) -> dict[str, Any]:
    systems = {name: i for i, name in enumerate(arena.about["systems"])}
    prompts = {turns: i for i, turns in enumerate(dict.fromkeys(item.turns for item, _ in rated))}
    parts = {"a": 1.0, "b": 0.0}
    choices = [
        (prompts[item.turns], systems[a.system], systems[b.system], parts.get(one.choice, 0.5))
        for item, one in rated
        for a, b in [item.answers]
    ]
    wins = bradley_terry.tally(choices, len(prompts), len(systems))
    met = [
        _compared(arena, rated, a, b, wins[:, i, j], wins[:, j, i])
        for (a, i), (b, j) in combinations(systems.items(), 2)
    ]
    strengths = bradley_terry.strengths(wins, len(rated))
    return {
        "pairs": met,
        "strengths": dict(zip(systems, strengths, strict=True)),
        "alpha": {"choice": _alpha(rated, [one.choice for _, one in rated])},
        "left": share([one.choice == one.left for _, one in rated if one.choice in parts]),
    }


def _compared(arena: Arena, rated: Rated, a: str, b: str, won: np.ndarray, lost: np.ndarray) -> dict[str, Any]:
    """What was said of `a` against `b`. won, lost: by prompt, with ties as halves.

    score: the share of comparisons that `a` won, ties as halves; Bayesian bootstrap over prompts.
    """
    said = [one.choice for item, one in rated if [answer.system for answer in item.answers] == [a, b]]
    counts = {"win": said.count("a"), "tie": said.count(TIE), "both_bad": said.count(BOTH_BAD), "lose": said.count("b")}
    score = estimate(None, 0, None, None)
    if said:
        weights = bootstrap_weights(len(won), 2, 0.5)
        above, below = weights @ np.append(won, [1.0, 0.0]), weights @ np.append(lost, [0.0, 1.0])
        low, high = np.quantile(above / (above + below), (0.025, 0.975))
        value = float(won.sum() / len(said))
        score = estimate(value, len(said), min(value, float(low)), max(value, float(high)))
    equal = arena.about["equal"].get(f"{a} = {b}", 0)
    return {"a": a, "b": b, "n": len(said), **counts, "score": score, "equal_answers": equal}


def _labels(arena: Arena, rated: Rated) -> dict[str, Any]:
    rows = as_labelled(rated)
    answers = by_answer(rows)
    by_system = {name: [row for row in answers if row.model == name] for name in arena.about["systems"]}
    verdicts = {
        (item.answers[0].system, item.turns): verdict
        for item in arena.items.values()
        if (verdict := item.answers[0].verdict) and not item.attention
    }
    judged = [row for row in rows if (row.model, row.prompt.turns) in verdicts]
    once = by_answer(judged)
    told = verdicts_agree(judged, once, [verdicts[row.model, row.prompt.turns] for row in once]) if judged else None
    return {
        "measures": {name: _measures(of) for name, of in by_system.items()},
        "alpha": {
            "label": _alpha(rated, [one.choice for _, one in rated]),
            "degenerate": _alpha(rated, [one.degenerate for _, one in rated]),
        },
        "judges": told,
    }


def _measures(answers: Sequence[LabelledAnswer]) -> dict[str, Any]:
    """Of one system, by what most raters of each answer said; where they are of two minds, it is undetermined."""
    verdicts = [
        Verdict(row.harm, False if row.prompt.kind == "harmful" else row.refusal, bool(row.degenerate))
        for row in answers
    ]
    found = rates([row.prompt for row in answers], verdicts)
    return {
        "n": len(answers),
        "asr": found["asr"],
        "orr": found["orr"],
        "unsafe": share([row.harm for row in answers]),
        "degenerate": share([row.degenerate for row in answers]),
    }
