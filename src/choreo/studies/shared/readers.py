"""A study's systems by those who read their answers without knowing whose they were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from choreo.data.answers import LabelledAnswer
from choreo.evaluation.agreement import by_answer
from choreo.evaluation.intervals import Estimate, over_seeds, share
from choreo.evaluation.paired import Tables
from choreo.report.page import PageSection, Table, percent
from choreo.studies.shared.paired import Contrast, Game, contrast_section, family, tables

NOTHING: Tables = {"unsafe": {}, "overrefuse": {}}

Read = Mapping[tuple[str, str, str], LabelledAnswer]  # by system, prompt and answer


def by_readers(
    rows: Sequence[LabelledAnswer], games: Mapping[str, Sequence[Sequence[Game]]], declared: Sequence[Contrast]
) -> list[PageSection]:
    """Rates by readers, and the contrasts declared, over the seeds whose answers readers saw all of.

    games: held-out games by system, then by seed. A seed of a system counts where every last answer to a harmful or a
    benign prompt has labels: some answers, such as a short refusal, occur in trainings that nobody read, too.
    """
    read: Read = {(row.model, row.prompt.text, row.answer): row for row in by_answer(rows)}
    labelled = {name: [_labelled(name, seed, read) for seed in seeds] for name, seeds in games.items()}
    shown = {name: [seed for seed in seeds if seed] for name, seeds in labelled.items() if any(seeds)}
    if not shown:
        said = "Left out: of no system has every answer of a seed labels, so readers saw other trainings."
        return [PageSection("By readers", f"{said} What labels show is how far the judges agree with readers.")]
    found = {name: _rates(seeds) for name, seeds in shown.items()}
    counts = ", ".join(f"{name} {len(seeds)}" for name, seeds in shown.items())
    said = f"Every answer to harmful and benign prompts, mixed and without names. Seeds that were read: {counts}. "
    said += " ".join(f"{name}: ASR {percent(asr)}, ORR {percent(orr)}." for name, (asr, orr, _) in found.items())
    table = Table(("system", "ASR", "ORR", "degenerate"), [[name, *rates] for name, rates in found.items()])
    outcomes = {name: [_outcomes(seed) for seed in seeds] for name, seeds in labelled.items()}
    known = [each for each in declared if each.a in shown and each.b in shown]
    sections = [PageSection("By readers", said, table)]
    return sections + ([contrast_section("By readers, paired by prompt", family(known, outcomes))] if known else [])


def _labelled(system: str, games: Sequence[Game], read: Read) -> list[tuple[Game, LabelledAnswer]]:
    """The games of harmful and benign prompts, each with the labels of its last answer; [] where some have none."""
    asked = [game for game in games if game["prompt"]["kind"] != "general"]
    found = [read.get((system, game["prompt"]["text"], game["answers"][-1]["text"])) for game in asked]
    return [(game, row) for game, row in zip(asked, found, strict=True) if row] if all(found) else []


def _rates(seeds: Sequence[Sequence[tuple[Game, LabelledAnswer]]]) -> list[Estimate]:
    """ASR, ORR, and the share of degenerate answers."""

    def of(label: str, *kinds: str) -> Estimate:
        rows = [[row for _, row in seed if row.prompt.kind in kinds] for seed in seeds]
        return over_seeds([share([getattr(row, label) for row in seed]) for seed in rows], ceiling=1.0)

    return [of("harm", "harmful"), of("refusal", "benign"), of("degenerate", "harmful", "benign")]


def _outcomes(games: Sequence[tuple[Game, LabelledAnswer]]) -> Tables:
    """The outcomes of games as readers judge their last answers."""
    if not games:
        return NOTHING
    judged = []
    for game, row in games:
        verdict = {"unsafe": row.harm, "overrefuse": row.refusal if row.prompt.kind == "benign" else False}
        judged.append({**game, "reviews": [], "verdicts": [{**game["verdicts"][-1], **verdict}]})
    return {name: each for name, each in tables(judged).items() if name in NOTHING}
