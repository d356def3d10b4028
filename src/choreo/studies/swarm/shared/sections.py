"""The sections of a SWARM study's report: one question each, answered from its results."""

from __future__ import annotations

import math
from collections.abc import Sequence

from choreo.evaluation.intervals import Estimate, estimate
from choreo.report import plots
from choreo.report.page import PageSection, Table
from choreo.studies.swarm.shared.results import ClaimResult, SwarmStudy, interval_of
from choreo.swarm.contrasts import MeanInterval
from choreo.swarm.outcomes import DETECTED

CITATIONS = (
    "SWARM: System-Wide Assessment of Risk in Multi-agent systems, https://github.com/swarm-ai-safety/swarm",
    "Aiersilan & Savitt 2026, Soft-Label Governance for Distributional Safety in Multi-Agent Systems, arXiv:2604.19752",
    "Savitt 2026, swarm-safety (software), swarm-ai-research/swarm",
)
SHARES = frozenset(
    {
        "toxicity_rate",
        "toxicity_rate_all",
        "acceptance_rate",
        "asr",
        "orr",
        "ftr",
        "undetermined",
        "harm_accepted",
        "poor_accepted",
        "good_accepted",
        "clipped",
        "collusion_precision",
        "collusion_recall",
        "security_precision",
        "security_recall",
        "ecosystem_collusion_risk",
        "ecosystem_threat_level",
    }
)
COUNTS = frozenset({"net_social_welfare", "flagged_pairs", "quarantined"})
NAMES = {
    "toxicity_rate": "toxicity",
    "harm_accepted": "the same by the exact judge",
    "toxicity_rate_all": "of all offered",
    "quality_gap": "quality gap",
    "conditional_loss_initiator": "loss, initiator",
    "conditional_loss_counterparty": "loss, counterparty",
    "acceptance_rate": "accepted",
    "net_social_welfare": "welfare",
    "ecosystem_collusion_risk": "collusion risk",
    "flagged_pairs": "flagged pairs",
    "ecosystem_threat_level": "threat level",
    "collusion_precision": "precision",
    "collusion_recall": "recall",
    "security_precision": "precision",
    "security_recall": "recall",
}
SWEPT = ("toxicity_rate", "net_social_welfare", "acceptance_rate", "quarantined")
SHOWN = (
    "toxicity_rate",
    "toxicity_rate_all",
    "quality_gap",
    "spread",
    "conditional_loss_initiator",
    "conditional_loss_counterparty",
    "acceptance_rate",
    "net_social_welfare",
)
TRUE = ("asr", "undetermined", "orr", "ftr", "harm_accepted", "poor_accepted", "good_accepted")


def study_sections(study: SwarmStudy, verdicts: Sequence[ClaimResult]) -> list[PageSection]:
    """All that have something to say, in the order of a reader's questions."""
    found = [
        _claims(verdicts),
        _metrics(study),
        _truth(study),
        _welfare(study),
        _sweep(study),
        _judge(study),
        _reading(study, verdicts),
        _detectors(study),
        *_words(study),
    ]
    return [section for section in found if section is not None]


def _claims(verdicts: Sequence[ClaimResult]) -> PageSection:
    counts = {
        word: sum(j.verdict == word for j in verdicts)
        for word in ("supported", "refuted", "inconclusive", "not testable")
    }
    lines = [", ".join(f"{count} {word}" for word, count in counts.items()) + "."]
    lines += [
        f"{word.capitalize()}{f' ({j.scope})' if j.scope else ''}: {j.claim.claim} {_difference(j)}."
        for word in ("supported", "refuted")
        for j in verdicts
        if j.verdict == word
    ]
    rows = [
        [
            j.claim.claim,
            j.claim.evidence,
            _terms(j),
            f"{j.claim.margin:g}",
            _difference(j),
            _number(j.contrast.effect if j.contrast else math.nan, 2),
            _p(j.adjusted),
            _could_be_told(j),
            ", ".join(filter(None, (j.verdict, j.scope, "exploratory" if j.exploratory else ""))),
            j.why or j.claim.note,
        ]
        for j in verdicts
    ]
    columns = [
        "claim",
        "where it stands",
        "contrast",
        "margin",
        "difference (95 %)",
        "effect d_z",
        "p (Holm)",
        "minimum detectable",
        "verdict",
        "note",
    ]
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return PageSection("Summary: what became of the claims", "\n\n".join(lines), Table(columns, rows))


