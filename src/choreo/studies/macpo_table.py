"""`choreo study macpo-table`: MACPO against weak labels alone and without its parts, refusals beside every reward."""

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

# Registered (docs/studies/registered.md): five fresh seeds.
SEEDS = tuple(range(60, 65))
ALONE = ("ceiling=false",)  # the study has a ceiling of its own
WAYS = ("macpo", "macpo-published")
BASELINES = ("naive-sft-longer", "consensus")
ABLATIONS = {
    "macpo-no-mp": "mutual positives",
    "macpo-no-hn": "hard negatives",
    "macpo-no-iw": "teachers that learn",
}
NAMES = (*WAYS, *BASELINES, *ABLATIONS, "ceiling")
# As many updates on weak answers as MACPO's student has: one epoch, and three rounds of one. Being what the arm is, its
# settings hold against --set.
VARIED = {
    "naive-sft-longer": (
        "naive-sft",
        "rounds.positives=weak",
        "rounds.negatives=none",
        "rounds.teachers_learn=false",
        "rounds.count=3",
    ),
}
_OF = {name: VARIED.get(name, (name,)) for name in NAMES}
ARMS = tuple(Arm(name, recipe, (*ALONE, *settings)) for name, (recipe, *settings) in _OF.items())
MACPO, PUBLISHED = map(Measured, WAYS)
START = Measured("macpo", 0)  # the student of naive SFT

# The registered hypotheses: one family.
REGISTERED = (
    *contrasts([(MACPO, other) for other in (START, *map(Measured, (*BASELINES, *ABLATIONS)))], "reward"),
    *contrasts([(PUBLISHED, START), (MACPO, START), (MACPO, PUBLISHED)], "ORR"),
    *contrasts([(MACPO, PUBLISHED), (PUBLISHED, START)], "reward"),
)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {name: rounds_of(study, runs[name]) for name in NAMES}
    intro = (
        "MACPO (arXiv 2410.07672) in the microworld: weak teachers and a strong student, trained without labels for "
        "the student's half of the prompts. Reward is the share of satisfactory answers on held-out, by the exact "
        "judge; PGR is the share of the gap between the first teacher at its start and the strong ceiling that a "
        "student recovers. Agents write one line that says what is asked, and then the answer. macpo-published has the "
        "paper's balance of losses and ratio of rates; in macpo and its ablations the likelihood of the positive "
        "weighs more. MACPO's student at its start is that of naive SFT; naive-sft-longer has as many updates "
        "as MACPO's. consensus is the student on a majority vote of the teachers. The paper claims that MACPO stands "
        "above every baseline, that every round improves student and teachers, and that each of its three parts is "
        "needed."
    )
    sections = [
        _table(rounds),
        contrast_section("The hypotheses, as registered", paired_rounds(study, runs, REGISTERED)),
        _duels(study, runs),
        *(section for way in WAYS for section in by_round(study, runs, way, f"Does every round improve? {way}.")),
        whose(runs["macpo"], rounds["macpo"]),
        _refusals(rounds),
    ]
    return study.write("MACPO in the microworld", intro, sections)


def _table(rounds: Mapping[str, BySeed]) -> PageSection:
    students = {"naive-sft": [seed[:1] for seed in rounds["macpo"]], **rounds}
    rows: list[list[Any]] = []
    for name, runs in students.items():
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
    best = best_teacher(rounds["macpo"])
    lines = []
    for way in WAYS:
        for weak, words in ((WEAK, "the first teacher at its start"), (best, f"the best teacher ({best})")):
            gap = gap_recovered(rounds[way], rounds["macpo"], rounds["ceiling"], weak)
            lines.append(f"PGR of {way} between {words} and the ceiling: {of_seeds(gap, rounds[way])}.")
    series = {"reward": [over_seeds(final(runs), 1.0) for runs in students.values()]}
    figure = plots.bars(list(students), series, "Reward of the student at the end", "satisfactory answers")
    return PageSection("The table", " ".join(lines), Table(columns, rows), figure)


def _duels(study: Study, runs: Runs) -> PageSection:
    """Wins, ties and losses of both ways against every other student."""

    def right(name: str) -> list[Mapping[str, bool | None]]:
        """By seed, whether the student's last answer to each prompt is satisfactory."""
        return [table["satisfactory"] for table in outcomes_of(study, runs, Measured(name))]

    answers = {name: right(name) for name in NAMES}
    rows: list[list[Any]] = []
    lines = []
    for way in WAYS:
        for name in (name for name in NAMES if name != way):
            met = pool([duel(ours, theirs) for ours, theirs in zip(answers[way], answers[name], strict=True)])
            rows.append([way, name, met["win"], met["tie"], met["lose"]])
            if name in BASELINES:
                won, lost = percent(met["win"], False), percent(met["lose"], False)
                lines.append(f"{way} against {name}: {won} won, {lost} lost.")
    columns = ("student of", "against", "wins", "ties", "loses")
    return PageSection("Answer against answer", " ".join(lines), Table(columns, rows))


def _refusals(rounds: Mapping[str, BySeed]) -> PageSection:
    """Reward against over-refusal by round, of both ways and without hard negatives."""
    rows: list[list[Any]] = []
    series = []
    for name in (*WAYS, "macpo-no-hn"):
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
