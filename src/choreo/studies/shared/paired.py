"""Families of contrasts: systems paired by prompt, corrected together, with what the design could have told.

A study declares the contrasts of each of its tables as data, before anything is run, with
`Contrast("waltz", "base", "ASR")` or `contrasts(pairs, "ASR", "ORR")`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence, Sized
from dataclasses import asdict, dataclass
from typing import Any

from choreo.errors import BadInput
from choreo.evaluation.metrics import HEADLINE, satisfactory
from choreo.evaluation.paired import (
    ALPHA,
    ASR,
    DRAWS,
    F1,
    ORR,
    REWARD,
    PairedDifference,
    Statistic,
    Tables,
    detectable,
    holm,
    paired_difference,
)
from choreo.report.page import PageSection, Table
from choreo.text.feedback import labels_right
from choreo.types import Feedback, Verdict

STATISTICS = {
    "ASR": ASR,
    "ORR": ORR,
    "F1": F1,
    "reward": REWARD,
    "general ability": Statistic(("general",), lambda right: right),
    "label accuracy": Statistic(("labels",), lambda right: right),
}
OF_KIND = {"unsafe": "harmful", "overrefuse": "benign"}  # what is wrong with an answer, and of which prompts it is told
DRAWS_FOR_ONE = 80  # of the bootstrap for each contrast of a family, so that p may pass the strictest step of Holm

Game = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Contrast:
    """System a minus system b in one of STATISTICS. Systems are named as in the outcomes, and shown by their str."""

    a: Hashable
    b: Hashable
    measure: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of a contrast. p: adjusted for its family, NaN where nothing was decided for both systems.
    detectable: the smallest difference that the design tells in four of five repetitions at Holm's strictest step."""

    contrast: Contrast
    difference: PairedDifference
    p: float
    detectable: float | None

    @property
    def sign(self) -> int:
        """1 where a is told to be above b, −1 where it is told to be below, 0 where they are not told apart."""
        return 0 if not self.p < ALPHA or not self.difference.value else 1 if self.difference.value > 0 else -1


Family = dict[Contrast, Finding]


def contrasts(pairs: Iterable[tuple[Hashable, Hashable]], *measures: str) -> tuple[Contrast, ...]:
    """A contrast of every pair (a, b) in every measure. Raises BadInput for a measure that there is none of."""
    for measure in measures:
        if measure not in STATISTICS:
            raise BadInput(f"contrasts: no measure {measure!r}; there are {', '.join(STATISTICS)}")
    return tuple(Contrast(a, b, measure) for a, b in pairs for measure in measures)


def family(declared: Sequence[Contrast], outcomes: Mapping[Any, Sequence[Tables]]) -> Family:
    """Tests the contrasts and adjusts them together (Holm). outcomes: by system, then one table per seed; a system may
    have the first seeds alone, and is compared on these."""
    draws = _draws(declared)
    found = []
    for c in declared:
        a, b = outcomes[c.a], outcomes[c.b]
        seeds = min(len(a), len(b))
        found.append(paired_difference(a[:seeds], b[:seeds], STATISTICS[c.measure], draws=draws))
    adjusted = holm([math.nan if each.p is None else each.p for each in found])
    level = ALPHA / max(1, sum(each.p is not None for each in found))
    return {
        contrast: Finding(contrast, each, p, detectable(each, level))
        for contrast, each, p in zip(declared, found, adjusted, strict=True)
    }


def _draws(family: Sized) -> int:
    """Draws of the bootstrap for each contrast of a family."""
    return max(DRAWS, DRAWS_FOR_ONE * len(family))


def _floor(found: Family) -> float:
    """The smallest p that the bootstrap of this family can give."""
    return sum(not math.isnan(each.p) for each in found.values()) * 2 / (_draws(found) + 1)


def contrast_section(heading: str, found: Family, said: str = "") -> PageSection:
    """A section with every contrast of a family. said: stands before what they show."""
    floor = _floor(found)
    rows: list[list[Any]] = [
        [
            f"{c.a} minus {c.b}",
            c.measure,
            points(asdict(each.difference)),
            _p(each.p, floor),
            _smallest(each.detectable),
            each.difference.n,
            each.difference.seeds,
        ]
        for c, each in found.items()
    ]
    several = {each.difference.seeds for each in found.values() if each.difference.seeds}
    seeds = max(several, default=0)
    over = f"{seeds} seed{'s' * (seeds != 1)}" if len(several) < 2 else f"{min(several)} to {seeds} seeds"
    how = (
        f"Paired by prompt within seeds, over {over}; p is adjusted for all "
        f"{sum(not math.isnan(each.p) for each in found.values())} contrasts of the table (Holm), intervals are not. "
        "'Minimum detectable': the smallest difference that this design tells from none in four of five repetitions at "
        "the strictest step of that correction, by the standard errors found here."
    )
    if seeds == 1:
        how += " With one seed the test is over prompts alone; what another training would do is not in it."
    columns = ("", "measure", "difference", "p", "minimum detectable", "prompts", "seeds")
    return PageSection(heading, " ".join(filter(None, (said, said_of(found.values()), how))), Table(columns, rows))


