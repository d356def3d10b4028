"""`choreo study macpo-negatives`: negatives of MACPO from a negative agent, from a prompt, or from decoding."""

from __future__ import annotations

from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.paired import contrast_section
from choreo.studies.shared.rounds import paired_rounds, rewards_by_arm, rounds_of, ways_compared

# Registered (docs/studies/registered.md): the first three seeds of macpo-table.
SEEDS = tuple(range(60, 63))
NEGATIVES = ("twin", "prompt", "decoding")
ARMS = tuple(Arm(rule, "macpo", ("ceiling=false", f"rounds.negatives={rule}")) for rule in NEGATIVES)
CONTRASTS = ways_compared((("prompt", "twin"), ("decoding", "twin")), NEGATIVES)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {rule: rounds_of(study, runs[rule]) for rule in NEGATIVES}
    intro = "The paper leaves open whether negatives can be had without a negative agent. Here are two such ways."
    sections = [
        rewards_by_arm(rounds, "Other ways to make negatives", "negatives"),
        contrast_section("Negatives, tested", paired_rounds(study, runs, CONTRASTS)),
    ]
    return study.write("Negatives of MACPO", intro, sections)
