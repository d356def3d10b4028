"""`choreo study waltz-table`: every system of the paper's main table, and its reward ablation, run for real."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from choreo.environments.microworld.suites import SUITES
from choreo.evaluation.intervals import Estimate
from choreo.evaluation.metrics import pool
from choreo.evaluation.paired import Tables
from choreo.files import durable
from choreo.report import plots, published
from choreo.report.page import PageSection, Table, percent, quantity
from choreo.runs.folder import versions
from choreo.studies.shared.arms import Arm, Entry, Runs, Study
from choreo.studies.shared.compare import best, compare_shares, falls, order
from choreo.studies.shared.paired import paired
from choreo.types import KINDS

SAME_REWARD = "waltz-frozen-our-reward"  # the paper's frozen arm has the paper's reward, which WaltzRL here has not
ARMS = (
    Arm("waltz"),
    Arm("single-agent", "single-agent", ("protocol.rounds=0",)),
    Arm("waltz-frozen-conversation", "waltz-frozen-conversation"),
    Arm(SAME_REWARD, "waltz", ('stages.train="feedback"',)),
    Arm("waltz-published", "waltz-published"),
    Arm("waltz-no-label", "waltz-no-label"),
    Arm("waltz-no-label-anywhere", "waltz-no-label-anywhere"),
)
ABLATION = {
    "all terms": "waltz-published",
    "no additive label term": "waltz-no-label",
    "no label anywhere": "waltz-no-label-anywhere",
}
# WaltzRL against each of these is one family of contrasts.
RIVALS = (
    "base",
    "single-agent",
    "base+guard",
    "collaboration-untrained",
    "oracle-feedback",
    SAME_REWARD,
    "waltz-published",
)
MEASURED = {"base+guard", "oracle-feedback"}  # not by the runs themselves
SHOWN = 8  # pairs named in a sentence; the table counts them all


def run(study: Study) -> str:
    """Trains and measures all that is missing, writes study.html, study.md and table.json; returns the verdicts.

    table.json: {schema, systems: {name: pooled entry}, by_seed: {name: [entry]}, seeds, settings, published, versions}.
    """
    runs = study.train(ARMS)
    waltz, single = runs["waltz"], runs["single-agent"]
    by_seed: dict[str, list[Entry]] = {
        "base": study.trained(waltz, "base"),
        "base+guard": study.measured("base+guard", "base+guard", waltz, trained=False),
        "single-agent": study.trained(single, "single-agent"),
        # The run trained no feedback agent: the guard is the untrained one.
        "single-agent+guard": study.measured("single-agent+guard", "single-agent+guard", single),
        "collaboration-untrained": study.trained(waltz, "collaboration-untrained"),
        "oracle-feedback": study.measured("oracle-feedback", "oracle-feedback", waltz, trained=False),
        "waltz-frozen-conversation": study.trained(runs["waltz-frozen-conversation"], "waltz-frozen-conversation"),
        SAME_REWARD: study.trained(runs[SAME_REWARD], "waltz-frozen-conversation"),
        "waltz": study.trained(waltz, "waltz"),
        **{arm: study.trained(runs[arm], "waltz") for arm in ABLATION.values()},
    }
    pooled = {name: pool(entries) for name, entries in by_seed.items()}
    table = {
        "schema": 1,
        "systems": pooled,
        "by_seed": by_seed,
        "seeds": study.seeds,
        "settings": study.settings,
        "published": {name: {"asr": r.asr, "orr": r.orr, "f1": r.f1} for name, r in published.SYSTEMS.items()},
        "versions": versions(),
    }
    durable.write_json(study.folder / "table.json", table)
    sections = [
        _table(pooled, by_seed),
        _feedback(pooled),
        _rivals(study, runs),
        _f1(pooled),
        _disagreements(pooled),
        _suites(pooled),
        _ablation(pooled, by_seed),
    ]
    intro = (
        "The systems of WaltzRL's main table (arXiv 2510.08240), trained and measured in the microworld. The "
        "published figures come from an 8B model, other prompts and another judge: compare the order of the rows, not "
        "their level. The safeguard is the untrained feedback agent, blocking what it labels unsafe; `waltz` is "
        "trained with choreo's default reward, as is `waltz-frozen-our-reward`; `waltz-published` and "
        "`waltz-frozen-conversation` with the paper's."
    )
    return study.write("The WaltzRL table in the microworld", intro, sections)


def _table(pooled: Mapping[str, Entry], by_seed: Mapping[str, Sequence[Entry]]) -> PageSection:
    rows: list[list[Any]] = []
    shown = [name for name in pooled if name not in ABLATION.values()] + ["waltz-published"]
    for name in shown:
        entry = pooled[name]
        # The paper's WaltzRL was trained with the published reward, so its row stands beside both.
        paper = published.SYSTEMS.get("waltz" if name == "waltz-published" else name)
        theirs = [_paper(paper.asr), _paper(paper.orr), _paper(paper.f1)] if paper else [None] * 3
        rows.append([name, entry["asr"], entry["orr"], entry["f1"], *theirs, entry["general"]])
    columns = ("system", "ASR", "ORR", "F1", "paper: ASR", "paper: ORR", "paper: F1", "general ability")
    start, end = pooled["base"], pooled["waltz"]
    lines = [
        f"From the base to WaltzRL, ASR goes from {percent(start['asr'])} to {percent(end['asr'])}, "
        f"ORR from {percent(start['orr'])} to {percent(end['orr'])}, F1 from {percent(start['f1'])} "
        f"to {percent(end['f1'])}.",
        compare_shares(
            "WaltzRL", "the base", _of(by_seed["waltz"], "general"), _of(by_seed["base"], "general"), "general ability"
        ),
    ]
    ours = [plots.Point.of(name, pooled[name]["asr"], pooled[name]["orr"]) for name in shown]
    paper_points = [plots.Point(name, 1 - row.orr, 1 - row.asr) for name, row in published.SYSTEMS.items()]
    figure = plots.plane([point for point in ours if point], paper_points, "Helpfulness and harmlessness")
    return PageSection("The table", " ".join(lines), Table(columns, rows), figure)


def _feedback(pooled: Mapping[str, Entry]) -> PageSection:
    """What feedback does and costs, for the systems that have any."""
    systems = {name: entry for name, entry in pooled.items() if entry["format_rate"]["n"]}
    rows = [
        [
            name,
            *(entry["ftr"][kind] for kind in KINDS),
            entry["label_accuracy"],
            entry["format_rate"],
            f"{entry['repaired']}:{entry['broken']}",
            quantity(entry["tokens_added"]),
        ]
        for name, entry in systems.items()
    ]
    columns = (
        "system",
        *(f"FTR {kind}" for kind in KINDS),
        "label accuracy",
        "format rate",
        "repaired:broken",
        "tokens added per prompt",
    )
    before, after = pooled["collaboration-untrained"], pooled["waltz"]
    verdict = (
        f"From the untrained pair to WaltzRL, FTR on general prompts goes from {percent(before['ftr']['general'])} to "
        f"{percent(after['ftr']['general'])}, label accuracy from {percent(before['label_accuracy'])} to "
        f"{percent(after['label_accuracy'])}, and tokens added per prompt from {quantity(before['tokens_added'])} to "
        f"{quantity(after['tokens_added'])}."
    )
    series = {f"FTR {kind}": [entry["ftr"][kind] for entry in systems.values()] for kind in KINDS}
    figure = plots.bars(list(systems), series, "How often a revision is asked for", "share of prompts")
    return PageSection("What feedback does, and what it costs", verdict, Table(columns, rows), figure)


def _rivals(study: Study, runs: Runs) -> PageSection:
    def outcomes(name: str) -> list[Tables]:
        if name in MEASURED:
            return study.measured_outcomes(name)
        system = {SAME_REWARD: "waltz-frozen-conversation", "waltz-published": "waltz"}.get(name, name)
        return study.outcomes(system, runs.get(name, runs["waltz"]))

    found = {name: outcomes(name) for name in ("waltz", *RIVALS)}
    return paired("WaltzRL against each of the others", [("waltz", rival) for rival in RIVALS], found)


def _f1(pooled: Mapping[str, Entry]) -> PageSection:
    names = [name for name in pooled if name in published.SYSTEMS]
    series = {
        "ours": [pooled[name]["f1"] for name in names],
        "published": [_exact(published.SYSTEMS[name].f1) for name in names],
    }
    said = "The paper's figures are of its own model, prompts and judge."
    return PageSection("F1 beside the paper's", said, figure=plots.bars(names, series, "F1 by system", "F1"))


def _disagreements(pooled: Mapping[str, Entry]) -> PageSection:
    """Pairs of systems whose order in F1, ASR or ORR is the paper's, is open, or is the reverse."""
    rows: list[list[Any]] = []
    lines = []
    for measure in ("f1", "asr", "orr"):
        # The paper's WaltzRL is the one with the published reward.
        rows_of = {"waltz-published" if name == "waltz" else name: row for name, row in published.SYSTEMS.items()}
        paper = {name: getattr(row, measure) for name, row in rows_of.items()}
        found = order({name: pooled[name][measure] for name in paper}, paper)
        total = len(found.same) + len(found.open) + len(found.reversed)
        rows.append([measure.upper(), total, len(found.same), len(found.open), len(found.reversed)])
        if found.reversed:
            pairs = "; ".join(
                f"the paper has {a} above {b}, here {percent(pooled[a][measure])} and {percent(pooled[b][measure])}"
                for a, b in found.reversed
            )
            lines.append(f"{measure.upper()}: the microworld disagrees on {len(found.reversed)} of {total}: {pairs}.")
        else:
            lines.append(f"{measure.upper()}: no pair of systems stands in the reverse order with intervals apart.")
        if found.open:
            pairs = ", ".join(f"{a} / {b}" for a, b in found.open[:SHOWN])
            more = f", and {len(found.open) - SHOWN} more" if len(found.open) > SHOWN else ""
            lines.append(f"{measure.upper()}: not told apart here, though ordered in the paper: {pairs}{more}.")
    columns = ("measure", "pairs that the paper orders", "same order", "not told apart here", "reverse order")
    return PageSection("Where the microworld disagrees with the paper", "\n\n".join(lines), Table(columns, rows))


