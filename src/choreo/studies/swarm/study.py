"""`choreo swarm study`: plan, play, judge, write. One function per study says what its arms are; the rest is here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from choreo.config.checking import suggest
from choreo.errors import BadInput
from choreo.runs.progress import Progress
from choreo.studies.swarm import governance, pages, results, words
from choreo.studies.swarm.folder import Arm, open_folder, planned, play_all
from choreo.swarm.annotations import Claim, load_annotation
from choreo.swarm.answers import Answers
from choreo.swarm.extra import versions
from choreo.swarm.outcomes import FIGURES
from choreo.swarm.plan import Plan, register, terms
from choreo.swarm.probe import calibration

NAMES = ("waltz", "macpo", "governance")
SEEDS = tuple(range(10))
LEAST = 2  # seeds; ten or more are what the interval is meant for


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
    """Plays the study into `folder` and writes its report; the page, and what report.json holds.

    what: runs by folder, or scenarios by name or file. answers: where answers are cached (default: in the folder).
    annotation: a file whose claims are tested in place of the shipped ones; every arm of it must be one that is played.
    Raises BadInput; Interrupted, what was played kept.
    """
    open_folder(folder, resume)
    if len(seeds) < LEAST:
        raise BadInput(f"--seeds: a contrast is tested on pairs of seeds; give {LEAST} or more, better ten")
    cache = answers or folder / "answers"
    asked = _annotated(name, annotation)
    arms, shown, fitted, claims = _arms(name, what, cache, progress)
    if asked:
        claims = asked
        _refuse_unknown(annotation, claims, [arm.name for arm in arms])
    plan = Plan(name, planned(arms), tuple(seeds), FIGURES, tuple(terms(claim) for claim in claims))
    registered = register(folder, plan)
    progress.say(f"plan: sha256 {registered.digest}")
    played = play_all(folder, arms, seeds, progress, jobs)
    sweeps, main = _layout(name, what, list(played))
    results.save(
        folder,
        results.Study(
            name=name,
            title=words.TITLES[name],
            intro=_intro(name, what, arms, seeds),
            seeds=tuple(seeds),
            plan={
                "digest": registered.digest,
                "changes": registered.changes,
                "exploratory": [registered.exploratory(claim) for claim in claims],
            },
            claims=tuple(claims),
            results=played,
            main=main,
            sweeps=sweeps,
            sweep_rows=tuple(f"breaker {limit:g}" for limit in governance.BREAKERS),
            sweep_columns=("off", "on"),
            calibration={name: asdict(calibration(answers)) for name, answers in shown.items()},
            methods=f"{words.METHODS[name].format(fitted=fitted)}\n\n{words.STATISTICS}",
            limitations=words.LIMITS[name],
            next=words.NEXT[name],
            versions=versions(),
        ),
    )
    return pages.write(folder)


def _arms(
    name: str, what: Sequence[str], cache: Path, progress: Progress
) -> tuple[list[Arm], dict[str, Answers], int, Sequence[Claim]]:
    if name == "governance":
        found = governance.scenarios(what)
        return governance.arms(found), {}, 0, governance.claims(found)
    runs = [Path(folder) for folder in what]
    if not runs:
        raise BadInput(f"swarm study {name}: give one run folder or more, which choreo train {name} makes")
    if len({run.name for run in runs}) < len(runs):
        raise BadInput(f"swarm study {name}: two runs have one name; rename a folder")

    from choreo.studies.swarm import macpo, waltz

    module = waltz if name == "waltz" else macpo
    arms, shown, fitted = module.arms(runs, cache, progress)
    return arms, shown, fitted, load_annotation(name).claims


def _annotated(name: str, file: Path | None) -> Sequence[Claim]:
    """The claims of the user's own annotation. Raises BadInput where it is unfinished or the study takes none."""
    if file is None:
        return ()
    if name == "governance":
        raise BadInput("--annotation: study governance has claims of its own; swarm generate makes its scenarios")
    annotation = load_annotation(file)
    if annotation.status != "curated" or not annotation.claims:
        raise BadInput(f"{file}: has no finished claims; fill in each ? and set status: curated")
    return annotation.claims


def _refuse_unknown(file: Path | None, claims: Sequence[Claim], known: Sequence[str]) -> None:
    for number, claim in enumerate(claims):
        for key, arm in (("arm", claim.arm), ("baseline", claim.baseline)):
            if claim.testable and arm not in known:
                raise BadInput(f"{file}: claims.{number}.{key}: no run gives {arm!r}{suggest(arm, known)}")


def _layout(name: str, what: Sequence[str], played: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The grids of arms that a governance map shows, and the arms of the tables: all others."""
    heads = {}
    if name == "governance":
        heads = {s.scenario_id: f"{s.scenario_id}: " for s in governance.scenarios(what)}
    elif name == "waltz":
        heads = {arm: f"{arm}, " for arm in ("no_feedback", "adaptive")}
    sweeps = {label: governance.grid(head) for label, head in heads.items()}
    mapped = {arm for lines in sweeps.values() for line in lines for arm in line}
    return sweeps, tuple(arm for arm in played if arm not in mapped)


def _intro(name: str, what: Sequence[str], arms: Sequence[Arm], seeds: Sequence[int]) -> str:
    names = ", ".join(Path(item).name for item in what) or ", ".join(governance.SCENARIOS)
    return (
        f"{words.LEADS[name]} Played: {names}; {len(arms)} arms, {len(seeds)} paired seeds, on the SWARM simulator "
        f"(swarm-safety {versions()['swarm-safety']})."
    )