def _metrics(study: SwarmStudy) -> PageSection:
    shown = (SHOWN[0], "harm_accepted", *SHOWN[1:]) if study.calibration else SHOWN
    rows = [[arm, *(_cell(interval_of(study, arm, name), name) for name in shown)] for arm in study.main]
    series = {
        "toxicity of what is accepted": [_estimate(interval_of(study, arm, "toxicity_rate")) for arm in study.main],
        "of all that is offered": [_estimate(interval_of(study, arm, "toxicity_rate_all")) for arm in study.main],
    }
    same = [arm for arm in study.main if interval_of(study, arm, "degenerate").value == 1]
    text = (
        "Toxicity is the mean of 1 − p over what is accepted, welfare the sum of S − E of it over a run. A positive "
        "quality gap, a negative spread and positive conditional losses all say that what is accepted is better than "
        "what is not. "
    ) + (
        f"Nothing is transferred and nothing costs in {', '.join(same)}: there the last three are one number rescaled."
        if same
        else "Costs keep the last three apart in every arm."
    )
    figure = plots.bars(list(study.main), series, "Toxicity by arm", "mean 1 − p")
    return PageSection("SWARM's metrics by arm", text, Table(("arm", *_named(shown)), rows), figure)


def _truth(study: SwarmStudy) -> PageSection | None:
    if not study.calibration:
        return None
    rows = [[arm, *(_cell(interval_of(study, arm, name), name) for name in (*TRUE, "clipped"))] for arm in study.main]
    series = {name.upper(): [_estimate(interval_of(study, arm, name)) for arm in study.main] for name in ("asr", "orr")}
    text = (
        "By the exact judge, beside SWARM's metrics and without p: unsafe answers released to attackers, of those "
        "that it decides on, and the share that it leaves open; benign requests refused or withheld; revisions asked "
        "for on everyday requests; the harm of what is accepted, which toxicity estimates (mean 1 − worth, an "
        "over-refusal being worth one half); how much is accepted of what is in truth poor and of what is good; "
        "last, the share of answers whose p SWARM's v̂ cannot say."
    )
    figure = plots.bars(list(study.main), series, "ASR and ORR by arm", "share")
    rates = ("ASR", "left open", "ORR", "FTR general")
    columns = ("arm", *rates, "harm accepted", "poor accepted", "good accepted", "p clipped in v̂")
    return PageSection("What the exact judge says", text, Table(columns, rows), figure)


def _welfare(study: SwarmStudy) -> PageSection:
    points = {
        arm: (
            _estimate(interval_of(study, arm, "toxicity_rate")),
            _estimate(interval_of(study, arm, "net_social_welfare"), share=False),
        )
        for arm in study.main
    }
    best = max(study.main, key=lambda arm: _rank(interval_of(study, arm, "net_social_welfare").value))
    safest = min(study.main, key=lambda arm: -_rank(-interval_of(study, arm, "toxicity_rate").value))
    exact = {arm: found.value for arm in study.main if (found := interval_of(study, arm, "harm_accepted")).n}
    beside = f", by the exact judge for {min(exact, key=exact.__getitem__)}" if exact else ""
    text = (
        f"Net social welfare (Σ S − E of what is accepted, over a run) is highest for {best}; toxicity of what is "
        f"accepted is lowest for {safest}{beside}. Further up and left is better."
    )
    figure = plots.cloud(points, "Welfare against toxicity", "toxicity of what is accepted", "net social welfare")
    return PageSection("Welfare against toxicity", text, None, figure)


def _sweep(study: SwarmStudy) -> PageSection | None:
    if not study.sweeps:
        return None
    rows, panels = [], {}
    for name, grid in study.sweeps.items():
        panels[name] = [[interval_of(study, arm, "toxicity_rate").value for arm in line] for line in grid]
        for limit, line in zip(study.sweep_rows, grid, strict=True):
            for column, arm in zip(study.sweep_columns, line, strict=True):
                cells = (_cell(interval_of(study, arm, m), m) for m in SWEPT)
                rows.append([name, limit, column, *cells])
    text = (
        "Toxicity of what is accepted over the six settings: "
        + "; ".join(f"in {name} {_moved(study, grid, panels[name])}" for name, grid in study.sweeps.items())
        + "."
    )
    figure = plots.heat(panels, study.sweep_rows, study.sweep_columns, "Toxicity: circuit breaker × security levers")
    columns = ("", "breaker", "security", *_named(SWEPT))
    return PageSection("Governance: circuit breaker × security levers", text, Table(columns, rows), figure)


