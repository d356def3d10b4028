"""`choreo study macpo-table`: MACPO, its baselines and its ablations, with the refusals beside every reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from choreo.evaluation.intervals import over_seeds
from choreo.evaluation.metrics import pool
from choreo.methods.macpo.measure import duel
from choreo.report import plots
from choreo.report.page import PageSection, Table, percent, quantity
from choreo.studies.shared.arms import Arm, Runs, Study
from choreo.studies.shared.paired import contrast_section, contrasts
from choreo.studies.shared.rounds import (
    STUDENT,
    WEAK,
    BySeed,
    Measured,
    best_teacher,
    by_round,
    final,
    gap_recovered,
    of_seeds,
    outcomes_of,
    paired_rounds,
    rounds_of,
    whose,
)

ALONE = ("ceiling=false",)  # the study has a ceiling of its own
BASELINES = ("naive-sft", "naive-sft-longer", "confident-loss", "spin", "spin-as-macpo", "self-rewarding")
ABLATIONS = {
    "macpo-no-mp": "mutual positives",
    "macpo-no-hn": "hard negatives",
    "macpo-no-iw": "teachers that learn",
}
WAYS = ("macpo", "macpo-filter-alone", "macpo-published")
NAMES = (*WAYS, *BASELINES, *ABLATIONS, "ceiling", "ceiling-longer")
# What a fair comparison needs beside the recipes: as many updates as MACPO's student has by default, on weak answers
# and on human ones (5 epochs and three rounds of 3); and SPIN at MACPO's default balance of losses. Being what these
# arms are, their settings hold against --set.
VARIED = {
    "naive-sft-longer": (
        "naive-sft",
        "rounds.positives=weak",
        "rounds.refusals=any",
        "rounds.negatives=none",
        "rounds.teachers_learn=false",
        "rounds.count=3",
    ),
    "spin-as-macpo": ("spin", "rounds.sft=5.0", "rounds.lr=5e-3", "rounds.epochs=3"),
    "ceiling-longer": ("ceiling", "tuning.epochs=14"),
}
_OF = {name: VARIED.get(name, (name,)) for name in NAMES}
ARMS = tuple(Arm(name, recipe, (*ALONE, *settings)) for name, (recipe, *settings) in _OF.items())

# The claims: MACPO above every baseline, and above itself without each of its parts.
CONTRASTS = contrasts([(Measured("macpo"), Measured(name)) for name in (*BASELINES, *ABLATIONS)], "reward")
# Whether refusals rise, and whether the ways to choose positives differ.
OF_REFUSALS = (
    *contrasts([(Measured(way), Measured(way, 0)) for way in WAYS], "ORR"),
    *contrasts([(Measured(way), Measured("macpo")) for way in WAYS[1:]], "reward", "ORR"),
)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {name: rounds_of(study, runs[name]) for name in NAMES}
    intro = (
        "MACPO (arXiv 2410.07672) in the microworld: weak teachers and a strong student, trained without labels for "
        "the student's half of the prompts. Reward is the share of satisfactory answers on held-out, by the exact "
        "judge; PGR is the share of the gap between the first teacher at its start and the strong ceiling that a "
        "student recovers. By default positives refuse as often as the labels do, teachers rehearse their "
        "labels, and the likelihood weighs more than in the paper. macpo-filter-alone differs in the first of these "
        "only; macpo-published has the paper's filter, no rehearsal, and its losses at the rate of their own that they "
        "need here. SPIN and self-rewarding keep that rate, at which they keep their words, and so learn less; "
        "spin-as-macpo has MACPO's default. The arms that end in -longer have as many updates as MACPO's student has "
        "by default. "
        "The paper claims that MACPO stands above every baseline, that every round improves "
        "student and teachers, and that each of its three parts is needed."
    )
    sections = [
        _table(rounds),
        contrast_section("MACPO against every baseline, and without each part", paired_rounds(study, runs, CONTRASTS)),
        _duels(study, runs),
        *by_round(study, runs, "macpo", "Does every round improve everyone?"),
        whose(runs["macpo"], rounds["macpo"]),
        _refusals(rounds),
        contrast_section("Refusals, tested", paired_rounds(study, runs, OF_REFUSALS)),
    ]
    return study.write("MACPO in the microworld", intro, sections)


def _table(rounds: Mapping[str, BySeed]) -> PageSection:
    rows: list[list[Any]] = []
    for name, runs in rounds.items():
        last = pool([seed[-1]["agents"][STUDENT] for seed in runs])
        recovered = gap_recovered(runs, rounds["macpo"], rounds["ceiling"])
        without = f" (without {ABLATIONS[name]})" if name in ABLATIONS else ""
        rows.append(
            [
                name + without,
                last["reward"],
                last.get("graded"),
                of_seeds(recovered, runs),
                last["asr"],
                last["orr"],
                last["refused_benign"],
                last["general"],
                quantity(last["length"]),
            ]
        )
    columns = (
        "student of",
        "reward",
        "graded",
        "PGR",
        "ASR",
        "ORR",
        "harmless prompts refused",
        "general ability",
        "tokens an answer",
    )
    lines = []
    best = best_teacher(rounds["macpo"])
    for weak, ceiling, words in (
        (WEAK, "ceiling", "the first teacher at its start and the ceiling"),
        (best, "ceiling", f"the best teacher ({best}) and the ceiling"),
        (WEAK, "ceiling-longer", "the first teacher and a ceiling of as many updates"),
    ):
        gap = gap_recovered(rounds["macpo"], rounds["macpo"], rounds[ceiling], weak)
        lines.append(f"PGR of MACPO between {words}: {of_seeds(gap, rounds['macpo'])}.")
    series = {"reward": [over_seeds(final(runs), 1.0) for runs in rounds.values()]}
    figure = plots.bars(list(rounds), series, "Reward of the student at the end", "satisfactory answers")
    return PageSection("The table", " ".join(lines), Table(columns, rows), figure)


def _duels(study: Study, runs: Runs) -> PageSection:
    def right(name: str) -> list[Mapping[str, bool | None]]:
        """By seed, whether the student's last answer to each prompt is satisfactory."""
        return [table["satisfactory"] for table in outcomes_of(study, runs, Measured(name))]

    rows: list[list[Any]] = []
    lines = []
    macpo = right("macpo")
    for name in NAMES[1:]:
        met = pool([duel(ours, theirs) for ours, theirs in zip(macpo, right(name), strict=True)])
        rows.append([name, met["win"], met["tie"], met["lose"]])
        if name in BASELINES:
            lines.append(f"{name}: {percent(met['win'], False)} won, {percent(met['lose'], False)} lost.")
    columns = ("MACPO against", "wins", "ties", "loses")
    return PageSection("Answer against answer", " ".join(lines), Table(columns, rows))


def _refusals(rounds: Mapping[str, BySeed]) -> PageSection:
    """Reward against over-refusal by round, beside the published filter alone and the published losses."""
    rows: list[list[Any]] = []
    series = []
    for name in WAYS:
        runs = rounds[name]
        pooled = [pool([seed[r]["agents"][STUDENT] for seed in runs]) for r in range(len(runs[0]))]
        rows += [
            [name, "start" if r == 0 else f"round {r}", e["reward"], e["refused_benign"], e["orr"], e["asr"]]
            for r, e in enumerate(pooled)
        ]
        series.append(plots.Line.through(name, [e["reward"] for e in pooled], [e["orr"]["value"] for e in pooled]))
    columns = ("student of", "after", "reward", "harmless prompts refused", "ORR", "ASR")
    figure = plots.trails(series, "Reward against over-refusal, round by round", "over-refusal (ORR)", "reward")
    said = "Reward and refusals of the student, round by round."
    return PageSection("Is the reward bought with refusals?", said, Table(columns, rows), figure)
