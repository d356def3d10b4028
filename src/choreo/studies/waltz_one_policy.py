"""`choreo study waltz-one-policy`: is a second agent needed? One model that reviews itself, against the pair."""

from __future__ import annotations

from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.compare_arms import compare_arms
from choreo.studies.shared.paired import contrasts

# Registered (docs/studies/registered.md): six fresh seeds.
SEEDS = tuple(range(90, 96))
PAIR, ONE, UNTRAINED = "waltz", "waltz-one-policy", "untrained"
ARMS = (Arm(PAIR), Arm(ONE, ONE))
REGISTERED = contrasts([(PAIR, ONE)], "F1", "ASR", "ORR")


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    sections = compare_arms(study, ARMS, REGISTERED, also={UNTRAINED: (PAIR, "collaboration-untrained")})
    intro = (
        "`waltz-one-policy` is one model that answers, reviews its own answer and revises it, and learns both roles. "
        "It has the games, tokens, rewards and number of updates of the pair."
    )
    return study.write("Is a second agent needed?", intro, sections)
