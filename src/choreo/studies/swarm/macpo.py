"""`choreo swarm study macpo`: MACPO's claims, of a student round by round and teachers that accept by their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from choreo import config
from choreo.errors import BadInput
from choreo.methods.macpo.method import MACPO
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT
from choreo.runs.progress import Progress
from choreo.studies.shared.kept import REPEATED
from choreo.studies.swarm.shared.answers import load_recipe, macpo_answers, training_answers
from choreo.studies.swarm.shared.design import REPLAYED, Design, ReportText
from choreo.studies.swarm.shared.folder import ScenarioArm
from choreo.studies.swarm.shared.recipes import run_folders
from choreo.swarm import probe
from choreo.swarm.annotations import load_annotation
from choreo.swarm.answers import Answer, Answers, with_p
from choreo.swarm.generate import generate
from choreo.swarm.scenario import Scenario, with_levers
from choreo.swarm.trained_roles import ANY, TrainedRoles

ANNOTATION = "macpo"
AGENT, TEACHER, TWIN = "strong student", "weak teacher", "negative twin"
# Settings that do not change the method: those of repetitions, and what is trained or logged beside the agents.
BESIDES = (*REPEATED, "ceiling", "watch", "micro_tokens")
GATE = 0.5  # the refinery that stands for the filter withholds answers with a lower p
REPORT = ReportText(
    title="MACPO under SWARM",
    lead=("The claims of MACPO (arXiv 2410.07672) put to a student's rounds before its teachers."),
    methods=(
        f"{REPLAYED} "
        "A teacher accepts with probability σ(β Σ log π/π_base) of the student's answer, its own implied "
        "reward; a quorum accepts when most teachers would. The negative twin plays beside the student."
    ),
    limitations=(
        "As for every study here the prompts are a small closed language. Teachers' scores are taken as "
        "acceptance, which no paper does. The twin is the student's alone. Arms whose runs were not given are"
        " not testable."
    ),
    next=("Rounds beyond the third; teachers that vote before the student learns, not after; a probe per round."),
)


def design(what: Sequence[str], cache: Path, progress: Progress) -> Design:
    """The arms of the run folders in `what`: the rounds of each. Raises BadInput."""
    found, shown, fitted = arms(run_folders("macpo", what), cache, progress)
    return Design(found, answers=shown, fitted=fitted)


def arms(runs: Sequence[Path], cache: Path, progress: Progress) -> tuple[list[ScenarioArm], dict[str, Answers], int]:
    """The arms of all runs, the judged answers of every student, and the most answers a probe was fitted on.

    Runs of one seed and split are one group: they share a probe, fitted on what all of them recorded. Raises BadInput.
    """
    recipes = {run: _recipe(run) for run in runs}
    groups: dict[str, list[Path]] = {}
    for run, recipe in recipes.items():
        groups.setdefault(f"seed{recipe.seed}, split {recipe.world.split_seed}", []).append(run)
    found: list[ScenarioArm] = []
    shown: dict[str, Answers] = {}
    fitted = 0
    for group, members in groups.items():
        rows: list[Answer] = [row for run in members for row in training_answers(run, recipes[run])]
        judge = probe.fit_probe(rows, 0)
        fitted = max(fitted, judge.fitted_on)
        for run in members:
            recipe = recipes[run]
            for number, written in macpo_answers(run, recipe, cache, progress.say).items():
                ways = {policy: with_p(answers, judge(answers)) for policy, answers in written.items()}
                name = f"{way(recipe)}round_{number}"
                if any((arm.name, arm.group) == (name, group) for arm in found):
                    raise BadInput(f"{run}: is another run of {name} with {group}; give one of each")
                shown[f"{group}/{name}"] = ways[f"{STUDENT}+"]
                found += _of_round(name, group, recipe, number, ways)
    return found, shown, fitted


def _recipe(run: Path) -> MacpoRecipe:
    """The recipe of a run. Raises BadInput unless its reference is the base, against which this study scores."""
    recipe = load_recipe(run, MACPO)
    if recipe.rounds.reference != "base":
        raise BadInput(
            f"{run}: its rounds.reference is {recipe.rounds.reference!r}, and this study scores against the base alone"
        )
    return recipe


def way(recipe: MacpoRecipe) -> str:
    """The prefix of a run's arms: nothing for MACPO as it ships, else what the run leaves out or adds.

    A run that differs in anything else has the name of its recipe in the prefix, so that it is never taken for MACPO.
    """
    rounds, teachers, published = recipe.rounds, recipe.agents.teachers, MacpoRecipe()
    with_levers = set(config.differences(recipe, published, BESIDES))
    fewer = len(set(teachers)) == len(teachers) and set(teachers) < set(published.agents.teachers)
    left_out = []
    for key, holds, name in (
        ("agents.teachers", fewer, f"k{len(teachers)}"),
        ("rounds.negatives", rounds.negatives == "none", "no_hard_negatives"),
        ("rounds.positives", rounds.positives == "self", "no_mutual_positives"),
        ("rounds.teachers_learn", not rounds.teachers_learn, "frozen_teachers"),
        ("rounds.refusals", rounds.refusals == "as-labelled", "as_labelled"),
        ("rounds.rehearse", rounds.rehearse > 0, "rehearsal"),
        ("rounds.keep", 1 < len(teachers) <= rounds.keep, "no_filter"),
    ):
        if key in with_levers and holds:
            left_out.append(name)
            with_levers.remove(key)
    return "".join(f"{name}_" for name in (*left_out, *([recipe.name.replace("-", "_")] if with_levers else [])))


def _of_round(
    name: str, group: str, recipe: MacpoRecipe, number: int, ways: Mapping[str, Answers]
) -> list[ScenarioArm]:
    scenario = _with_teachers(generate(load_annotation(ANNOTATION)), len(recipe.agents.teachers))
    roles = _roles(ways)
    found = [ScenarioArm(name, group, scenario, roles, AGENT)]
    if name == f"round_{recipe.rounds.count}":  # the last round of the paper: its two levers are tested there
        found.append(ScenarioArm(f"{name}, quorum", group, scenario, replace(roles, accepts="quorum"), AGENT))
        gated = with_levers(scenario, refinery_enabled=True, refinery_p_threshold=GATE)
        found.append(ScenarioArm(f"{name}, refinery", group, gated, roles, AGENT))
    return found


def _roles(ways: Mapping[str, Answers]) -> TrainedRoles:
    roles = {f"{STUDENT}+": AGENT, f"{STUDENT}-": TWIN}
    return TrainedRoles({roles[policy]: answers for policy, answers in ways.items()}, {TEACHER: ANY}, "scores")


def _with_teachers(scenario: Scenario, count: int) -> Scenario:
    groups = tuple(g.model_copy(update={"count": count}) if g.role == TEACHER else g for g in scenario.agents)
    return scenario.model_copy(update={"agents": groups})
