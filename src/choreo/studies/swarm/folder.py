"""A SWARM study on disk: its plan before the first run, every run's figures as they come, and answers to replay.

plan.json       arms, seeds, metrics, claims and margins, with the hash that the report prints
answers/        what trained agents answered, once per checkpoint
played.jsonl    figures of every run; a resumed study plays what is missing
results.json    what `choreo swarm report` writes the pages from: study.md, study.html
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from choreo.errors import BadInput, Interrupted
from choreo.files import durable
from choreo.runs.progress import Progress
from choreo.swarm.answers import Answer
from choreo.swarm.contrasts import Sample
from choreo.swarm.extra import versions
from choreo.swarm.outcomes import Figures, figures, figures_of_answers
from choreo.swarm.parts import Parts
from choreo.swarm.run import Job, run_all
from choreo.swarm.scenario import Scenario
from choreo.swarm.scenario import digest as digest_of_scenario

PLAYED = "played.jsonl"


@dataclass(frozen=True)
class Arm:
    """One way to play a scenario. group: the training that its answers come from; arms are paired within it.

    parts: the trained agents, None for SWARM's scripted ones. served: the role whose answers are measured.
    """

    name: str
    group: str
    scenario: Scenario
    parts: Parts | None = None
    served: str = ""

    @cached_property
    def digest(self) -> str:
        """What a run of it follows from, but for the seed."""
        said = [digest_of_scenario(self.scenario), self.parts.digest if self.parts else "", versions()["swarm-safety"]]
        return hashlib.sha256("/".join(said).encode()).hexdigest()

    @property
    def label(self) -> str:
        return f"{self.group}/{self.name}"


Results = dict[str, dict[str, dict[int, Figures]]]  # by arm, group and seed


def open_folder(folder: Path, resume: bool) -> None:
    """Raises BadInput where the folder is used and this is no resume, or it holds something else."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; a study needs a folder")
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        raise BadInput(f"{folder}: already exists; name another with --out, or go on with --resume")


def play_all(folder: Path, arms: Sequence[Arm], seeds: Sequence[int], progress: Progress, jobs: int | None) -> Results:
    """Plays every arm under every seed that is not played yet; two arms that come out equal are played once.

    Raises Interrupted, what was played kept; BadInput where played.jsonl is damaged.
    """
    durable.cut_half_line(folder / PLAYED)
    digests = [(arm, arm.digest) for arm in arms]
    wanted = {(digest, seed): arm for arm, digest in digests for seed in seeds}
    known = _played(folder / PLAYED)
    missing = [key for key in wanted if key not in known]
    progress.start("playing", len(wanted), len(wanted) - len(missing))
    runs = run_all([Job(wanted[key].scenario, key[1], wanted[key].parts) for key in missing], workers=jobs)
    for done, (key, run) in enumerate(zip(missing, runs, strict=True), start=1):
        arm = wanted[key]
        known[key] = figures_of_answers(run, _served(arm), arm.parts.accepts == "helped") if arm.parts else figures(run)
        row = {"arm": arm.label, "digest": key[0], "seed": key[1], "figures": known[key], "seconds": run.seconds}
        durable.append_line(folder / PLAYED, row)
        progress.advance(len(wanted) - len(missing) + done)
        if progress.interrupted and done < len(missing):
            raise Interrupted("what was played is kept")
    results: Results = {}
    for arm, digest in digests:
        results.setdefault(arm.name, {})[arm.group] = {seed: known[digest, seed] for seed in seeds}
    return results


def _played(file: Path) -> dict[tuple[str, int], Figures]:
    try:
        return {
            (row["digest"], row["seed"]): {name: math.nan if v is None else v for name, v in row["figures"].items()}
            for row in durable.read_lines(file)
        }
    except (KeyError, TypeError, AttributeError):
        raise BadInput(f"{file}: is damaged: a line is not the figures of a run") from None


def sample(results: Results, arm: str, metric: str) -> Sample:
    """One metric of one arm; NaN where a run did not give it."""
    return {
        group: {seed: found.get(metric, math.nan) for seed, found in seeds.items()}
        for group, seeds in results[arm].items()
    }


def _served(arm: Arm) -> Mapping[str, Answer]:
    assert arm.parts is not None
    return {answer.key: answer for answer in arm.parts.answers[arm.served]}


def planned(arms: Sequence[Arm]) -> dict[str, str]:
    return {arm.label: arm.digest for arm in arms}
