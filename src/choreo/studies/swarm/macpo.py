"""`choreo swarm study macpo`: a student's rounds before teachers that accept by their own scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from choreo.errors import BadInput
from choreo.methods.macpo.method import MACPO
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT
from choreo.runs.progress import Progress
from choreo.studies.swarm.answers import labelled, of_rounds, recipe_of
from choreo.studies.swarm.folder import Arm
from choreo.studies.swarm.recipes import REPEATED, differences
from choreo.swarm import probe
from choreo.swarm.annotations import load_annotation
from choreo.swarm.answers import Answer, Answers, judged
from choreo.swarm.generate import generate
from choreo.swarm.parts import ANY, Parts
from choreo.swarm.scenario import Scenario, changed

ANNOTATION = "macpo"
AGENT, TEACHER, TWIN = "strong student", "weak teacher", "negative twin"
# Settings that make no other method: of repetitions, and what is trained or said beside the agents.
BESIDES = (*REPEATED, "ceiling", "watch", "micro_tokens")
GATE = 0.5  # p below which the refinery that stands for the filter withholds an answer


def arms(runs: Sequence[Path], cache: Path, progress: Progress) -> tuple[list[Arm], dict[str, Answers], int]:
    """The arms of all runs, the judged answers of every student, and the most a probe was fitted on. Runs of one seed
    and split are one group: they share a probe, fitted on what all of them recorded. Raises BadInput."""
    recipes = {run: _recipe(run) for run in runs}
    groups: dict[str, list[Path]] = {}
    for run, recipe in recipes.items():
        groups.setdefault(f"seed{recipe.seed}, split {recipe.world.split_seed}", []).append(run)
    found: list[Arm] = []
    shown: dict[str, Answers] = {}
    fitted = 0
    for group, members in groups.items():
        rows: list[Answer] = [row for run in members for row in labelled(run, recipes[run])]
        judge = probe.fit(rows, 0)
        fitted = max(fitted, judge.fitted_on)
        for run in members:
            recipe = recipes[run]
            for number, written in of_rounds(run, recipe, cache, progress.say).items():
                ways = {policy: judged(answers, judge(answers)) for policy, answers in written.items()}
                name = f"{way(recipe)}round_{number}"
                if any((arm.name, arm.group) == (name, group) for arm in found):
                    raise BadInput(f"{run}: is another run of {name} with {group}; give one of each")
                shown[f"{group}/{name}"] = ways[f"{STUDENT}+"]
                found += _of_round(name, group, recipe, number, ways)
    return found, shown, fitted


def _recipe(run: Path) -> MacpoRecipe:
    """Raises BadInput where teachers' rewards are not against their bases, which is what their scores are against."""
    recipe = recipe_of(run, MACPO)
    if recipe.rounds.reference != "base":
        raise BadInput(
            f"{run}: its rounds.reference is {recipe.rounds.reference!r}, and this study scores against the base alone"
        )
    return recipe


def way(recipe: MacpoRecipe) -> str:
    """What a run's arms begin with: nothing for MACPO as it ships, else what it leaves out. A run that differs in
    anything else has its recipe's own name in it, so that it never passes for that one."""
    rounds, teachers, published = recipe.rounds, recipe.agents.teachers, MacpoRecipe()
    changed = set(differences(recipe, published, BESIDES))
    fewer = len(set(teachers)) == len(teachers) and set(teachers) < set(published.agents.teachers)
    said = []
    for key, holds, name in (
        ("agents.teachers", fewer, f"k{len(teachers)}"),
        ("rounds.negatives", rounds.negatives == "none", "no_hard_negatives"),
        ("rounds.positives", rounds.positives == "self", "no_mutual_positives"),
        ("rounds.teachers_learn", not rounds.teachers_learn, "frozen_teachers"),
        ("rounds.refusals", rounds.refusals == "any", "filter_alone"),
        ("rounds.rehearse", rounds.rehearse == 0, "no_rehearsal"),
        ("rounds.keep", 1 < len(teachers) <= rounds.keep, "no_filter"),
    ):
        if key in changed and holds:
            said.append(name)
            changed.remove(key)
    return "".join(f"{name}_" for name in (*said, *([recipe.name.replace("-", "_")] if changed else [])))


def _of_round(name: str, group: str, recipe: MacpoRecipe, number: int, ways: Mapping[str, Answers]) -> list[Arm]:
    scenario = _with_teachers(generate(load_annotation(ANNOTATION)), len(recipe.agents.teachers))
    parts = _parts(ways)
    found = [Arm(name, group, scenario, parts, AGENT)]
    if name == f"round_{recipe.rounds.count}":  # the paper's own end: its two levers are looked at there
        found.append(Arm(f"{name}, quorum", group, scenario, replace(parts, accepts="quorum"), AGENT))
        gated = changed(scenario, refinery_enabled=True, refinery_p_threshold=GATE)
        found.append(Arm(f"{name}, refinery", group, gated, parts, AGENT))
    return found


def _parts(ways: Mapping[str, Answers]) -> Parts:
    roles = {f"{STUDENT}+": AGENT, f"{STUDENT}-": TWIN}
    return Parts({roles[policy]: answers for policy, answers in ways.items()}, {TEACHER: ANY}, "scores")


def _with_teachers(scenario: Scenario, count: int) -> Scenario:
    groups = tuple(g.model_copy(update={"count": count}) if g.role == TEACHER else g for g in scenario.agents)
    return scenario.model_copy(update={"agents": groups})
