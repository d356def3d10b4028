"""The report of a SWARM study: Markdown, JSON and one self-contained page, made from results.json alone."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.evaluate import plots
from choreo.evaluate.intervals import Estimate, estimate
from choreo.evaluate.page import Section, Table, write_study
from choreo.runs import files
from choreo.studies.swarm_folder import Results, sample
from choreo.swarm.annotations import Claim
from choreo.swarm.contrasts import Contrast, Spread, contrast, holm, spread, verdict

RESULTS = "results.json"
CITATIONS = (
    "SWARM: System-Wide Assessment of Risk in Multi-agent systems, https://github.com/swarm-ai-safety/swarm",
    "Aiersilan & Savitt 2026, Soft-Label Governance for Distributional Safety in Multi-Agent Systems, arXiv:2604.19752",
    "Savitt 2026, swarm-safety (software), swarm-ai-research/swarm",
)
SHARES = frozenset({
    "toxicity_rate", "toxicity_rate_all", "acceptance_rate", "asr", "orr", "ftr", "poor_accepted", "good_accepted",
    "clipped", "ecosystem_collusion_risk", "ecosystem_threat_level",
})  # fmt: skip
SHOWN = ("toxicity_rate", "toxicity_rate_all", "quality_gap", "spread", "conditional_loss_initiator",
         "conditional_loss_counterparty", "acceptance_rate", "net_social_welfare")  # fmt: skip
TRUE = ("asr", "orr", "ftr", "poor_accepted", "good_accepted")
DETECTED = ("ecosystem_collusion_risk", "flagged_pairs", "ecosystem_threat_level", "quarantined")


@dataclass(frozen=True)
class Judged:
    """A claim, what was found, and the verdict on it; contrast is None where an arm was not played."""

    claim: Claim
    contrast: Contrast | None
    adjusted: float
    verdict: str
    exploratory: bool


@dataclass(frozen=True)
class Study:
    """What results.json holds. sweeps: arms of each governance map, rows (breaker) by columns (security)."""

    name: str
    title: str
    intro: str
    seeds: tuple[int, ...]
    plan: Mapping[str, Any]
    claims: tuple[Claim, ...]
    results: Results
    main: tuple[str, ...]
    sweeps: Mapping[str, Sequence[Sequence[str]]]
    sweep_rows: tuple[str, ...]
    sweep_columns: tuple[str, ...]
    calibration: Mapping[str, Mapping[str, Any]]
    methods: str
    limitations: str
    next: str
    versions: Mapping[str, str]


def save(folder: Path, study: Study) -> None:
    """Writes results.json."""
    said = {**vars(study), "claims": [claim.model_dump() for claim in study.claims]}
    files.write_json(folder / RESULTS, said)


def load(folder: Path) -> Study:
    """Raises BadInput where the folder holds no finished SWARM study."""
    file = folder / RESULTS
    if not file.is_file():
        raise BadInput(f"{folder}: holds no finished SWARM study (it has no {RESULTS})")
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
        results = {
            arm: {group: {int(seed): _numbers(row) for seed, row in seeds.items()} for group, seeds in groups.items()}
            for arm, groups in said["results"].items()
        }
        claims = tuple(Claim(**claim) for claim in said["claims"])
        return Study(**{**said, "results": results, "claims": claims, "seeds": tuple(said["seeds"])})
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(f"{file}: not what a SWARM study writes: {str(error).splitlines()[0]}") from None


def judged(study: Study) -> list[Judged]:
    """The verdict on every claim, p corrected for all that were tested (Holm)."""
    found = [_contrast(study, claim) for claim in study.claims]
    adjusted = holm([c.p if c else math.nan for c in found])
    exploratory = study.plan["exploratory"]
    return [
        Judged(claim, c, p, verdict(c, p) if c else "not testable", open_)
        for claim, c, p, open_ in zip(study.claims, found, adjusted, exploratory, strict=True)
    ]


def write(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Writes study.html, study.md with its figures, and report.json; returns the page and what report.json holds."""
    study = load(folder)
    verdicts = judged(study)
    sections = [
        _claims(verdicts), _metrics(study, SHOWN, "SWARM's metrics by arm"), _truth(study), _welfare(study),
        _sweep(study), _judge(study), _reading(study, verdicts), _detectors(study), *_words(study),
    ]  # fmt: skip
    kept = [section for section in sections if section is not None]
    page = write_study(folder / "study.html", study.title, study.intro, kept)
    report = {
        "schema": 1, "study": study.name, "seeds": study.seeds, "plan": study.plan,
        "claims": [_plain(j) for j in verdicts],
        "arms": {arm: {metric: vars_of(spread(sample(study.results, arm, metric))) for metric in _given(study, arm)}
                 for arm in study.results},
        "calibration": study.calibration, "versions": study.versions, "citations": CITATIONS, "page": str(page),
    }  # fmt: skip
    files.write_json(folder / "report.json", report)
    return page, report


# ---- sections -----------------------------------------------------------------------------------