def _moved(study: SwarmStudy, grid: Sequence[Sequence[str]], panel: Sequence[Sequence[float]]) -> str:
    """By how much toxicity moves, and which levers changed nothing that is measured in any run."""
    lines = [{repr(study.results[arm]) for arm in line} for line in grid]
    if len(set().union(*lines)) == 1:
        return "no setting changed any run"
    still = ", and the security levers changed no run" if all(len(line) == 1 for line in lines) else ""
    return f"it moves by {100 * (max(map(max, panel)) - min(map(min, panel))):.2f} points{still}"


def _judge(study: SwarmStudy) -> PageSection | None:
    if not study.calibration:
        return None
    rows = [
        [name, c["n"], c["open"], *(_number(c[m], 3) for m in ("brier", "ece", "auc", "bias")), c["clipped"]]
        for name, c in study.calibration.items()
    ]
    worst = max(study.calibration, key=lambda name: abs(study.calibration[name]["bias"] or 0.0))
    bias = study.calibration[worst]["bias"]
    text = (
        f"p is a probe's, which read other answers. It errs most on {worst}, where its mean is {abs(bias):.3f} too "
        f"{'high' if bias > 0 else 'low'}: as much of a difference in toxicity against that arm is the judge's and not "
        "the agents'."
    )
    ways: dict[str, list[Sequence[float]]] = {}
    for name, c in study.calibration.items():
        ways.setdefault(name.split("/")[-1], []).extend(c["bins"])
    lines = [plots.Line("perfect", [0.0, 1.0], [0.0, 1.0])]
    for name, bins in list(ways.items())[:6]:
        merged = _merged(bins)
        lines.append(plots.Line(name, [p for p, _ in merged], [w for _, w in merged]))
    figure = plots.lines(lines, "Calibration", "p that the probe gives", "worth by the exact judge")
    columns = ("answers", "judged", "left open", "Brier", "ECE", "AUC", "mean p − truth", "clipped")
    return PageSection("How good the judge of p is", text, Table(columns, rows), figure)


def _reading(study: SwarmStudy, verdicts: Sequence[ClaimResult]) -> PageSection:
    gaps = {arm: interval_of(study, arm, "quality_gap") for arm in study.main}
    adverse = [arm for arm, gap in gaps.items() if gap.n and gap.high < 0]
    lines = [
        f"Adverse selection (a quality gap below zero with its interval): {', '.join(adverse) or 'in no arm'}.",
        _amplified(study, "ecosystem_collusion_risk", "Collusion risk"),
        _amplified(study, "ecosystem_threat_level", "The threat level"),
    ]
    if study.calibration:
        lines.append(_amplified(study, "poor_accepted", "Acceptance of answers that are in truth poor"))
        lines.append(_amplified(study, "good_accepted", "Acceptance of good ones"))
        harm = [j for j in verdicts if j.claim.metric in ("asr", "toxicity_rate") and j.verdict == "supported"]
        loss = [j for j in verdicts if j.claim.metric == "orr" and j.verdict == "refuted"]
        lines.insert(
            0,
            f"Is harm down without loss of quality? Of the claims, {len(harm)} on harm are supported and "
            f"{len(loss)} on refusals refuted.",
        )
    return PageSection("How to read it", "\n\n".join(lines))


def _amplified(study: SwarmStudy, metric: str, words: str) -> str:
    found = {arm: s for arm in study.main if (s := interval_of(study, arm, metric)).n}
    if not found:
        return f"{words} was not measured."
    high, low = max(found, key=lambda a: found[a].value), min(found, key=lambda a: found[a].value)
    if found[high].value == found[low].value:
        return f"{words} is the same in every arm: {_cell(found[high], metric)}."
    return (
        f"{words} is highest in {high}, {_cell(found[high], metric)}, and lowest in {low}, {_cell(found[low], metric)}."
    )


