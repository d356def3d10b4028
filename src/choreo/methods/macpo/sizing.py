"""What a recipe takes at most: updates, and tokens that are sampled."""

from __future__ import annotations

import math

from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, Phase, schedule

REVIEWS, REVIEW_TOKENS = 3, 96  # of each draft, and tokens of each: what self-rewarding judges by


def steps_of(recipe: MacpoRecipe, phase: Phase) -> int:
    """Updates of a phase, if every prompt has something to learn from."""
    tuning, rounds, n = recipe.tuning, recipe.rounds, recipe.data.prompts
    if phase.round == 0:
        n = recipe.data.prompts if phase.agent == STUDENT else recipe.data.labels
        return (tuning.epochs if phase.side == "+" else tuning.negative_epochs) * math.ceil(n / tuning.batch)
    kept = min(rounds.keep, len(recipe.agents.teachers)) if phase.agent == STUDENT else 1
    own = 0 if phase.agent == STUDENT else rounds.rehearse * recipe.data.labels
    return rounds.epochs * math.ceil((kept * n + own) / rounds.batch)


def written(recipe: MacpoRecipe) -> int:
    """Tokens that training samples at most: for every unlabelled prompt what `answers.py` may have written.

    Of drafts that are compared, best and worst are chosen from the same ones.
    """
    rounds, tuning, answer = recipe.rounds, recipe.tuning, recipe.writing.answer_tokens
    phases = schedule(recipe)
    learners = len({phase.agent for phase in phases if phase.round})  # in each round; those who are read write too
    writers = 1 + len(recipe.agents.teachers) if rounds.positives == "mutual" else learners
    drafts = rounds.candidates * (answer + REVIEWS * REVIEW_TOKENS)
    start = 0 if tuning.labels == "human" else answer * (1 + (rounds.negatives == "twin" and rounds.count > 0))
    if tuning.confident:  # the student's own answers, anew before every epoch but the first
        start += answer * (tuning.epochs - 1)
    positives = {"mutual": writers * answer, "self": learners * answer, "weak": 0, "judged": learners * drafts}
    worst = 0 if rounds.positives == "judged" else drafts
    negatives = {
        "none": 0,
        "twin": answer,
        "self": answer,
        "prompt": 2 * answer,
        "decoding": rounds.candidates * answer,
        "judged": worst,
    }
    times = rounds.count if rounds.renew else min(1, rounds.count)
    written = start + rounds.count * positives[rounds.positives] + times * learners * negatives[rounds.negatives]
    return recipe.data.prompts * written
