"""What a recipe takes at most: updates, and tokens that are sampled."""

from __future__ import annotations

import math

from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, Phase, schedule, teacher_names
from choreo.methods.passes import Kind, Lengths, Pass

REVIEWS, REVIEW_TOKENS = 3, 96  # of each draft, and tokens of each: what self-rewarding judges by


def steps_of(recipe: MacpoRecipe, phase: Phase) -> int:
    """Updates of a phase, if every prompt has something to learn from."""
    tuning, rounds, n = recipe.tuning, recipe.rounds, recipe.data.prompts
    if phase.round == 0:
        n = recipe.data.prompts if phase.agent == STUDENT else recipe.data.labels
        return tuning.epochs_of(phase.agent, phase.side) * math.ceil(n / tuning.batch)
    kept = min(rounds.keep, len(recipe.agents.teachers)) if phase.agent == STUDENT else 1
    own = 0 if phase.agent == STUDENT else rounds.rehearse * recipe.data.labels
    return rounds.epochs * math.ceil((kept * n + own) / rounds.batch)


def written(recipe: MacpoRecipe) -> int:
    """Tokens that training samples at most."""
    return round(sum(one.rows * one.new * one.times for one in writing(recipe, Lengths())))


def macpo_passes(recipe: MacpoRecipe, lengths: Lengths) -> list[Pass]:
    """The passes of all phases, if every prompt has something to learn from. Labels count as answers do."""
    found = writing(recipe, lengths)
    for phase in schedule(recipe):
        found += _learning(recipe, phase, lengths)
    return found


def writing(recipe: MacpoRecipe, lengths: Lengths) -> list[Pass]:
    """What agents write: for every unlabelled prompt what `answers.py` may have written.

    Of drafts that are compared, best and worst are chosen from the same ones.
    """
    rounds, tuning, answer, n = recipe.rounds, recipe.tuning, recipe.writing.answer_tokens, recipe.data.prompts
    teachers = teacher_names(recipe)
    phases = schedule(recipe)
    learners = [*dict.fromkeys(phase.agent for phase in phases if phase.round)]  # in each round
    writers = {"mutual": [STUDENT, *teachers], "self": learners, "judged": learners, "weak": []}[rounds.positives]
    context = lengths.answer + lengths.prompt
    drafted = context + lengths.review + answer * lengths.written

    def wrote(whose: str, times: float, at: float = context, new: int = answer) -> Pass:
        return Pass(whose, "sample", n, at, new, times, None, lengths.written)

    def drafts(whose: str, times: int) -> list[Pass]:
        asked = times * rounds.candidates
        return [wrote(whose, asked), wrote(whose, asked * REVIEWS, drafted, REVIEW_TOKENS)]

    found: list[Pass] = []
    if tuning.labels == "consensus":
        found += [wrote(name, 1) for name in teachers[1:]]
    if tuning.labels != "human":
        found.append(wrote(teachers[0], 1 + (rounds.negatives == "twin" and rounds.count > 0)))
    if tuning.confident:  # the student's own answers, anew before every epoch but the first
        found.append(wrote(STUDENT, tuning.epochs_of(STUDENT, "+") - 1))
    for name in writers:
        found += drafts(name, rounds.count) if rounds.positives == "judged" else [wrote(name, rounds.count)]
    times = rounds.count if rounds.renew else min(1, rounds.count)
    for name in learners:
        if rounds.negatives == "judged":
            found += drafts(name, times) if rounds.positives != "judged" else []
        else:
            each = {"none": 0, "twin": 1, "self": 1, "prompt": 2, "decoding": rounds.candidates}[rounds.negatives]
            found += [wrote(name, times * each)] if each else []
    return found


def _learning(recipe: MacpoRecipe, phase: Phase, lengths: Lengths) -> list[Pass]:
    """The updates of a phase, and what is scored for it: a student's candidates, refusals by doubt, π_ref of pairs."""
    rounds, tuning, n = recipe.rounds, recipe.tuning, recipe.data.prompts
    context, answer, updates = lengths.answer + lengths.prompt, recipe.writing.answer_tokens, steps_of(recipe, phase)

    def does(kind: Kind, rows: float, times: float = 1) -> Pass:
        return Pass(phase.agent, kind, rows, context, answer, times, None, lengths.written)

    if phase.round == 0:
        own = tuning.confident > 0 and (phase.agent, phase.side) == (STUDENT, "+")
        return [does("learn", tuning.batch * (1 + own), updates)]
    sides = 1 if rounds.negatives == "none" else 2
    found = [does("learn", sides * rounds.batch, updates)]
    scored = sides * rounds.batch * updates / rounds.epochs if sides == 2 else 0.0
    if phase.agent == STUDENT and rounds.positives == "mutual":
        scored += len(recipe.agents.teachers) * n
    if rounds.refusals == "as-labelled":
        scored += n * (min(rounds.keep, len(recipe.agents.teachers)) if phase.agent == STUDENT else 1)
    return [*found, does("score", scored)] if scored else found
