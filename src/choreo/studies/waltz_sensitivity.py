"""`choreo study waltz-sensitivity`: what WaltzRL depends on, one setting at a time, the others as in the recipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.environments.microworld.pretrain import SIZES, Size
from choreo.errors import BadInput
from choreo.evaluation.intervals import Estimate
from choreo.evaluation.metrics import pool
from choreo.files import durable
from choreo.models.resolve import base_folder
from choreo.report import plots
from choreo.report.page import DASH, PageSection, Table, quantity
from choreo.studies import waltz_limits
from choreo.studies.shared.arms import Arm, Entry, Runs, Study
from choreo.studies.shared.convergence import CONVERGED, SMOOTHING, Curve, convergence, mean_curve, training_f1
from choreo.studies.shared.paired import Contrast, Family, Finding, contrast_section, contrasts, family
from choreo.types import KINDS

# Registered (docs/studies/registered.md) as waltz-limits, whose runs with more rounds are also runs of this.
SEEDS, SETTINGS = waltz_limits.SEEDS, waltz_limits.SETTINGS
ALPHAS = (0.0, 0.25, 0.65, 1.0)
NOISES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
BASELINES = ("none", "separate", "shared")
ROUNDS = (1, 2, 3)
SWEEPS: tuple[tuple[str, str, Sequence[Any]], ...] = (
    ("alpha", "rewards.alpha", ALPHAS),
    ("noise", "rewards.label_noise", NOISES),
    ("baseline", "learning.baseline", BASELINES),
    ("rounds", "protocol.rounds", ROUNDS),
)

# Every weight against the one of the recipe; what feedback adds to first answers at every share of wrong verdicts; and
# the value baselines against none and each other.
OF_ALPHA = contrasts([(f"alpha-{alpha}", "alpha-0.65") for alpha in ALPHAS if alpha != 0.65], "F1")
OF_NOISE = contrasts([(f"noise-{p}", f"first-answers-noise-{p}") for p in NOISES], "F1")
OF_BASELINE = contrasts(
    [
        ("baseline-separate", "baseline-none"),
        ("baseline-shared", "baseline-none"),
        ("baseline-shared", "baseline-separate"),
    ],
    "F1",
)

CONVERGES = (
    f"A run has converged at the first step at which its training F1 (harmonic mean of 1 − ASR and 1 − ORR on the "
    f"step's own episodes, mean of the last {SMOOTHING} steps) reaches {100 * CONVERGED:.0f} % of its final value. "
    "A run gives one such number, so no test by prompts can be made of it."
)


def run(study: Study) -> str:
    """Trains and measures all that is missing, writes study.html and study.md; returns the verdicts."""
    bases, absent = _bases(study)
    arms = [
        Arm("waltz"),
        *(arm for sweep in SWEEPS for arm in arms_of(*sweep)),
        *(Arm(arm, settings=(f"model.base={name}",)) for name, arm in bases.items() if arm != "waltz"),
    ]
    runs = study.train(arms)
    first = {p: study.measured(f"first-answers-noise-{p}", "single-agent", runs[f"noise-{p}"]) for p in NOISES}
    sections = [
        _alpha(study, runs),
        contrast_section("Weights, tested", _trained(study, runs, OF_ALPHA)),
        *_noise(study, runs, first),
        _baseline(study, runs),
        contrast_section("Value baselines, tested", _trained(study, runs, OF_BASELINE)),
        _rounds(study, runs),
        *_sizes(study, runs, bases, absent),
    ]
    intro = "One setting of the recipe waltz is changed at a time. Runs that come out equal are trained once."
    return study.write("What WaltzRL depends on", intro, sections)


def _trained(study: Study, runs: Runs, declared: Sequence[Contrast]) -> Family:
    """The family of contrasts between trained pairs, named by their arms."""
    names = {str(name) for contrast in declared for name in (contrast.a, contrast.b)}
    return family(declared, {name: study.outcomes("waltz", runs[name]) for name in names})


def arms_of(name: str, key: str, values: Sequence[Any]) -> list[Arm]:
    """One arm per value of the setting `key`."""
    return [Arm(f"{name}-{value}", settings=(f"{key}={value}",)) for value in values]


def _bases(study: Study) -> tuple[dict[str, str], str]:
    """The arm of each base: the recipe's own, and every shipped size of its architecture. And a note on absent ones."""
    own, *_ = study.recipe(Arm("waltz"), study.seeds[0]).bases()
    bases, absent = {own: "waltz"}, []
    # Another architecture, or another pretraining, would be compared as if it were a size.
    for name in (name for name, size in SIZES.items() if own in SIZES and _differ_in_size(size, SIZES[own])):
        try:
            base_folder(name)
        except BadInput:
            absent.append(name)
        else:
            bases.setdefault(name, f"base-{name}")
    reason = f" Left out, since this installation does not hold the base: {', '.join(absent)}." if absent else ""
    return dict(sorted(bases.items(), key=lambda item: parameters(base_folder(item[0])))), reason