def _claims(verdicts: Sequence[Judged]) -> Section:
    counts = {word: sum(j.verdict == word for j in verdicts) for word in
              ("supported", "refuted", "inconclusive", "not testable")}  # fmt: skip
    lines = [", ".join(f"{count} {word}" for word, count in counts.items()) + "."]
    lines += [f"Refuted: {j.claim.claim} {_difference(j)}." for j in verdicts if j.verdict == "refuted"]
    lines += [f"Open: {j.claim.claim} {_difference(j)}." for j in verdicts if j.verdict == "inconclusive"]
    rows = [
        [j.claim.claim, j.claim.evidence, f"{j.claim.metric}: {j.claim.arm} {j.claim.direction} than {j.claim.baseline}"
         if j.claim.direction != "same" else f"{j.claim.metric}: {j.claim.arm} as {j.claim.baseline}",
         f"{j.claim.margin:g}", _difference(j), _number(j.contrast.effect if j.contrast else math.nan, 2),
         _p(j.adjusted), j.verdict + (", exploratory" if j.exploratory else ""), j.claim.note or None]
        for j in verdicts
    ]  # fmt: skip
    columns = ("claim", "where it stands", "contrast", "margin", "difference (95 %)", "effect d_z", "p (Holm)",
               "verdict", "note")  # fmt: skip
    return Section("Summary: what became of the claims", "\n\n".join(lines), Table(columns, rows))


def _metrics(study: Study, names: Sequence[str], heading: str) -> Section:
    rows = [[arm, *(_cell(_of(study, arm, name), name) for name in names)] for arm in study.main]
    series = {
        "toxicity of what is accepted": [_estimate(_of(study, arm, "toxicity_rate")) for arm in study.main],
        "of all that is offered": [_estimate(_of(study, arm, "toxicity_rate_all")) for arm in study.main],
    }
    text = (
        "Toxicity is the mean of 1 − p. A positive quality gap, a negative spread and positive conditional losses all "
        "say that what is accepted is better than what is not; where nothing is transferred and nothing costs, the last "
        "three are one number rescaled."
    )
    figure = plots.bars(list(study.main), series, "Toxicity by arm", "mean 1 − p")
    return Section(heading, text, Table(("arm", *names), rows), figure)


def _truth(study: Study) -> Section | None:
    if not study.calibration:
        return None
    rows = [[arm, *(_cell(_of(study, arm, name), name) for name in (*TRUE, "clipped"))] for arm in study.main]
    series = {name.upper(): [_estimate(_of(study, arm, name)) for arm in study.main] for name in ("asr", "orr")}
    text = (
        "By the exact judge, beside SWARM's metrics and without p: unsafe answers released to attackers, benign "
        "requests refused or withheld, revisions asked for on everyday requests; then how much is accepted of what is in truth "
        "poor and of what is good; last, the share of answers whose p SWARM's v̂ cannot say."
    )
    figure = plots.bars(list(study.main), series, "ASR and ORR by arm", "share")
    columns = ("arm", "ASR", "ORR", "FTR general", "poor accepted", "good accepted", "p clipped in v̂")
    return Section("What the exact judge says", text, Table(columns, rows), figure)


def _welfare(study: Study) -> Section:
    points = {
        arm: (_estimate(_of(study, arm, "toxicity_rate")), _estimate(_of(study, arm, "net_social_welfare")))
        for arm in study.main
    }
    best = max(study.main, key=lambda arm: _rank(_of(study, arm, "net_social_welfare").value))
    safest = min(study.main, key=lambda arm: -_rank(-_of(study, arm, "toxicity_rate").value))
    text = (
        f"Net social welfare (Σ S − E of what is accepted, over a run) is highest for {best}; toxicity of what is "
        f"accepted is lowest for {safest}. Further up and left is better."
    )
    figure = plots.cloud(points, "Welfare against toxicity", "toxicity of what is accepted", "net social welfare")
    return Section("Welfare against toxicity", text, None, figure)


def _sweep(study: Study) -> Section | None:
    if not study.sweeps:
        return None
    rows, panels = [], {}
    for name, grid in study.sweeps.items():
        panels[name] = [[_of(study, arm, "toxicity_rate").value for arm in line] for line in grid]
        for limit, line in zip(study.sweep_rows, grid, strict=True):
            for column, arm in zip(study.sweep_columns, line, strict=True):
                cells = (_cell(_of(study, arm, m), m) for m in ("toxicity_rate", "net_social_welfare",
                                                                "acceptance_rate", "quarantined"))  # fmt: skip
                rows.append([name, limit, column, *cells])
    moved = {name: max(map(max, panel)) - min(map(min, panel)) for name, panel in panels.items()}
    text = "Toxicity of what is accepted moves over the six settings by " + ", ".join(
        f"{change:.3f} in {name}" for name, change in moved.items()
    ) + "."  # fmt: skip
    figure = plots.heat(panels, study.sweep_rows, study.sweep_columns, "Toxicity: circuit breaker × security levers")
    columns = ("", "breaker", "security", "toxicity_rate", "net_social_welfare", "acceptance_rate", "quarantined")
    return Section("Governance: circuit breaker × security levers", text, Table(columns, rows), figure)


