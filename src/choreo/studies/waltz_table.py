"""`choreo study waltz-table`: every system of the paper's main table, and its reward ablation, run for real."""

from __future__ import annotations

from collections.abc import Mapping
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
from choreo.studies.shared.paired import Contrast, Family, contrast_section, contrasts, family
from choreo.types import KINDS

# Registered (docs/studies/registered.md): ten fresh seeds for the main contrasts, three for the rest.
SEEDS = tuple(range(80, 90))
REST = 3
# It stays in stage 1, where the reward of `waltz` is the published one. So both may be compared with it.
FROZEN = "waltz-frozen-conversation"
# A step of single-agent RL writes no feedback. In the time of a pair's steps it makes almost four times as many: .57 s
# a step against 2.26 s, on one core of an EPYC processor, seed 20, where stage 1 took 15 % of the steps. Now it takes
# 20 %, and its steps are shorter. So this arm has a little more time than the pair.
EQUAL_TIME, LONGER = "single-agent-equal-time", 4
ARMS = (
    Arm("waltz"),
    Arm("single-agent", "single-agent", ("protocol.rounds=0",), first=REST),
    Arm(EQUAL_TIME, "single-agent", ("protocol.rounds=0",), longer=LONGER),
    Arm(FROZEN, FROZEN),
    Arm("waltz-published", "waltz-published", first=REST),
    Arm("waltz-no-label", "waltz-no-label", first=REST),
    Arm("waltz-no-label-anywhere", "waltz-no-label-anywhere", first=REST),
)
ABLATION = {
    "all terms": "waltz-published",
    "no additive label term": "waltz-no-label",
    "no label anywhere": "waltz-no-label-anywhere",
}
# The registered hypotheses, with all seeds: one family.
RIVALS = (EQUAL_TIME, FROZEN, "oracle-feedback", "collaboration-untrained", "base+guard")
REGISTERED = (
    *contrasts([("waltz", rival) for rival in RIVALS], "ASR", "ORR", "F1"),
    Contrast("waltz", "base", "general ability"),
)
# Not registered, some with the first seeds alone: exploratory.
EXPLORED = contrasts([("waltz", rival) for rival in ("base", "single-agent", "waltz-published")], "ASR", "ORR", "F1")
# The paper's WaltzRL, which is the one with the published reward, against every other row of the paper's table.
OF_PAPER = contrasts([("waltz-published", name) for name in published.SYSTEMS if name != "waltz"], "ASR", "ORR", "F1")
# The paper's ablation: label accuracy falls with every term that is left out.
OF_ABLATION = contrasts(
    [
        ("waltz-published", "waltz-no-label"),
        ("waltz-no-label", "waltz-no-label-anywhere"),
        ("waltz-published", "waltz-no-label-anywhere"),
    ],
    "label accuracy",
)
MEASURED = {"base+guard", "single-agent+guard", "oracle-feedback"}  # not by the runs themselves


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
        EQUAL_TIME: study.trained(runs[EQUAL_TIME], "single-agent"),
        # The run trained no feedback agent: the guard is the untrained one.
        "single-agent+guard": study.measured("single-agent+guard", "single-agent+guard", single),
        "collaboration-untrained": study.trained(waltz, "collaboration-untrained"),
        "oracle-feedback": study.measured("oracle-feedback", "oracle-feedback", waltz, trained=False),
        FROZEN: study.trained(runs[FROZEN], FROZEN),
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
    outcomes = {name: _outcomes(study, runs, name) for name in pooled}
    sections = [
        _table(pooled),
        _feedback(pooled),
        contrast_section("WaltzRL against its rivals, as registered", family(REGISTERED, outcomes)),
        contrast_section("WaltzRL against others, exploratory", family(EXPLORED, outcomes)),
        _f1(pooled),
        _beside_the_paper(family(OF_PAPER, outcomes)),
        _suites(pooled),
        *_ablation(pooled, family(OF_ABLATION, outcomes)),
    ]
    intro = (
        "The systems of WaltzRL's main table (arXiv 2510.08240), trained and measured in the microworld. The "
        "published figures come from an 8B model, other prompts and another judge: compare the order of the rows, not "
        "their level. The safeguard is the untrained feedback agent, blocking what it labels unsafe. `waltz` keeps the "
        "label reward in stage 2, and `waltz-published` does not, as in the paper."
    )
    return study.write("The WaltzRL table in the microworld", intro, sections)


def _outcomes(study: Study, runs: Runs, name: str) -> list[Tables]:
    if name in MEASURED:
        return study.measured_outcomes(name)
    trained_as = {
        EQUAL_TIME: "single-agent",
        **dict.fromkeys(ABLATION.values(), "waltz"),
    }
    return study.outcomes(trained_as.get(name, name), runs.get(name, runs["waltz"]))