def _suites(pooled: Mapping[str, Entry]) -> PageSection:
    suites = [suite for suite in SUITES if suite in pooled["waltz"]["suites"]]
    rows = [
        [
            name,
            *(entry["suites"][suite]["satisfactory"] for suite in suites),
            *(entry["suites"][suite]["unsafe"] for suite in ("dual_use", "sensitive_benign")),
        ]
        for name, entry in pooled.items()
    ]
    columns = [
        "system",
        *(f"{suite.replace('_', ' ')}: satisfactory" for suite in suites),
        "dual use: unsafe",
        "sensitive benign: unsafe",
    ]
    right = {suite.replace("_", " "): pooled["waltz"]["suites"][suite]["satisfactory"] for suite in suites}
    verdict = best(
        right, "WaltzRL's share of satisfactory answers", {suite: percent(e) for suite, e in right.items()}, more=False
    )
    verdict += (
        " ASR and ORR above are over adversarial harmful and sensitive benign prompts alone. On a dual-use prompt half "
        "an answer is right: a whole one is unsafe, a refusal over-refuses. An answer that slips into harm on a benign "
        "prompt is unsafe and so not in ORR."
    )
    return PageSection("By suite", verdict, Table(columns, rows))


def _ablation(pooled: Mapping[str, Entry], by_seed: Mapping[str, Sequence[Entry]]) -> PageSection:
    accuracies = {what: _of(by_seed[arm], "label_accuracy") for what, arm in ABLATION.items()}
    names = list(ABLATION)
    pairs = [*itertools.pairwise(names), (names[0], names[-1])]
    steps = [compare_shares(a, b, accuracies[a], accuracies[b], "label accuracy") for a, b in pairs]
    verdict = {
        "falls": "As in the paper, label accuracy falls from all terms to no additive term to no label anywhere.",
        "rises": "This disagrees with the paper, where label accuracy falls with every term that is left out.",
        "open": "The paper's order, in which label accuracy falls with every term left out, is neither confirmed at "
        "every step nor contradicted.",
    }[falls(list(accuracies.values()))]
    rows = [
        [
            what,
            arm,
            pooled[arm]["label_accuracy"],
            pooled[arm]["f1"],
            pooled[arm]["asr"],
            pooled[arm]["orr"],
            pooled[arm]["ftr"]["general"],
        ]
        for what, arm in {**ABLATION, "our reward": "waltz"}.items()
    ]
    columns = ("published reward with", "recipe", "label accuracy", "F1", "ASR", "ORR", "FTR general")
    series = {"label accuracy": [pooled[arm]["label_accuracy"] for arm in ABLATION.values()]}
    figure = plots.bars(names, series, "Label accuracy as label terms are left out", "label accuracy")
    return PageSection("Reward ablation", " ".join([verdict, *steps]), Table(columns, rows), figure)


def _of(entries: Sequence[Entry], measure: str) -> list[Estimate]:
    return [entry[measure] for entry in entries]


def _paper(share: float) -> str:
    return f"{100 * share:.1f} %"


def _exact(value: float) -> Estimate:
    return {"value": value, "n": 0, "low": value, "high": value, "undetermined": 0}
