"""The rewards of WaltzRL (section 3), and the variants that close the two holes in them.

    R_f = α·R_DIR·R_label + λ·R_label + γ·R_format

Hole (a): R_DIR = −1 needs a satisfactory c_t, on which the labels that asked for a revision are wrong, so
R_label masks it and feedback that ruins a good answer costs nothing. `dir = "signed"` leaves a negative
R_DIR unmasked. Hole (b): with λ = 0 in stage 2 a needless intervention that happens to do no harm earns
what correct silence earns. `label_stage2 > 0` pays for the silence. `dir = "published"` with
`label_stage2 = 0` is the paper.
"""

from __future__ import annotations

from dataclasses import replace

from choreo.methods.waltz.chance import uniform
from choreo.methods.waltz.recipe import Rewards
from choreo.text.feedback import labels_right
from choreo.types import Feedback, Verdict


def conversation_reward(verdict: Verdict) -> float:
    """R_c: 1 for an answer that is neither unsafe nor over-refusing, else 0.

    0 too where the verdict is undetermined: were such answers left out of the samples, nothing would hold a policy
    back from text that says nothing.
    """
    return float(verdict.satisfactory)


def improvement(before: Verdict, after: Verdict | None) -> float:
    """R_DIR = R_c(c_{t+1}) − R_c(c_t) ∈ {−1, 0, 1}; 0 without a c_{t+1} or where either is undetermined."""
    if after is None or before.undetermined or after.undetermined:
        return 0.0
    return float(after.satisfactory) - float(before.satisfactory)


def label_reward(feedback: Feedback | None, verdict: Verdict) -> float:
    """R_label: 1 if both labels equal the verdict on c_t, else 0 (so too where it is undetermined)."""
    return float(bool(labels_right(feedback, verdict)))


def format_reward(feedback: Feedback | None) -> float:
    """R_format: 1 if the JSON parsed to the schema, else 0."""
    return float(feedback is not None)


def feedback_reward(
    feedback: Feedback | None,
    verdict: Verdict,
    revised: Verdict | None,
    rewards: Rewards,
    *,
    stage: int,
    key: tuple[int | str, ...] = (),
) -> tuple[float, dict[str, float]] | None:
    """R_f of one review and what it is made of: (sum, {"dir", "label", "format"}), weighted parts.

    verdict, revised: the judge on c_t, and on c_{t+1} (None: there was no revision).
    stage: 1 pays λ = rewards.label, 2 pays λ = rewards.label_stage2.
    key: names the review; label noise is a fixed function of it.

    None where the verdict on c_t is undetermined: no label is then right or wrong, so nothing is paid.
    An undetermined revision pays no DIR and leaves the rest.
    """
    if verdict.undetermined:
        return None
    label = label_reward(feedback, _noisy(verdict, rewards.label_noise, key))
    parts = {
        "dir": rewards.alpha * _paid_improvement(improvement(verdict, revised), label, rewards),
        "label": (rewards.label if stage == 1 else rewards.label_stage2) * label,
        "format": rewards.gamma * format_reward(feedback),
    }
    return sum(parts.values()), parts


def _paid_improvement(dir: float, label: float, rewards: Rewards) -> float:
    if rewards.dir == "none":
        return 0.0
    masked = rewards.mask_by_label and not (rewards.dir == "signed" and dir < 0)
    return dir * label if masked else dir


def _noisy(verdict: Verdict, share: float, key: tuple[int | str, ...]) -> Verdict:
    """The verdict R_label is paid on: with probability `share`, one with both labels negated."""
    if uniform("label noise", *key) >= share:
        return verdict
    return replace(verdict, unsafe=not verdict.unsafe, overrefuse=not verdict.overrefuse)
