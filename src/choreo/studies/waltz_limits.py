"""`choreo study waltz-limits`: the two limits the paper states of itself, one feedback round and English only."""

from __future__ import annotations

from typing import Any

from choreo.environments.microworld.lexicon import LANGUAGES
from choreo.evaluation.metrics import pool
from choreo.report import plots
from choreo.report.page import PageSection, Table, quantity
from choreo.studies.shared.arms import Arm, Entry, Runs, Study
from choreo.studies.shared.paired import contrast_section, contrasts, family
from choreo.types import KINDS

# Registered (docs/studies/registered.md): three fresh seeds.
SEEDS = tuple(range(50, 53))
SETTINGS = ("learning.steps=250", "stages.stage1_share=0.32")  # the defaults when it was registered
ROUNDS = (1, 2, 3)
NAMES = {"en": "English", "es": "Spanish", "de": "German"}
ENGLISH, ALL = "english-only", "all-languages"
ARMS = (
    *(Arm(f"rounds-{rounds}", settings=(f"protocol.rounds={rounds}",)) for rounds in ROUNDS),
    Arm(ALL, settings=(f"world.languages={list(LANGUAGES)}",)),
    Arm(ENGLISH, settings=('world.languages=["en"]',)),
)
UNTRAINED = "untrained"
# More rounds against one, as the paper has it.
OF_ROUNDS = contrasts([(f"rounds-{rounds}", "rounds-1") for rounds in ROUNDS[1:]], "F1")
# In each language: what training in English alone is worth there, and what training in all adds to that.
OF_LANGUAGES = contrasts(
    [
        pair
        for language in LANGUAGES
        for pair in (
            (f"{ENGLISH}-{language}", f"{UNTRAINED}-{language}"),
            (f"{ALL}-{language}", f"{ENGLISH}-{language}"),
        )
    ],
    "F1",
)


def run(study: Study) -> str:
    """Trains and measures all that is missing, writes study.html and study.md; returns the verdicts."""
    runs = study.train(ARMS)
    intro = (
        "The paper plays one feedback round and trains in English. Here the pair is trained and played with more "
        "rounds, and trained in one language or in three and measured in each."
    )
    by_rounds = {f"rounds-{rounds}": study.outcomes("waltz", runs[f"rounds-{rounds}"]) for rounds in ROUNDS}
    sections = [
        _rounds(study, runs),
        contrast_section("More rounds, tested", family(OF_ROUNDS, by_rounds)),
        _languages(study, runs),
    ]
    by_language = {
        f"{name}-{language}": study.measured_outcomes(f"{name}-{language}")
        for name in (UNTRAINED, ENGLISH, ALL)
        for language in LANGUAGES
    }
    sections.append(contrast_section("Languages, tested", family(OF_LANGUAGES, by_language)))
    return study.write("The stated limits of WaltzRL", intro, sections)


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
    series = {name.upper(): [entry[name] for entry in pooled.values()] for name in ("asr", "orr")}
    figure = plots.bars(list(pooled), series, "What is left wrong, by rounds", "share of final answers")
    said = "The pair by the most rounds of feedback that it may have."
    return PageSection("More than one feedback round", said, Table(columns, rows), figure)


def _languages(study: Study, runs: Runs) -> PageSection:
    """The untrained pair, trained in English only, and trained in all, each measured in each language.

    Training starts from the untrained pair. Compared with the base alone, the effect of untrained feedback would count
    as learnt.
    """
    rows: list[list[Any]] = []
    series: dict[str, list[Any]] = {"untrained pair": [], "trained in English only": [], "trained in all": []}
    for language in LANGUAGES:
        found: dict[str, list[Entry]] = {
            "untrained pair": study.measured(
                f"{UNTRAINED}-{language}", "collaboration-untrained", runs[ALL], trained=False, language=language
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
    columns = ("measured in", "system", "F1", "ASR", "ORR", "FTR general", "general ability", "degenerate")
    figure = plots.bars([NAMES[language] for language in LANGUAGES], series, "F1 by language", "F1")
    said = "The same pairs in each language. General ability and degenerate answers stand beside F1."
    return PageSection("Trained in English, met in other languages", said, Table(columns, rows), figure)
