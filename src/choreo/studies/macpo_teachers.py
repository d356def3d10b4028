"""`choreo study macpo-teachers`: how many teachers MACPO needs, and whether they must differ."""

from __future__ import annotations

from choreo.studies.shared.arms import Arm, Study
from choreo.studies.shared.paired import contrast_section
from choreo.studies.shared.rounds import paired_rounds, rewards_by_arm, rounds_of, ways_compared

# Registered (docs/studies/registered.md): the seeds of macpo-table.
SEEDS = tuple(range(60, 65))
TEACHERS = {
    "one": ["weak-llama"],
    "two": ["weak-llama", "weak-qwen"],
    "three": ["weak-llama", "weak-qwen", "weak-neox"],
    "three alike": ["weak-llama"] * 3,
}
ARMS = tuple(Arm(name, "macpo", ("ceiling=false", f"agents.teachers={bases}")) for name, bases in TEACHERS.items())
# The registered hypotheses: one family.
REGISTERED = ways_compared((("two", "one"), ("three", "one"), ("three", "two"), ("three", "three alike")), TEACHERS)


def run(study: Study) -> str:
    """Trains what is missing, writes study.html, study.md and answers.json; returns the verdicts."""
    runs = study.train(ARMS)
    rounds = {name: rounds_of(study, runs[name]) for name in TEACHERS}
    intro = (
        "The paper has one teacher degrade after its second round and three improve over all of them. Three teachers "
        "of one base show whether it is their number that helps, or that they differ."
    )
    sections = [
        rewards_by_arm(rounds, "How many teachers, and how different?", "teachers"),
        contrast_section("The hypotheses, as registered", paired_rounds(study, runs, REGISTERED)),
    ]
    return study.write("Teachers of MACPO", intro, sections)