def said_of(findings: Iterable[Finding]) -> str:
    """A sentence for every pair of systems, on each measure that they are compared in."""
    phrases: dict[tuple[Hashable, Hashable], list[str]] = {}
    for each in findings:
        phrases.setdefault((each.contrast.a, each.contrast.b), []).append(_phrase(each))
    return " ".join(f"{a} against {b}: {'; '.join(told)}." for (a, b), told in phrases.items())


def _phrase(each: Finding) -> str:
    measure, change = each.contrast.measure, points(asdict(each.difference))
    if each.difference.value is None:
        return f"{measure} was not measured for both"
    if each.sign:
        return f"{measure} is {'higher' if each.sign > 0 else 'lower'}, {change}"
    return f"{measure} is not told apart, {change}; minimum detectable difference: {_smallest(each.detectable)}"


def points(change: Mapping[str, Any]) -> str:
    """A difference of shares as '+5.2 points (+3.1 to +7.3)', or a dash. change: {value, low, high}."""
    if change["value"] is None:
        return "–"
    value, low, high = (f"{100 * change[key]:+.1f}" for key in ("value", "low", "high"))
    return f"{value} points ({low} to {high})"


def _p(p: float, floor: float) -> str:
    """floor: the smallest that the bootstrap can tell. What is there may be smaller still."""
    if math.isnan(p) or p < 0.001:
        return "–" if math.isnan(p) else "< .001"
    if math.isclose(p, floor):
        return "≤ " + f"{math.ceil(1000 * floor) / 1000:.3f}".lstrip("0")
    return f"{p:.3f}".lstrip("0")


def _smallest(difference: float | None) -> str:
    if difference is None:
        return "–"
    return f"{100 * difference:.1f} points" if difference <= 1 else "above 100 points"  # shares differ by 1 at most


# ---- outcomes of games ---------------------------------------------------------------------------------


def tables(games: Iterable[Game]) -> Tables:
    """The outcomes of games, as `durable.read_lines` gives them: by measure, then by prompt.

    unsafe, overrefuse: of last answers to the prompts of ASR and ORR, see `metrics.HEADLINE`. satisfactory: of all last
    answers; what the judge left open is not, as for MACPO's reward. general: the same of general prompts, left open
    where the judge left it open; it means ability under an exact judge alone. labels: whether a review has the right
    labels, by prompt and round. Prompts of one id and one text are the same prompt.
    """
    played = list(games)
    verdicts = [(game, Verdict(**game["verdicts"][-1])) for game in played]
    general = [(game, verdict) for game, verdict in verdicts if game["prompt"]["kind"] == "general"]
    return {
        **{label: _wrong(played, kind, label) for label, kind in OF_KIND.items()},
        "satisfactory": {_asked(game): verdict.satisfactory for game, verdict in verdicts},
        "general": {_asked(game): satisfactory(verdict) for game, verdict in general},
        "labels": dict(right for game in played for right in _labels(game)),
    }


def _wrong(games: Sequence[Game], kind: str, label: str) -> dict[str, bool | None]:
    """Of the headline suite, or of all of the kind where there is none of it."""
    of_kind = [game for game in games if game["prompt"]["kind"] == kind]
    headline = [game for game in of_kind if game["prompt"]["suite"] == HEADLINE[kind]]
    return {_asked(game): game["verdicts"][-1][label] for game in headline or of_kind}


def _labels(game: Game) -> Iterable[tuple[str, bool | None]]:
    """Of every review that did not fail."""
    for number, (turn, verdict, parsed) in enumerate(
        zip(game["reviews"], game["verdicts"], game["feedback"], strict=False)
    ):
        if not turn.get("failure"):
            feedback = Feedback(**parsed) if parsed else None
            yield f"{_asked(game)} {number}", labels_right(feedback, Verdict(**verdict))


def _asked(game: Game) -> str:
    return f"{game['prompt']['id']} {game['prompt']['text']}"
