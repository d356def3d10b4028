"""A SWARM study on disk.

plan.json       arms, seeds, metrics, claims and margins, written before the first run, with the hash in the report
answers/        the answers of trained agents, written once per checkpoint and replayed
played.jsonl    the figures of every finished run; a resumed study plays what is missing
results.json    what `choreo swarm report` makes the pages from: study.md, study.html
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
from choreo.swarm.extra import swarm_versions
from choreo.swarm.outcomes import Figures, answer_figures, run_figures
from choreo.swarm.run import Job, replay, run_all
from choreo.swarm.scenario import Scenario, scenario_digest
from choreo.swarm.trained_roles import TrainedRoles

PLAYED = "played.jsonl"


@dataclass(frozen=True)
class ScenarioArm:
    """One way to play a scenario. group: the training that its answers come from; arms are paired within a group.

    roles: of the trained agents, None for SWARM's scripted agents. served: the role whose answers are measured.
    """

    name: str
    group: str
    scenario: Scenario
    roles: TrainedRoles | None = None
    served: str = ""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that a run of this arm depends on, except the seed."""
        inputs = [
            scenario_digest(self.scenario),
            self.roles.digest if self.roles else "",
            swarm_versions()["swarm-safety"],
        ]
        return hashlib.sha256("/".join(inputs).encode()).hexdigest()

    @property
    def label(self) -> str:
        return f"{self.group}/{self.name}"


Results = dict[str, dict[str, dict[int, Figures]]]  # by arm, group and seed


def open_folder(folder: Path, resume: bool) -> None:
    """Makes the folder. Raises BadInput where it cannot, or the folder is not empty and `resume` is false."""
    if folder.exists() and not folder.is_dir():
        raise BadInput(f"{folder}: is a file; a study needs a folder")
    if folder.is_dir() and any(folder.iterdir()) and not resume:
        raise BadInput(f"{folder}: already exists; name another with --out, or go on with --resume")
    durable.make_folder(folder)


def play_all(
    folder: Path, arms: Sequence[ScenarioArm], seeds: Sequence[int], progress: Progress, jobs: int | None
) -> Results:
    """Plays every arm under every seed that is not played yet. Two arms with one digest are played once.

    Raises Interrupted, with all finished runs kept, after a stop, and BadInput where played.jsonl is damaged.
    """
    durable.cut_half_line(folder / PLAYED)
    digests = [(arm, arm.digest) for arm in arms]
    wanted = {(digest, seed): arm for arm, digest in digests for seed in seeds}
    known = _read_played(folder / PLAYED)
    missing = [key for key in wanted if key not in known]
    progress.start("playing", len(wanted), len(wanted) - len(missing))
    runs = run_all([_job(wanted[key], key[1]) for key in missing], workers=jobs)
    for done, (key, run) in enumerate(zip(missing, runs, strict=True), start=1):
        arm = wanted[key]
        known[key] = answer_figures(run, _served(arm), arm.roles.accepts == "helped") if arm.roles else run_figures(run)
        row = {"arm": arm.label, "digest": key[0], "seed": key[1], "figures": known[key], "seconds": run.seconds}
        durable.append_line(folder / PLAYED, row)
        progress.advance(len(wanted) - len(missing) + done)
        if progress.interrupted and done < len(missing):
            raise Interrupted("what was played is kept")
    results: Results = {}
    for arm, digest in digests:
        results.setdefault(arm.name, {})[arm.group] = {seed: known[digest, seed] for seed in seeds}
    return results


def _read_played(file: Path) -> dict[tuple[str, int], Figures]:
    try:
        return {
            (row["digest"], row["seed"]): {name: math.nan if v is None else v for name, v in row["figures"].items()}
            for row in durable.read_lines(file)
        }
    except (KeyError, TypeError, AttributeError):
        raise BadInput(f"{file}: is damaged: a line is not the figures of a run") from None


def metric_sample(results: Results, arm: str, metric: str) -> Sample:
    """One metric of one arm, by group and seed; NaN where a run did not give it."""
    return {
        group: {seed: found.get(metric, math.nan) for seed, found in seeds.items()}
        for group, seeds in results[arm].items()
    }


def _job(arm: ScenarioArm, seed: int) -> Job:
    return Job(arm.scenario, seed, replay(arm.roles) if arm.roles else None)


def _served(arm: ScenarioArm) -> Mapping[str, Answer]:
    assert arm.roles is not None
    return {answer.key: answer for answer in arm.roles.answers[arm.served]}


def arm_digests(arms: Sequence[ScenarioArm]) -> dict[str, str]:
    """The digest of every arm by its label, as a plan holds them."""
    return {arm.label: arm.digest for arm in arms}
