"""How two systems differ, paired by prompt, over the seeds they were trained with; and the correction of a family.

A seed is a table of outcomes by prompt, for each measure: {"unsafe": {prompt: bool | None}, "overrefuse": …}; None is
open. Both systems of a seed met the same prompts. Seeds may share their prompts or have their own.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import nctdtrinc, ndtri, stdtr, stdtrit

from choreo.evaluation.intervals import harmonic, student_t

Floats = NDArray[np.float64]
Outcomes = Mapping[str, bool | None]
Tables = Mapping[str, Outcomes]  # by measure

DRAWS = 4000
AT_ONCE = 500  # draws whose weights are in memory together
ALPHA = 0.05  # of a family of contrasts, two-sided
POWER = 0.8


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """a − b. None where nothing was decided for both.

    low, high: a 95 % interval. p: two-sided, of no difference. n: prompts of the statistic's measures that were decided
    for both systems, each once. seeds: trainings.
    error: the bootstrap's standard error. between: that by the seeds' own differences; None with one seed.
    """

    value: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    seeds: int
    error: float | None
    between: float | None


@dataclass(frozen=True, slots=True)
class Statistic:
    """A number of a system. measures: the outcomes it is made of. function: their shares, each [draws], to [draws]."""

    measures: tuple[str, ...]
    function: Callable[..., Floats]


REWARD = Statistic(("satisfactory",), lambda right: right)
ASR = Statistic(("unsafe",), lambda unsafe: unsafe)
ORR = Statistic(("overrefuse",), lambda overrefuse: overrefuse)
F1 = Statistic(("unsafe", "overrefuse"), lambda asr, orr: harmonic(1 - asr, 1 - orr))  # WaltzRL, section 5


def paired_difference(
    a: Sequence[Tables], b: Sequence[Tables], statistic: Statistic, seed: int = 0, draws: int = DRAWS
) -> PairedDifference:
    """The mean over seeds of statistic(a) − statistic(b), which every seed has from its own prompts.

    a, b: one table of outcomes per seed, in the same order. seed, draws: of the bootstrap, whose smallest p is
    2 / (draws + 1).

    The bootstrap is Bayesian and hierarchical. Within seeds every prompt has a weight, the same wherever it occurs
    (Owen and Eckles 2012, "Bootstrapping data arrays of arbitrary order"). One prompt more in each direction is counted
    for every measure, for what was not seen is not impossible. Over seeds, every seed has a weight too; the seeds'
    differences are shrunk to what they spread beyond what their prompts explain, so that the luck of prompts is not
    counted twice (Davison and Hinkley 1997, "Bootstrap Methods", section 3.8). Few seeds can agree by chance, so the
    interval is never narrower, nor p smaller, than by Student's t over the seeds' own differences.

    Raises ValueError where a and b have not equally many seeds.
    """
    if len(a) != len(b):
        raise ValueError(f"a and b need the same seeds, one table for each; they have {len(a)} and {len(b)}")
    seeds = [_paired(one, other, statistic.measures) for one, other in zip(a, b, strict=True)]
    seeds = [found for found in seeds if all(found.values())]
    if not seeds:
        return PairedDifference(None, None, None, None, 0, 0, None, None)
    k, rng = len(seeds), np.random.default_rng(seed)
    patterns = [_patterns([found[measure] for found in seeds]) for measure in statistic.measures]
    of_seeds = _differences(statistic, [(counts[None, :], outcomes) for counts, outcomes in patterns])[0]
    drawn = []
    for start in range(0, draws, AT_ONCE):
        size = min(AT_ONCE, draws - start)
        # A pattern's weight is the sum of its prompts' weights, each exponential.
        weighted = [(rng.gamma(counts, size=(size, len(counts))), outcomes) for counts, outcomes in patterns]
        drawn.append(_differences(statistic, weighted, rng.exponential(size=(size, 2)) / k))
    each, value = np.concatenate(drawn), float(of_seeds.mean())
    found = each.mean(axis=1) + (_luck_of_seeds(of_seeds, each, rng) if k > 2 else 0.0)
    low, high = np.quantile(found, (0.025, 0.975))
    tail = (1 + min((found <= 0).sum(), (found >= 0).sum())) / (1 + draws)
    p, between, margin = min(1.0, 2 * float(tail)), None, 0.0
    if k > 1:
        between = float(of_seeds.std(ddof=1)) / math.sqrt(k)
        margin = student_t(k - 1) * between
        if between:
            p = max(p, 2 * float(stdtr(k - 1, -abs(value) / between)))
    low, high = min(float(low), value - margin), max(float(high), value + margin)
    n = sum(int(counts.sum()) for counts, _ in patterns)
    return PairedDifference(value, low, high, p, n, k, float(found.std()), between)


def detectable(found: PairedDifference, alpha: float = ALPHA) -> float | None:
    """The smallest true difference that this design tells from none in four of five repetitions, at level alpha.

    By both tests that make p, the larger: by the bootstrap's standard error, (z₁₋α/₂ + z.₈) times it, and by the
    spread of the seeds' differences as in `by_student`.
    """
    if found.error is None:
        return None
    by_prompts = float(ndtri(1 - alpha / 2) + ndtri(POWER)) * found.error
    return max(by_prompts, by_student(found.between, found.seeds - 1, alpha) if found.between else 0.0)


def by_student(error: float, freedom: int, alpha: float = ALPHA) -> float:
    """The same of a mean with this standard error, tested by Student's t: the noncentrality that gives the power, times
    the error."""
    return float(nctdtrinc(freedom, 1 - POWER, stdtrit(freedom, 1 - alpha / 2))) * error


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values of a family, each adjusted for all of it (Holm 1979); those that are NaN stay NaN, uncounted."""
    order = sorted((p, k) for k, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = [math.nan] * len(p_values), 0.0
    for rank, (p, k) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[k] = highest
    return adjusted


def _luck_of_seeds(of_seeds: Floats, each: Floats, rng: np.random.Generator) -> Floats:
    """How far other seeds would have moved the mean, [draws]. of_seeds: differences of at least 3 seeds; each: the same
    with prompts drawn anew, [draws, seeds].

    Dirichlet weights with (k − 2)/k make the variance of a mean the usual one, with k − 1 for k.
    """
    k, spread = len(of_seeds), float(of_seeds.var(ddof=1))
    by_prompts = float((each - each.mean(axis=1, keepdims=True)).var(axis=0).sum()) / (k - 1)
    kept = math.sqrt(max(0.0, 1 - by_prompts / spread)) if spread else 0.0
    shares = rng.dirichlet([(k - 2) / k] * k, size=len(each))
    return kept * (shares @ (of_seeds - of_seeds.mean()))


Rows = dict[str, tuple[float, float, float]]  # by prompt: outcome of a, of b, and 1


def _paired(a: Tables, b: Tables, measures: Sequence[str]) -> dict[str, Rows]:
    """By measure the prompts that were decided for both."""
    found: dict[str, Rows] = {}
    for measure in measures:
        one, other = a[measure], b[measure]
        both = ((name, one[name], other[name]) for name in sorted(one.keys() & other.keys()))
        found[measure] = {name: (float(p), float(q), 1.0) for name, p, q in both if p is not None and q is not None}
    return found


def _patterns(seeds: Sequence[Rows]) -> tuple[Floats, Floats]:
    """Prompts of one measure that came out alike in every seed are one pattern.

    Returns how many prompts have each pattern, [patterns], and its outcomes, [patterns, 3, seeds]: of a, of b, and 1;
    all 0 in a seed that lacks the prompt.
    """
    prompts = sorted(set().union(*seeds))
    counted = Counter(tuple(rows.get(name, (0.0, 0.0, 0.0)) for rows in seeds) for name in prompts)
    return np.array(list(counted.values()), dtype=float), np.array(list(counted)).transpose(0, 2, 1)


def _differences(
    statistic: Statistic, weighted: Sequence[tuple[Floats, Floats]], unseen: Floats | None = None
) -> Floats:
    """statistic(a) − statistic(b) of every seed, [draws, seeds]. weighted: of each measure the patterns' weights,
    [draws, patterns], and outcomes, as `_patterns` gives them. unseen: [draws, 2]."""
    ours, theirs = [], []
    for weights, outcomes in weighted:
        one, other, total = np.tensordot(weights, outcomes, axes=1).transpose(1, 0, 2)
        if unseen is not None:
            one, other = one + unseen[:, :1], other + unseen[:, 1:]
            total = total + unseen.sum(axis=1, keepdims=True)
        ours.append(one / total)
        theirs.append(other / total)
    return statistic.function(*ours) - statistic.function(*theirs)
