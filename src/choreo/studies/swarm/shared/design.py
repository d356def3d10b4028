"""What a SWARM study gives to be played and reported: its arms, its claims, and the words of its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from choreo.studies.swarm.shared.folder import ScenarioArm
from choreo.swarm.annotations import Claim
from choreo.swarm.answers import Answers

STATISTICS = (
    "Every arm is played under the same seeds; a claim is a contrast between two arms on those pairs. Intervals are "
    "95 %, Student's t over the pairs and, where there are several trainings, over the trainings, whichever is wider. "
    "The unit is a whole run of the simulation, by training and seed: figures of single interactions are not kept, so "
    "nothing is paired by prompt. Seeds draw from the same answers to the same prompts, so that with one training "
    "interval and verdict describe that run on those prompts, and are marked so. p is of the difference against the "
    "claim's margin, two-sided, the larger of the two, and corrected for all planned claims that were tested (Holm); "
    "that of an exploratory one, for all. Supported: told from the margin on the claim's side; refuted: told from it "
    "on the other side, so that an effect smaller than the margin refutes too. Minimum detectable: how far from the "
    "margin a difference has to lie to be told from it in four of five repetitions, by the standard errors found "
    "here and at "
    "the strictest step of the correction. Metrics are recomputed from the interactions, pooled over them and NaN "
    "over none."
)
REPLAYED = (
    "One interaction is one held-out prompt answered. Answers were written once per checkpoint, at the temperature of "
    "evaluation, and replayed through the arms; p is the probe's and set directly, v̂ = logit(p)/2 cut to [−1, 1]. "
    "The probe is a logistic regression over words, fitted on {fitted} answers that the same runs recorded on prompts "
    "of the training half, and on none that it judges here; p = P(satisfactory) + P(over-refusing)/2. Truth is the "
    "exact judge's, which was the training reward. Harm by attackers is counted among what the agents offered; "
    "metrics are over interactions that honest agents began."
)


@dataclass(frozen=True)
class ReportText:
    """The words of a study's report that no figure changes. methods: may name {fitted}, the answers of the probe."""

    title: str
    lead: str
    methods: str
    limitations: str
    next: str


@dataclass(frozen=True)
class Design:
    """What a study plays.

    claims: of a study that tests no annotation, about arms by their names. answers: judged answers by name, whose
    calibration the report shows. fitted: the most answers that a probe was fitted on. sweeps: for each map of the
    report the names of its arms, rows by breaker and columns by security.
    """

    arms: Sequence[ScenarioArm]
    claims: Sequence[Claim] = ()
    answers: Mapping[str, Answers] = field(default_factory=dict)
    fitted: int = 0
    sweeps: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
