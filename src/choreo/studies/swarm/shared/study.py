"""`choreo swarm study`: plan, play, judge, write. A study's module gives its design; the rest is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from choreo.config.checking import suggest
from choreo.errors import BadInput
from choreo.runs.progress import Progress
from choreo.studies import swarm
from choreo.studies.shared.kept import commit
from choreo.studies.swarm.shared import levers, pages, results
from choreo.studies.swarm.shared.design import STATISTICS
from choreo.studies.swarm.shared.folder import ScenarioArm, arm_digests, open_folder, play_all
from choreo.swarm.annotations import Claim, load_annotation
from choreo.swarm.extra import swarm_versions
from choreo.swarm.outcomes import FIGURES
from choreo.swarm.plan import Plan, register, terms
from choreo.swarm.probe import calibration

SEEDS = tuple(range(10))
LEAST = 2  # seeds; the interval is meant for ten or more


def run(
    name: str,
    what: Sequence[str],
    folder: Path,
    seeds: Sequence[int],
    resume: bool,
    jobs: int | None,
    answers: Path | None,
    annotation: Path | None,
    progress: Progress,
) -> tuple[Path, dict[str, Any]]:
    """Plays the study into `folder` and writes its report. Returns the page, and the content of report.json.

    what: runs by folder, or scenarios by name or file. answers: where answers are cached (default: in the folder).
    annotation: a file whose claims replace the shipped ones; each has to be about arms that are played.
    Raises BadInput, and Interrupted, with all finished runs kept, after a stop.
    """
    open_folder(folder, resume)
    if len(seeds) < LEAST:
        raise BadInput(f"--seeds: a contrast is tested on pairs of seeds; give {LEAST} or more, better ten")
    module = swarm.load(name)
    own = annotated_claims(name, module, annotation)
    design = module.design(what, answers or folder / "answers", progress)
    claims = own or design.claims or load_annotation(module.ANNOTATION).claims
    if own:
        refuse_unknown_arms(annotation, claims, [arm.name for arm in design.arms])
    plan = Plan(name, arm_digests(design.arms), tuple(seeds), FIGURES, tuple(terms(claim) for claim in claims))
    registered = register(folder, plan)
    progress.say(f"plan: sha256 {registered.digest}")
    played = play_all(folder, design.arms, seeds, progress, jobs)
    mapped = {arm for grid in design.sweeps.values() for line in grid for arm in line}
    text = module.REPORT
    results.save(
        folder,
        results.SwarmStudy(
            name=name,
            title=text.title,
            intro=_intro(text.lead, what, design.arms, seeds),
            seeds=tuple(seeds),
            plan={
                "digest": registered.digest,
                "changes": registered.changes,
                "exploratory": [registered.exploratory(claim) for claim in claims],
            },
            claims=tuple(claims),
            results=played,
            main=tuple(arm for arm in played if arm not in mapped),
            sweeps=design.sweeps,
            sweep_rows=levers.ROWS,
            sweep_columns=levers.COLUMNS,
            calibration={name: asdict(calibration(answers)) for name, answers in design.answers.items()},
            methods=f"{text.methods.format(fitted=design.fitted)}\n\n{STATISTICS}",
            limitations=text.limitations,
            next=text.next,
            versions=swarm_versions() | {"commit": commit() or "not known"},
        ),
    )
    return pages.write(folder)


def annotated_claims(name: str, module: ModuleType, file: Path | None) -> Sequence[Claim]:
    """The claims of the user's own annotation; none without a file.

    Raises BadInput where the annotation is unfinished, or the study tests no annotation.
    """
    if file is None:
        return ()
    if not hasattr(module, "ANNOTATION"):
        raise BadInput(f"--annotation: study {name} has claims of its own; swarm generate makes its scenarios")
    annotation = load_annotation(file)
    if annotation.status != "curated" or not annotation.claims:
        raise BadInput(f"{file}: has no finished claims; fill in each ? and set status: curated")
    return annotation.claims


def refuse_unknown_arms(file: Path | None, claims: Sequence[Claim], known: Sequence[str]) -> None:
    """Raises BadInput where a testable claim is about an arm that no run gives."""
    for number, claim in enumerate(claims):
        for key, arm in (("arm", claim.arm), ("baseline", claim.baseline)):
            if claim.testable and arm not in known:
                raise BadInput(f"{file}: claims.{number}.{key}: no run gives {arm!r}{suggest(arm, known)}")


def _intro(lead: str, what: Sequence[str], arms: Sequence[ScenarioArm], seeds: Sequence[int]) -> str:
    names = [Path(item).name for item in what] or dict.fromkeys(arm.group for arm in arms)
    return (
        f"{lead} Played: {', '.join(names)}; {len(arms)} arms, {len(seeds)} paired seeds, on the SWARM simulator "
        f"(swarm-safety {swarm_versions()['swarm-safety']})."
    )
