"""What the report of each SWARM study says in words that no figure changes."""

from __future__ import annotations

STATISTICS = (
    "Every arm is played under the same seeds; a claim is a contrast between two arms on those pairs. Intervals are "
    "95 %, Student's t over the pairs and, where there are several trainings, over the trainings, whichever is "
    "wider. Seeds draw from the same answers to the same prompts, so that with one training interval and verdict "
    "describe that run on those prompts, and are marked so. p is of the difference against the claim's margin, "
    "two-sided, the larger of the two, and corrected for all planned claims that were tested (Holm); that of an "
    "exploratory one, for all. Supported: told from the margin on the claim's side; refuted: told from it on the other "
    "side, so that an effect smaller than the margin refutes too. Metrics are recomputed from the interactions, "
    "pooled over them and NaN over none."
)
IN_THE_LOOP = (
    "One interaction is one held-out prompt answered. Answers were written once per checkpoint, at the temperature of "
    "evaluation, and replayed through the arms; p is the probe's and set directly, v̂ = logit(p)/2 cut to [−1, 1]. "
    "The probe is a logistic regression over words, fitted on {fitted} answers that the same runs recorded on prompts "
    "of the training half, and on none that it judges here; p = P(satisfactory) + P(over-refusing)/2. Truth is the "
    "exact judge's, which was the training reward. Harm by attackers is counted among what the agents offered; "
    "metrics are over interactions that honest agents began."
)
TITLES = {
    "waltz": "WaltzRL under SWARM",
    "macpo": "MACPO under SWARM",
    "governance": "Governance: baseline against modified",
}
LEADS = {
    "waltz": (
        "The claims of WaltzRL (arXiv 2510.08240) put to a trained pair that answers users and attackers under "
        "governance."
    ),
    "macpo": "The claims of MACPO (arXiv 2410.07672) put to a student's rounds before its teachers.",
    "governance": "Does tighter governance make what is accepted less harmful, and what does it cost?",
}
METHODS = {
    "waltz": (
        f"{IN_THE_LOOP} "
        "Users and attackers accept whatever does not refuse them. The moderator reviews, and the refinery withholds, "
        "as large a share of the untrained model's answers as the trained pair asks to revise. The moderator and the "
        "security levers act after an answer was accepted, on costs and reputations: they withhold none, so that the "
        "moderator cannot move ASR, ORR or toxicity, nor the security levers but by shutting an agent out for what "
        "follows. Arms with rework .2 give SWARM's rework signal its own weight, by which a repaired answer looks "
        "worse than one that was right by luck."
    ),
    "macpo": (
        f"{IN_THE_LOOP} "
        "A teacher accepts with probability σ(β Σ log π/π_base) of the student's answer, its own implied reward; a "
        "quorum accepts when most teachers would. The negative twin plays beside the student."
    ),
    "governance": (
        "Scripted agents of SWARM, whose p follows from their type. Six settings, the circuit breaker's threshold "
        "(.35, .6, .8) by the security levers (off, on), beside each scenario as published and, where a tax misleads "
        "the collusion detector, without its tax."
    ),
}
LIMITS = {
    "waltz": (
        "The prompts are a small closed language and the agents a million parameters. The probe errs, by arm and as "
        "tabled, and its errors are in every metric that has a p. Seeds draw from the same answers again, so that "
        "they say little about training; that is what several runs are for. Users judge by refusal alone and do not "
        "learn. SWARM's moderator and refinery stand for safeguards, and are none that the paper measured."
    ),
    "macpo": (
        "As for every study here the prompts are a small closed language. Teachers' scores are taken as acceptance, "
        "which no paper does. The twin is the student's alone. Arms whose runs were not given are not testable."
    ),
    "governance": (
        "No trained agent takes part: SWARM draws p by an agent's type and reputation. The tightest and the loosest "
        "setting are this study's choice. 1.9.0 has levers without effect and a detector that a tax misleads; "
        "docs/architecture.md names what is guarded against."
    ),
}
NEXT = {
    "waltz": (
        "A probe that is fitted on the trained pair's kind of answers as well; users that come back and remember; "
        "attacks on the feedback agent."
    ),
    "macpo": ("Rounds beyond the third; teachers that vote before the student learns, not after; a probe per round."),
    "governance": ("The same sweep with trained agents is in `study waltz`; then levers that react within an epoch."),
}
