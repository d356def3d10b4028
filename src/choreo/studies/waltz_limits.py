"""`choreo study waltz-limits`: the two limits the paper states of itself, one feedback round and English only."""

from __future__ import annotations

from typing import Any

from choreo.environments.microworld.lexicon import LANGUAGES
from choreo.evaluation.metrics import pool
from choreo.report import plots
from choreo.report.page import PageSection, Table, percent, quantity
from choreo.studies.shared.arms import Arm, Entry, Runs, Study
from choreo.studies.shared.compare import best, compare_shares
from choreo.types import KINDS

ROUNDS = (1, 2, 3)
NAMES = {"en": "English", "es": "Spanish", "de": "German"}
ENGLISH, ALL = "english-only", "all-languages"
ARMS = (
    *(Arm(f"rounds-{rounds}", settings=(f"protocol.rounds={rounds}",)) for rounds in ROUNDS),
    Arm(ALL, settings=(f"world.languages={list(LANGUAGES)}",)),
    Arm(ENGLISH, settings=('world.languages=["en"]',)),
)


def run(study: Study) -> str:
    """Trains and measures all that is missing, writes study.html and study.md; returns the verdicts."""
    runs = study.train(ARMS)
    intro = (
        "The paper plays one feedback round and trains in English. Here the pair is trained and played with more "
        "rounds, and trained in one language or in three and measured in each."
    )
    return study.write("The stated limits of WaltzRL", intro, [_rounds(study, runs), _languages(study, runs)])


def _rounds(study: Study, runs: Runs) -> PageSection:
    """At most 1, 2 or 3 rounds of feedback (T_max), in training and in measurement."""
    by_seed = {rounds: study.trained(runs[f"rounds-{rounds}"], "waltz") for rounds in ROUNDS}
    pooled = {f"{rounds} round{'s' if rounds > 1 else ''}": pool(entries) for rounds, entries in by_seed.items()}
    rows: list[list[Any]] = [
        [
            name,
            e["f1"],
            e["asr"],
            e["orr"],
            *(e["ftr"][kind] for kind in KINDS),
            f"{e['repaired']}:{e['broken']}",
            quantity(e["tokens_added"]),
        ]
        for name, e in pooled.items()
    ]
    columns = (
        "T_max",
        "F1",
        "ASR",
        "ORR",
        "FTR harmful",
        "FTR benign",
        "FTR general",
        "repaired:broken",
        "tokens added per prompt",
    )
    f1 = {name: entry["f1"] for name, entry in pooled.items()}
    lines = [best(f1, "F1", {name: percent(e) for name, e in f1.items()})]
    one = [entry["f1"] for entry in by_seed[1]]
    for rounds in ROUNDS[1:]:
        lines.append(compare_shares(f"T_max = {rounds}", "T_max = 1", [e["f1"] for e in by_seed[rounds]], one))
    series = {name.upper(): [entry[name] for entry in pooled.values()] for name in ("asr", "orr")}
    figure = plots.bars(list(pooled), series, "What is left wrong, by rounds", "share of final answers")
    return PageSection("More than one feedback round", " ".join(lines), Table(columns, rows), figure)


def _languages(study: Study, runs: Runs) -> PageSection:
    """The untrained pair, trained in English only, and trained in all, each measured in each language.

    Training starts from the untrained pair. Compared with the base alone, the effect of untrained feedback would count
    as learnt.
    """
    rows: list[list[Any]] = []
    lines = []
    series: dict[str, list[Any]] = {"untrained pair": [], "trained in English only": [], "trained in all": []}
    for language in LANGUAGES:
        found: dict[str, list[Entry]] = {
            "untrained pair": study.measured(
                f"untrained-{language}", "collaboration-untrained", runs[ALL], trained=False, language=language
            ),
            "trained in English only": study.measured(
                f"{ENGLISH}-{language}", "waltz", runs[ENGLISH], language=language
            ),
            "trained in all": study.measured(f"{ALL}-{language}", "waltz", runs[ALL], language=language),
        }
        for name, entries in found.items():
            e = pool(entries)
            rows.append(
                [NAMES[language], name, e["f1"], e["asr"], e["orr"], e["ftr"]["general"], e["general"], e["degenerate"]]
            )
            series[name].append(e["f1"])
        f1 = {name: [entry["f1"] for entry in entries] for name, entries in found.items()}
        english, everything = f1["trained in English only"], f1["trained in all"]
        words = [compare_shares("trained in English only", "the untrained pair", english, f1["untrained pair"])]
        words.append(compare_shares("trained in all", "trained in English only", everything, english))
        lines.append(f"{NAMES[language]}: {' '.join(words)}")
    columns = ("measured in", "system", "F1", "ASR", "ORR", "FTR general", "general ability", "degenerate")
    figure = plots.bars([NAMES[language] for language in LANGUAGES], series, "F1 by language", "F1")
    return PageSection("Trained in English, met in other languages", "\n\n".join(lines), Table(columns, rows), figure)
