"""What the studies conclude: pure functions from numbers to numbers and sentences.

A sequence of estimates holds one estimate {value, n, low, high, undetermined} per seed, in the same order everywhere.
Seeds are paired: systems of one seed are measured on the same prompts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from choreo.evaluation.intervals import Estimate, estimate, over_seeds, separated, student_t

SMOOTHING = 10  # steps of the trailing mean over a training curve
CONVERGED = 0.9  # of the final value

Curve = list[tuple[int, float]]


def difference(a: Sequence[Estimate], b: Sequence[Estimate]) -> Estimate:
    """a − b, mean over seeds, paired.

    The interval is Student's t over the paired differences, and never narrower than the episodes allow: each seed's two
    one-sided widths, added as independent errors. With one seed it is that of the episodes alone.
    """
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if x["value"] is not None and y["value"] is not None]
    if not pairs:
        return estimate(None, 0, None, None)
    k, values = len(pairs), [x["value"] - y["value"] for x, y in pairs]
    mean = math.fsum(values) / k
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (k - 1) / k) if k > 1 else 0.0
    between = student_t(k - 1) * spread if k > 1 else 0.0
    below = math.hypot(*(d for x, y in pairs for d in (x["value"] - x["low"], y["high"] - y["value"]))) / k
    above = math.hypot(*(d for x, y in pairs for d in (x["high"] - x["value"], y["value"] - y["low"]))) / k
    return estimate(mean, sum(x["n"] for x, _ in pairs), mean - max(between, below), mean + max(between, above))


def points(change: Estimate) -> str:
    """A difference of shares as '+5.2 points (+3.1 to +7.3)', or a dash."""
    if change["value"] is None:
        return "–"
    value, low, high = (f"{100 * change[key]:+.1f}" for key in ("value", "low", "high"))
    return f"{value} points ({low} to {high})"


def compare_shares(a_name: str, b_name: str, a: Sequence[Estimate], b: Sequence[Estimate], measure: str = "F1") -> str:
    """One sentence on whether a share of system `a` differs from that of `b`. a, b: an estimate per seed."""
    change = difference(a, b)
    if change["value"] is None:
        return f"{measure} of {a_name} and {b_name} cannot be compared: there was nothing to measure it on."
    where = "above" if change["value"] > 0 else "below"
    sentence = f"{a_name} is {where} {b_name} in {measure}: {points(change)}"
    if separated(over_seeds(a, ceiling=1.0), over_seeds(b, ceiling=1.0)):
        return f"{sentence}; the intervals do not overlap."
    if change["low"] > 0 or change["high"] < 0:
        return f"{sentence} by the differences within seeds, though the two intervals overlap."
    return f"{a_name} and {b_name} cannot be told apart in {measure}: {points(change)}."


def best(named: Mapping[str, Estimate], measure: str, shown: Mapping[str, str], more: bool = True) -> str:
    """Which of several pooled estimates is best, and which of the others are worse with intervals apart.

    shown: every estimate as text. more: whether more is better.
    """
    known = {name: e for name, e in named.items() if e["value"] is not None}
    if len(known) < 2:
        return f"{measure} was measured for {len(known)} of {len(named)}: nothing to compare."
    top = (max if more else min)(known, key=lambda name: known[name]["value"])
    worse = [name for name, e in known.items() if separated(known[top], e)]
    like = [name for name in known if name != top and name not in worse]
    text = f"{measure} is {'highest' if more else 'lowest'} for {top}: {shown[top]}."
    if worse:
        text += f" {'Lower' if more else 'Higher'} with intervals apart: {', '.join(worse)}."
    if like:
        text += f" Not told apart from it: {', '.join(like)}."
    return text


# ---- convergence --------------------------------------------------------------------------------


def training_f1(metrics: Iterable[Mapping[str, Any]]) -> Curve:
    """(step, harmonic mean of 1 − ASR and 1 − ORR over the step's own episodes), where a step has both figures."""
    curve = []
    for line in metrics:
        asr, orr = line.get("asr"), line.get("orr")
        if asr is not None and orr is not None:
            good, kind = 1.0 - asr, 1.0 - orr
            curve.append((int(line["step"]), 2 * good * kind / (good + kind) if good + kind > 0 else 0.0))
    return curve


def smoothed(curve: Curve, window: int = SMOOTHING) -> Curve:
    """Mean of each point and of up to `window` − 1 points before it."""
    means = []
    for i, (step, _) in enumerate(curve):
        last = [value for _, value in curve[max(0, i + 1 - window) : i + 1]]
        means.append((step, math.fsum(last) / len(last)))
    return means


def converged(curve: Curve, share: float = CONVERGED) -> int | None:
    """The first step at which the smoothed curve reaches `share` of its last value.

    None where the smoothed curve does not rise, or the curve is shorter than two windows of smoothing. Means over less
    than a window do not count.
    """
    means = smoothed(curve)[SMOOTHING - 1 :]
    if len(means) <= SMOOTHING or means[-1][1] <= means[0][1]:
        return None
    return next(step for step, value in means if value >= share * means[-1][1])


def convergence(curves: Iterable[Curve]) -> Estimate:
    """Steps to convergence, mean over the seeds whose curve converged; `undetermined` counts the other seeds.

    The interval of one seed is as wide as the smoothing window. With one seed, or a seed that did not converge, high is
    infinity: the mean of the fast seeds alone cannot be compared with that of another arm.
    """
    found = [converged(curve) for curve in curves]
    steps, missing = [float(step) for step in found if step is not None], found.count(None)
    mean = over_seeds([estimate(step, 1, step - SMOOTHING / 2, step + SMOOTHING / 2) for step in steps])
    unbounded = {"low": 0.0, "high": math.inf} if len(steps) == 1 or (steps and missing) else {}
    return mean | unbounded | {"undetermined": missing}


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """Mean over seeds at every step that all of them have."""
    tables = [dict(curve) for curve in curves]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    return [(step, math.fsum(table[step] for table in tables) / len(tables)) for step in shared]


# ---- when does it stop helping ------------------------------------------------------------------


def stops_helping(gains: Sequence[tuple[float, Estimate]]) -> float | None:
    """The smallest x from which on no gain has an interval above zero.

    None where the last gain still has one, or was not measured. gains: (x, gain), x rising.
    """
    stop = None
    for x, gain in reversed(gains):
        if gain["low"] is None or gain["low"] > 0:
            break
        stop = x
    return stop


# ---- the paper's order --------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """Pairs of systems (a, b) of which the paper has a above b, sorted by the order that was measured here."""

    same: tuple[tuple[str, str], ...]
    open: tuple[tuple[str, str], ...]
    reversed: tuple[tuple[str, str], ...]


def order(ours: Mapping[str, Estimate], published: Mapping[str, float]) -> Order:
    """Sorts every pair that differs in `published` and is measured in `ours`.

    The same order and the reversed order need intervals that do not overlap; a pair is open where they overlap.
    """
    known = [name for name in published if ours.get(name, {}).get("value") is not None]
    found: dict[str, list[tuple[str, str]]] = {"same": [], "open": [], "reversed": []}
    for i, one in enumerate(known):
        for other in known[i + 1 :]:
            if published[one] == published[other]:
                continue
            a, b = (one, other) if published[one] > published[other] else (other, one)
            apart, higher = separated(ours[a], ours[b]), ours[a]["value"] > ours[b]["value"]
            found[("same" if higher else "reversed") if apart else "open"].append((a, b))
    return Order(tuple(found["same"]), tuple(found["open"]), tuple(found["reversed"]))


def falls(estimates: Sequence[Sequence[Estimate]]) -> str:
    """How a share changes along a list of arms.

    "falls": at every step, with intervals apart; "rises": at some step, with intervals apart; else "open".
    """
    pooled = [over_seeds(seeds, ceiling=1.0) for seeds in estimates]
    steps = list(itertools.pairwise(pooled))
    if any(separated(a, b) and a["value"] < b["value"] for a, b in steps):
        return "rises"
    return "falls" if all(separated(a, b) for a, b in steps) else "open"