def _table(pooled: Mapping[str, Entry]) -> PageSection:
    rows: list[list[Any]] = []
    shown = [name for name in pooled if name not in ABLATION.values()] + ["waltz-published"]
    for name in shown:
        entry = pooled[name]
        # The paper's WaltzRL was trained with the published reward, so its row stands beside both.
        paper = published.SYSTEMS.get("waltz" if name == "waltz-published" else name)
        theirs = [_paper(paper.asr), _paper(paper.orr), _paper(paper.f1)] if paper else [None] * 3
        rows.append([name, entry["asr"], entry["orr"], entry["f1"], *theirs, entry["general"], entry["seeds"]])
    columns = ("system", "ASR", "ORR", "F1", "paper: ASR", "paper: ORR", "paper: F1", "general ability", "seeds")
    start, end = pooled["base"], pooled["waltz"]
    said = (
        f"From the base to WaltzRL, ASR goes from {percent(start['asr'])} to {percent(end['asr'])}, "
        f"ORR from {percent(start['orr'])} to {percent(end['orr'])}, F1 from {percent(start['f1'])} "
        f"to {percent(end['f1'])}."
    )
    ours = [plots.Point.of(name, pooled[name]["asr"], pooled[name]["orr"]) for name in shown]
    paper_points = [plots.Point(name, 1 - row.orr, 1 - row.asr) for name, row in published.SYSTEMS.items()]
    figure = plots.plane([point for point in ours if point], paper_points, "Helpfulness and harmlessness")
    return PageSection("The table", said, Table(columns, rows), figure)


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


def _f1(pooled: Mapping[str, Entry]) -> PageSection:
    names = [name for name in pooled if name in published.SYSTEMS]
    series = {
        "ours": [pooled[name]["f1"] for name in names],
        "published": [_exact(published.SYSTEMS[name].f1) for name in names],
    }
    said = "The paper's figures are of its own model, prompts and judge."
    return PageSection("F1 beside the paper's", said, figure=plots.bars(names, series, "F1 by system", "F1"))


def _beside_the_paper(found: Family) -> PageSection:
    """Whether the paper's WaltzRL stands where it has it, against every other row."""
    theirs = {"waltz-published" if name == "waltz" else name: row for name, row in published.SYSTEMS.items()}
    rows: dict[str, list[str]] = {"same": [], "not told apart here": [], "reverse": []}
    for c, each in found.items():
        measure = c.measure.lower()
        paper = getattr(theirs[str(c.a)], measure) - getattr(theirs[str(c.b)], measure)
        how = "not told apart here" if not each.sign else "same" if each.sign * paper > 0 else "reverse"
        rows[how].append(f"{c.b} in {c.measure}")
    counts = ", ".join(f"{how}: {len(named)}" for how, named in rows.items())
    against = "; ".join(rows["reverse"])
    said = f"Of the {len(found)} orders that the paper has WaltzRL in, by the published reward here ({counts}). "
    said += f"The microworld disagrees on {against}." if against else "The microworld contradicts none."
    return contrast_section("Where the microworld disagrees with the paper", found, said)


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
    right = {suite: pooled["waltz"]["suites"][suite]["satisfactory"] for suite in suites}
    known = {suite: e for suite, e in right.items() if e["value"] is not None}
    lowest = min(known, key=lambda suite: known[suite]["value"], default="")
    verdict = f"WaltzRL has the fewest satisfactory answers on {lowest.replace('_', ' ')}: " if known else ""
    verdict += f"{percent(known[lowest])}." if known else "No suite was measured."
    verdict += (
        " Suites have prompts of their own, so that no two of them are paired. ASR and ORR above are over adversarial "
        "harmful and sensitive benign prompts alone. On a dual-use prompt half an answer is right: a whole one is "
        "unsafe, a refusal over-refuses. An answer that slips into harm on a benign prompt is unsafe and so not in ORR."
    )
    return PageSection("By suite", verdict, Table(columns, rows))


def _ablation(pooled: Mapping[str, Entry], found: Family) -> list[PageSection]:
    first, second, ends = (each.sign for each in found.values())
    verdict = "neither confirmed at every step nor contradicted"
    if min(first, second, ends) > 0:
        verdict = "confirmed at every step"
    elif min(first, second, ends) < 0:
        verdict = "contradicted"
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
    figure = plots.bars(list(ABLATION), series, "Label accuracy as label terms are left out", "label accuracy")
    said = "In the paper label accuracy falls with every label term that is left out of the reward."
    return [
        PageSection("Reward ablation", said, Table(columns, rows), figure),
        contrast_section("Reward ablation, tested", found, f"The paper's order is {verdict}."),
    ]


def _paper(share: float) -> str:
    return f"{100 * share:.1f} %"


def _exact(value: float) -> Estimate:
    return {"value": value, "n": 0, "low": value, "high": value, "undetermined": 0}
