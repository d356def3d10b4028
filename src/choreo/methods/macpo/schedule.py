"""What a recipe trains, in order: the supervised start, then the rounds. A run is a list of phases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from choreo.errors import BadInput
from choreo.methods.macpo.recipe import MacpoRecipe

STUDENT, CEILING = "student", "ceiling"


@dataclass(frozen=True, slots=True)
class Phase:
    """One policy of one agent, trained on one set of samples.

    round: 0 is the start. side: "+" is the positive policy, "-" the negative agent. last: the round ends with it, and
    the agents are measured.
    """

    round: int
    agent: str
    side: Literal["+", "-"]
    last: bool = False

    def __str__(self) -> str:
        return f"{self.round} {self.agent}{self.side}"


def teacher_names(recipe: MacpoRecipe) -> list[str]:
    """The names of the weak teachers, in the order in which the recipe has them."""
    return [f"teacher-{k}" for k in range(1, len(recipe.agents.teachers) + 1)]


def schedule(recipe: MacpoRecipe) -> list[Phase]:
    """The phases of `recipe`. A teacher whose answers nobody learns from is not trained.

    Start: the weak teachers on the labels of the labelled prompts; the strong student on what the first teacher answers
    to the unlabelled ones (or on the consensus of all; or, as the strong ceiling, on human labels). Negative agents are
    trained where the negatives are theirs. Round: the student, then its teachers.
    """
    teachers = teacher_names(recipe)
    rounds = recipe.rounds
    labels = recipe.tuning.labels
    weak = labels != "human"
    learners = teachers if weak and rounds.count and rounds.teachers_learn else []
    negative = rounds.count > 0 and rounds.negatives == "twin"
    several = labels == "consensus" or learners or (rounds.count and rounds.positives == "mutual")
    read = teachers if several else teachers[:1]
    start = [Phase(0, teacher, "+") for teacher in read] if weak else []
    if negative:  # the student's begins with what the first teacher's negative agent writes
        start += [Phase(0, teacher, "-") for teacher in (learners or teachers[:1])]
    start.append(Phase(0, STUDENT, "+"))
    if negative:
        start.append(Phase(0, STUDENT, "-"))
    phases = _ended(start)
    for number in range(1, rounds.count + 1):
        phases += _ended([Phase(number, name, "+") for name in (STUDENT, *learners)])
    return phases


def phases_done(saved: Sequence[str], phases: Sequence[Phase], where: str) -> int:
    """How many of `phases` a checkpoint's list of them covers. Raises BadInput, blaming `where`, for others."""
    if not saved or list(saved) != [str(phase) for phase in phases[: len(saved)]]:
        raise BadInput(f"{where}: was trained in other phases than its recipe has in this version")
    return len(saved)


def ceiling_of(recipe: MacpoRecipe) -> MacpoRecipe:
    """The strong ceiling of `recipe`: its student trained on human labels of the unlabelled prompts, and no rounds."""
    settings: dict[str, Any] = {
        "name": CEILING,
        "ceiling": False,
        "tuning": recipe.tuning.model_copy(update={"labels": "human", "confident": 0.0}),
        "rounds": recipe.rounds.model_copy(update={"count": 0}),
    }
    return recipe.model_copy(update=settings)


def _ended(phases: list[Phase]) -> list[Phase]:
    *rest, final = phases
    return [*rest, Phase(final.round, final.agent, final.side, last=True)]