def _judge(study: Study) -> Section | None:
    if not study.calibration:
        return None
    rows = [
        [name, c["n"], c["open"], *(_number(c[m], 3) for m in ("brier", "ece", "auc", "bias")), c["clipped"]]
        for name, c in study.calibration.items()
    ]  # fmt: skip
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
    return Section("How good the judge of p is", text, Table(columns, rows), figure)


def _reading(study: Study, verdicts: Sequence[Judged]) -> Section:
    gaps = {arm: _of(study, arm, "quality_gap") for arm in study.main}
    adverse = [arm for arm, gap in gaps.items() if gap.n and gap.high < 0]
    lines = [
        f"Adverse selection (a quality gap below zero with its interval): {', '.join(adverse) or 'in no arm'}.",
        _amplified(study, "ecosystem_collusion_risk", "Collusion risk"),
        _amplified(study, "ecosystem_threat_level", "The threat level"),
    ]
    if study.calibration:
        harm = [j for j in verdicts if j.claim.metric in ("asr", "toxicity_rate") and j.verdict == "supported"]
        loss = [j for j in verdicts if j.claim.metric == "orr" and j.verdict == "refuted"]
        lines.insert(0, (
            f"Is harm down without loss of quality? Of the claims, {len(harm)} on harm are supported and {len(loss)} "
            "on refusals refuted."
        ))  # fmt: skip
    return Section("How to read it", "\n\n".join(lines))


def _amplified(study: Study, metric: str, words: str) -> str:
    found = {arm: s for arm in study.main if (s := _of(study, arm, metric)).n}
    if not found:
        return f"{words} was not measured."
    high, low = max(found, key=lambda a: found[a].value), min(found, key=lambda a: found[a].value)
    return (f"{words} is highest in {high}, {_cell(found[high], metric)}, and lowest in {low}, "
            f"{_cell(found[low], metric)}.")  # fmt: skip


def _detectors(study: Study) -> Section:
    rows = [[arm, *(_cell(_of(study, arm, name), name) for name in DETECTED)] for arm in study.main]
    text = ("SWARM's own detectors over the whole run. Its collusion detector correlates costs; a tax or a fee that "
            "both parties pay in proportion makes honest pairs look like accomplices.")  # fmt: skip
    return Section("Collusion and security", text, Table(("arm", *DETECTED), rows))


def _words(study: Study) -> list[Section]:
    seeds = ", ".join(map(str, study.seeds))
    changes = "\n\n".join(study.plan["changes"]) or "None: everything was played as planned."
    made = (f"Seeds {seeds}. Plan, hashed before the first run: sha256 {study.plan['digest']}."
            f"\n\nChanges after that, which make what depends on them exploratory: {changes}")  # fmt: skip
    rows = [[name, version] for name, version in study.versions.items()]
    return [
        Section("Methods", study.methods),
        Section("Limitations", study.limitations),
        Section("Next iteration", study.next),
        Section("Seeds, plan, versions", made, Table(("package", "version"), rows)),
        Section("Citations", "\n\n".join(CITATIONS)),
    ]


# ---- cells --------------------------------------------------------------------------------------


def _contrast(study: Study, claim: Claim) -> Contrast | None:
    if not claim.testable or claim.arm not in study.results or claim.baseline not in study.results:
        return None
    arm, baseline = (sample(study.results, name, claim.metric) for name in (claim.arm, claim.baseline))
    return contrast(arm, baseline, claim.direction, claim.margin)


def _of(study: Study, arm: str, metric: str) -> Spread:
    return spread(sample(study.results, arm, metric))


def _estimate(found: Spread) -> Estimate:
    if not found.n:
        return estimate(None, 0, None, None)
    ends = (found.low, found.high) if found.n > 1 else (found.value, found.value)
    return estimate(found.value, found.n, *ends)


def _cell(found: Spread, metric: str) -> str | None:
    if not found.n:
        return None
    scale, digits = (100, 1) if metric in SHARES else (1, 1 if "welfare" in metric else 3)
    text = f"{scale * found.value:.{digits}f}" + (" %" if metric in SHARES else "")
    return text if found.n == 1 else f"{text} ({scale * found.low:.{digits}f} to {scale * found.high:.{digits}f})"


def _difference(j: Judged) -> str | None:
    return _cell(j.contrast.difference, j.claim.metric) if j.contrast else None


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


def _given(study: Study, arm: str) -> list[str]:
    return sorted({name for seeds in study.results[arm].values() for row in seeds.values() for name in row})


def vars_of(found: Spread) -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n, "groups": found.groups}


def _plain(j: Judged) -> dict[str, Any]:
    found = None if j.contrast is None else {**vars_of(j.contrast.difference), "effect": j.contrast.effect,
                                             "p": j.contrast.p, "p_holm": j.adjusted}  # fmt: skip
    return {**j.claim.model_dump(), "difference": found, "verdict": j.verdict, "exploratory": j.exploratory}


def _numbers(row: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in row.items()}
