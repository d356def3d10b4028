"""`choreo study macpo-table`: MACPO, its baselines and its ablations, with the refusals beside every reward."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from choreo.evaluate import plots
from choreo.evaluate.intervals import Estimate, estimate, over_seeds
from choreo.evaluate.macpo import duel, pgr
from choreo.evaluate.metrics import pool
from choreo.evaluate.page import Section, Table, percent, quantity
from choreo.runs.progress import Progress
from choreo.studies.arms import Arm, Study
from choreo.studies.compare import against, difference, points

ALONE = ("ceiling=false",)  # the study has a ceiling of its own
BASELINES = ("naive-sft", "confident-loss", "spin", "self-rewarding")
ABLATIONS = {
    "macpo-no-mp": "no mutual positives",
    "macpo-no-hn": "no hard negatives",
    "macpo-no-iw": "teachers stay as they began",
}
NAMES = ("macpo", *BASELINES, *ABLATIONS, "macpo-quota", "ceiling")
ARMS = tuple(Arm(name, name, ALONE) for name in NAMES)
STUDENT, WEAK = "student+", "teacher-1+"

Rounds = Sequence[Mapping[str, Any]]  # of one run, as summary.json has them
BySeed = Sequence[Rounds]


def run(folder: Path, seeds: Sequence[int] | None, progress: Progress, settings: Sequence[str] = ()) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    study = Study.open("macpo-table", folder, seeds, settings, progress)
    runs = study.train(ARMS)
    rounds = {name: [summary["rounds"] for summary in study.summaries(runs[name])] for name in NAMES}
    answers = {name: [json.loads((path / "outcomes.json").read_text()) for path in runs[name]] for name in NAMES}
    intro = (
        "MACPO (arXiv 2410.07672) in the microworld: weak teachers and a strong student, trained without labels for "
        "the student's half of the prompts. Reward is the share of satisfactory answers on held-out, by the exact "
        "judge; PGR is the share of the gap between the first teacher at its start and the strong ceiling that a "
        "student recovers. The paper claims that MACPO stands above every baseline, that every round improves "
        "student and teachers, and that each of its three parts is needed."
    )
    sections = [_table(rounds), _duels(answers), _by_round(rounds["macpo"]), _ablations(rounds), _refusals(rounds)]
    return study.write("MACPO in the microworld", intro, sections)


def final(runs: BySeed, measure: str = "reward", policy: str = STUDENT) -> list[Estimate]:
    """A measure of an agent after the last round, by seed."""
    return [rounds[-1]["agents"][policy][measure] for rounds in runs]


def gap_recovered(student: BySeed, macpo: BySeed, ceiling: BySeed) -> Estimate:
    """PGR over seeds, each against the weak teacher and the ceiling of its own seed."""
    found = []
    for rounds, weak, high in zip(student, macpo, ceiling, strict=True):
        ends = weak[0]["agents"][WEAK]["reward"]["value"], high[-1]["agents"][STUDENT]["reward"]["value"]
        value = pgr(rounds[-1]["agents"][STUDENT]["reward"]["value"], *ends)
        if value is not None:
            found.append(estimate(value, 1, value, value))
    return over_seeds(found)


def _table(rounds: Mapping[str, BySeed]) -> Section:
    rows: list[list[Any]] = []
    for name, runs in rounds.items():
        last = pool([seed[-1]["agents"][STUDENT] for seed in runs])
        recovered = gap_recovered(runs, rounds["macpo"], rounds["ceiling"])
        rows.append([
            name, last["reward"], _plain(recovered), last["asr"], last["orr"], last["refused_benign"], last["general"],
            quantity(last["length"]),
        ])  # fmt: skip
    columns = ("student of", "reward", "PGR", "ASR", "ORR", "harmless prompts refused", "general ability",
               "tokens an answer")  # fmt: skip
    ours = final(rounds["macpo"])
    lines = [against("MACPO", name, ours, final(rounds[name]), "reward") for name in BASELINES]
    lines.append(f"PGR of MACPO: {_plain(gap_recovered(rounds['macpo'], rounds['macpo'], rounds['ceiling']))}.")
    series = {"reward": [over_seeds(final(runs), 1.0) for runs in rounds.values()]}
    figure = plots.bars(list(rounds), series, "Reward of the student at the end", "satisfactory answers")
    return Section("The table", " ".join(lines), Table(columns, rows), figure)


def _duels(answers: Mapping[str, Sequence[Mapping[str, bool]]]) -> Section:
    rows: list[list[Any]] = []
    lines = []
    for name in (*BASELINES, *ABLATIONS, "macpo-quota", "ceiling"):
        met = pool([duel(ours, theirs) for ours, theirs in zip(answers["macpo"], answers[name], strict=True)])
        rows.append([name, met["win"], met["tie"], met["lose"]])
        if name in BASELINES:
            lines.append(f"{name}: {percent(met['win'], False)} won, {percent(met['lose'], False)} lost.")
    columns = ("MACPO against", "wins", "ties", "loses")
    return Section("Answer against answer", " ".join(lines), Table(columns, rows))


def _by_round(runs: BySeed) -> Section:
    policies = [name for name in runs[0][0]["agents"] if name.endswith("+")]
    numbers = range(len(runs[0]))
    rewards = {p: [[seed[r]["agents"][p]["reward"] for seed in runs] for r in numbers] for p in policies}
    rows = [[p, *(over_seeds(found, 1.0) for found in by_round)] for p, by_round in rewards.items()]
    lines, series = [], []
    for policy, by_round in rewards.items():
        pooled = [over_seeds(found, 1.0) for found in by_round]
        ends = ([e[end] for e in pooled] for end in ("value", "low", "high"))
        series.append(plots.Line(policy, [float(r) for r in numbers], *ends))
        steps = [points(difference(after, before)) for before, after in itertools.pairwise(by_round)]
        lines.append(f"{policy}, round by round: {'; '.join(steps)}.")
    figure = plots.lines(series, "Reward by round", "round", percent=True)
    columns = ("reward", *("start" if r == 0 else f"round {r}" for r in numbers))
    return Section("Does every round improve everyone?", " ".join(lines), Table(columns, rows), figure)


def _ablations(rounds: Mapping[str, BySeed]) -> Section:
    ours = final(rounds["macpo"])
    rows = [
        [f"−{name[-2:].upper()}: {what}", over_seeds(final(rounds[name]), 1.0),
         points(difference(ours, final(rounds[name])))]
        for name, what in ABLATIONS.items()
    ]  # fmt: skip
    columns = ("without", "reward", "MACPO minus it")
    lines = [against("MACPO", f"MACPO with {what}", ours, final(rounds[name]), "reward")
             for name, what in ABLATIONS.items()]  # fmt: skip
    return Section("What each part is worth", " ".join(lines), Table(columns, rows))


def _refusals(rounds: Mapping[str, BySeed]) -> Section:
    """Reward against over-refusal by round, under the published filter and under the quota."""
    rows: list[list[Any]] = []
    series = []
    for name in ("macpo", "macpo-quota"):
        runs = rounds[name]
        by_round = [pool([seed[r]["agents"][STUDENT] for seed in runs]) for r in range(len(runs[0]))]
        rows += [
            [name, "start" if r == 0 else f"round {r}", e["reward"], e["refused_benign"], e["orr"], e["asr"]]
            for r, e in enumerate(by_round)
        ]
        for measure, words in (("reward", "reward"), ("refused_benign", "harmless refused")):
            ends = ([e[measure][end] for e in by_round] for end in ("value", "low", "high"))
            series.append(plots.Line(f"{name}: {words}", [float(r) for r in range(len(by_round))], *ends))
    columns = ("student of", "after", "reward", "harmless prompts refused", "ORR", "ASR")
    first, last = ([seed[r]["agents"][STUDENT]["refused_benign"] for seed in rounds["macpo"]] for r in (0, -1))
    lines = [
        f"From the start to the last round, refusals of harmless prompts by MACPO's student change by "
        f"{points(difference(last, first))}.",
        against("the quota", "the published filter", final(rounds["macpo-quota"]), final(rounds["macpo"]), "reward"),
        against("the quota", "the published filter", final(rounds["macpo-quota"], "orr"), final(rounds["macpo"], "orr"),
                "ORR"),
    ]  # fmt: skip
    figure = plots.lines(series, "Reward and over-refusal by round", "round", percent=True)
    return Section("Is the reward bought with refusals?", " ".join(lines), Table(columns, rows), figure)


def _plain(number: Estimate) -> str | None:
    """An estimate that is no share, to two digits."""
    if number["value"] is None:
        return None
    interval = f" ({number['low']:.2f}–{number['high']:.2f})" if number["n"] > 1 else ""
    return f"{number['value']:.2f}{interval}"