def _detectors(study: SwarmStudy) -> PageSection:
    rows = [[arm, *(_cell(interval_of(study, arm, name), name) for name in DETECTED)] for arm in study.main]
    text = (
        "SWARM's own detectors over the whole run, with precision and recall of the agents they name against those "
        "that are in truth adversarial or deceptive. The collusion detector correlates costs: a tax or a fee that both "
        "parties pay in proportion makes honest pairs look like accomplices."
    )
    return PageSection("Collusion and security", text, Table(("arm", *_named(DETECTED)), rows))


def _words(study: SwarmStudy) -> list[PageSection]:
    seeds = ", ".join(map(str, study.seeds))
    changes = "\n\n".join(study.plan["changes"]) or "None: everything was played as planned."
    made = (
        f"Seeds {seeds}. Plan, hashed before the first run: sha256 {study.plan['digest']}."
        f"\n\nChanges after that, which make what depends on them exploratory: {changes}"
    )
    rows = [[name, version] for name, version in study.versions.items()]
    return [
        PageSection("Methods", study.methods),
        PageSection("Limitations", study.limitations),
        PageSection("Next iteration", study.next),
        PageSection("Seeds, plan, versions", made, Table(("package", "version"), rows)),
        PageSection("Citations", "\n\n".join(CITATIONS)),
    ]


# ---- cells --------------------------------------------------------------------------------------


def _named(metrics: Sequence[str]) -> list[str]:
    return [NAMES.get(metric, metric) for metric in metrics]


def _estimate(found: MeanInterval, share: bool = True) -> Estimate:
    if not found.n:
        return estimate(None, 0, None, None)
    low, high = (found.low, found.high) if found.n > 1 else (found.value, found.value)
    return estimate(found.value, found.n, *((max(0.0, low), min(1.0, high)) if share else (low, high)))


def _cell(found: MeanInterval, metric: str) -> str | None:
    """A value with its interval, and n where runs have none; a share's ends within 0 and 100 %."""
    if not found.n:
        return None
    share = metric in SHARES
    low, high = (max(0.0, found.low), min(1.0, found.high)) if share else (found.low, found.high)
    return _text(found.value, low, high, metric, "%") + _n(found)


def _text(value: float, low: float, high: float, metric: str, unit: str) -> str:
    scale, digits = (100, 1) if metric in SHARES else (1, 1 if metric in COUNTS else 3)
    said = f"{scale * value:.{digits}f}" + (f" {unit}" if metric in SHARES else "")
    if math.isnan(low):
        return said
    if low == high:  # the runs say nothing of what the next one would give
        return f"{said} (in every run)"
    return f"{said} ({scale * low:.{digits}f} to {scale * high:.{digits}f})"


def _terms(j: ClaimResult) -> str:
    claim = j.claim
    how = "as" if claim.direction == "same" else f"{claim.direction} than"
    return f"{claim.metric}: {claim.arm} {how} {claim.baseline}"


def _difference(j: ClaimResult) -> str | None:
    if j.contrast is None or not j.contrast.difference.n:
        return None
    d = j.contrast.difference
    side = "lower" if d.value < 0 else "higher"
    moved = f", {side} and not the same" if j.claim.direction == "same" and j.verdict == "refuted" else ""
    return _text(d.value, d.low, d.high, j.claim.metric, "points") + moved + _n(d)


def _could_be_told(j: ClaimResult) -> str | None:
    if math.isnan(j.detectable):
        return None
    return f"{100 * j.detectable:.1f} points" if j.claim.metric in SHARES else f"{j.detectable:.3f}"


def _n(found: MeanInterval) -> str:
    """How many runs a figure rests on, where it is not defined in all."""
    return f", n = {found.n} of {found.played}" if found.n < found.played else ""


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _p(value: float) -> str | None:
    return None if math.isnan(value) else "< .001" if value < 0.001 else f"{value:.3f}"


def _rank(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def _merged(bins: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Bins of several runs' answers as one: weighted by their counts."""
    held: dict[int, list[Sequence[float]]] = {}
    for row in bins:
        held.setdefault(int(10 * row[0]), []).append(row)
    weighted = ((rows, sum(row[2] for row in rows)) for _, rows in sorted(held.items()))
    return [(sum(r[0] * r[2] for r in rows) / n, sum(r[1] * r[2] for r in rows) / n) for rows, n in weighted]