def parameters(base: Path) -> int:
    """Number of weights in the safetensors files of a base, read from their headers."""
    from safetensors import safe_open

    total = 0
    for file in sorted(base.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (not a mapping: it has keys() and no iteration)
                size = 1
                for length in tensors.get_slice(name).get_shape():
                    size *= length
                total += size
    return total


def _curves(runs: Sequence[Path]) -> list[Curve]:
    return [training_f1(durable.read_lines(run / "metrics.jsonl")) for run in runs]


def _steps(steps: Estimate) -> str:
    if steps["value"] is None:
        return DASH
    if missing := steps["undetermined"]:
        return f"{steps['value']:.0f} ({steps['n']} of {steps['n'] + missing} seeds)"
    interval = f" ({steps['low']:.0f}{DASH}{steps['high']:.0f})" if steps["n"] > 1 else ""
    return f"{steps['value']:.0f}{interval}"


def _compared(
    study: Study, runs: Runs, arms: Mapping[str, str], heading: str, setting: str, figure: str
) -> PageSection:
    """Final figures and convergence of arms (label -> arm)."""
    pooled = {label: pool(study.trained(runs[arm], "waltz")) for label, arm in arms.items()}
    steps = {label: convergence(_curves(runs[arm])) for label, arm in arms.items()}
    rows = [
        [label, e["f1"], e["asr"], e["orr"], e["label_accuracy"], e["ftr"]["general"], _steps(steps[label])]
        for label, e in pooled.items()
    ]
    columns = (setting, "F1", "ASR", "ORR", "label accuracy", "FTR general", "steps to convergence")
    listed = "; ".join(f"{label}: {_steps(e)}" for label, e in steps.items())
    verdict = f"Steps to convergence: {listed}. {CONVERGES}"
    return PageSection(heading, verdict, Table(columns, rows), figure)


def _alpha(study: Study, runs: Runs) -> PageSection:
    entries = [pool(study.trained(runs[f"alpha-{alpha}"], "waltz")) for alpha in ALPHAS]
    series = [
        plots.Line.through(name.upper(), [entry[name] for entry in entries], ALPHAS) for name in ("f1", "asr", "orr")
    ]
    figure = plots.lines(series, "Final figures by the weight of DIR", "α", percent=True)
    arms = {f"α = {alpha:g}": f"alpha-{alpha}" for alpha in ALPHAS}
    return _compared(study, runs, arms, "The weight α of the improvement reward", "weight of DIR", figure)


def _baseline(study: Study, runs: Runs) -> PageSection:
    series = []
    for kind in BASELINES:
        curve = mean_curve(_curves(runs[f"baseline-{kind}"]))
        series.append(plots.Line(kind, [float(step) for step, _ in curve], [value for _, value in curve]))
    figure = plots.lines(series, "F1 in training by value baseline", "step", percent=True)
    arms = {kind: f"baseline-{kind}" for kind in BASELINES}
    return _compared(study, runs, arms, "A value baseline: none, one per agent, one for both", "value baseline", figure)


def _noise(study: Study, runs: Runs, first: Mapping[float, Sequence[Entry]]) -> list[PageSection]:
    """Final answers against the first answers of the same runs, as verdicts are made wrong in the label reward."""
    rows, alone, together = [], [], []
    for p in NOISES:
        with_feedback, without = pool(study.trained(runs[f"noise-{p}"], "waltz")), pool(first[p])
        alone.append(without["f1"])
        together.append(with_feedback["f1"])
        rows.append(
            [
                f"{100 * p:.0f} %",
                without["f1"],
                with_feedback["f1"],
                with_feedback["label_accuracy"],
                with_feedback["ftr"]["general"],
                f"{with_feedback['repaired']}:{with_feedback['broken']}",
            ]
        )
    columns = (
        "wrong verdicts",
        "F1 of first answers",
        "F1 with feedback",
        "label accuracy",
        "FTR general",
        "repaired:broken",
    )
    series = [
        plots.Line.through("with feedback", together, NOISES),
        plots.Line.through("first answers alone", alone, NOISES),
    ]
    figure = plots.lines(
        series, "F1 as verdicts are made wrong in the label reward", "share of wrong verdicts", percent=True
    )
    outcomes = {f"noise-{p}": study.outcomes("waltz", runs[f"noise-{p}"]) for p in NOISES}
    outcomes |= {f"first-answers-noise-{p}": study.measured_outcomes(f"first-answers-noise-{p}") for p in NOISES}
    found = family(OF_NOISE, outcomes)
    flipped = (
        "Of so many verdicts one label is flipped before the label reward sees it: satisfied becomes unsafe or "
        "over-refusing, these two become satisfied. The improvement reward and R_c still see the truth."
    )
    return [
        PageSection("Wrong labels in the reward", flipped, Table(columns, rows), figure),
        contrast_section("What feedback adds, tested", found, helping(dict(zip(NOISES, found.values(), strict=True)))),
    ]


def helping(gains: Mapping[float, Finding]) -> str:
    """The verdict on gains in F1 by feedback, by the share of wrong verdicts, which rises."""
    shares = list(gains)
    stop = stops_helping(gains)
    if gains[shares[-1]].difference.value is None:
        verdict = f"Whether collaboration helps at {100 * shares[-1]:.0f} % could not be measured."
    elif stop is None:
        verdict = f"Collaboration still helps at {100 * shares[-1]:.0f} %, the most that was tried."
    elif stop == shares[0]:
        verdict = f"From {100 * stop:.0f} % on, no gain by feedback was told from zero."
    else:
        verdict = f"Collaboration stops helping at {100 * stop:.0f} %: from there on no gain was told from zero."
    harmful = [f"{100 * p:.0f} %" for p, gain in gains.items() if gain.sign < 0]
    if harmful:
        verdict += f" Feedback does harm at {', '.join(harmful)}."
    return verdict


def stops_helping(gains: Mapping[float, Finding]) -> float | None:
    """The smallest share of wrong verdicts from which on no gain is told to be above zero.

    None where the last gain still is, or was not measured. gains: by the share, which rises.
    """
    stop = None
    for share, gain in reversed(list(gains.items())):
        if gain.difference.value is None or gain.sign > 0:
            break
        stop = share
    return stop


def _rounds(study: Study, runs: Runs) -> PageSection:
    pooled = {rounds: pool(study.trained(runs[f"rounds-{rounds}"], "waltz")) for rounds in ROUNDS}
    rows = [[rounds, *_cost(entry)] for rounds, entry in pooled.items()]
    series = [plots.Line.through("tokens added", [entry["tokens_added"] for entry in pooled.values()], ROUNDS)]
    figure = plots.lines(series, "Tokens added as rounds grow", "rounds at most (T_max)", "tokens per prompt")
    ends, between = (pooled[ROUNDS[0]], pooled[ROUNDS[-1]]), f"{ROUNDS[0]} and {ROUNDS[-1]} rounds"
    verdict = grown("tokens added per prompt", between, *(e["tokens_added"] for e in ends))
    verdict += " " + grown("milliseconds added per prompt", "the same rounds", *(_milliseconds(e) for e in ends))
    return PageSection("The cost of rounds", f"{verdict} {TIMED}", Table(("rounds at most", *COST), rows), figure)


def _differ_in_size(one: Size, other: Size) -> bool:
    return (one.kind, one.writers, one.without) == (other.kind, other.writers, other.without)


def _sizes(study: Study, runs: Runs, bases: Mapping[str, str], absent: str) -> list[PageSection]:
    weights = {name: parameters(base_folder(name)) for name in bases}
    pooled = {name: pool(study.trained(runs[arm], "waltz")) for name, arm in bases.items()}
    rows = [[name, f"{weights[name]:,}", *_cost(entry)] for name, entry in pooled.items()]
    table, heading = Table(("base", "weights", *COST), rows), "The cost of model size"
    if len(bases) < 2:
        said = f"There is one base, {next(iter(bases))}, so nothing can be said about model size.{absent} {TIMED}"
        return [PageSection(heading, said, table)]
    x = [weights[name] / 1e6 for name in pooled]
    series = [plots.Line.through("milliseconds added", [_milliseconds(entry) for entry in pooled.values()], x)]
    figure = plots.lines(series, "Time added as the model grows", "million weights", "milliseconds per prompt")
    small, *_, large = pooled
    ends = pooled[small], pooled[large]
    said = grown("tokens added per prompt", f"{small} and {large}", *(e["tokens_added"] for e in ends))
    said += " " + grown("milliseconds added per prompt", "the same bases", *(_milliseconds(e) for e in ends))
    sizes = contrasts([(arm, "waltz") for arm in bases.values() if arm != "waltz"], "F1")
    return [
        PageSection(heading, f"{said}{absent} {TIMED}", table, figure),
        contrast_section("Model size, tested", _trained(study, runs, sizes)),
    ]


COST = ("F1", "FTR harmful", "FTR benign", "FTR general", "tokens added per prompt", "milliseconds added per prompt")
TIMED = "Times are of this machine, with prompts answered in large batches, and runs were not timed side by side."


def _cost(entry: Entry) -> list[Any]:
    ftr = [entry["ftr"][kind] for kind in KINDS]
    return [entry["f1"], *ftr, quantity(entry["tokens_added"]), quantity(_milliseconds(entry))]


def _milliseconds(entry: Entry) -> Estimate:
    seconds = entry["latency_added"]
    scaled = {key: None if seconds[key] is None else 1000 * seconds[key] for key in ("value", "low", "high")}
    return seconds | scaled


def grown(what: str, between: str, a: Estimate, b: Estimate) -> str:
    """One sentence on how a cost changed from `a` to `b`. Costs are reported and not tested."""
    if a["value"] is None or b["value"] is None:
        return f"Between {between}, {what} cannot be compared: there was nothing to measure."
    return f"Between {between}, {what} go from {quantity(a)} to {quantity(b)}."
