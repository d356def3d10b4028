"""The rewards of WaltzRL (arXiv 2510.08240, section 3), and variants for two holes in them.

    R_c = 1[c_T is neither unsafe nor over-refusing]              conversation_reward
    R_f = α·R_DIR·R_label + λ·R_label + γ·R_format                feedback_reward
    R_DIR = R_c(c_{t+1}) − R_c(c_t)                               improvement
    R_label = 1[the two labels of f_t are the verdict on c_t]     label_reward
    R_format = 1[f_t is JSON by the schema]                       format_reward

α, λ and γ are rewards.alpha, rewards.label (in stage 2 rewards.label_stage2) and rewards.gamma of a recipe.

Hole (a): R_DIR = −1 needs a satisfactory c_t, on which the labels that asked for a revision are wrong, so
R_label masks it and feedback that ruins a good answer costs nothing. `dir = "signed"` leaves a negative
R_DIR unmasked. That is not the default: a reviewer that begins with many false alarms is then punished out of raising
any (docs/studies/waltz.md). Hole (b): with λ = 0 in stage 2 a needless intervention that happens to do no harm earns
what correct silence earns. `label_stage2 > 0`, the default, pays for the silence. `dir = "published"` with
`label_stage2 = 0` is the paper.

A reward of one's own is a function of a `RewardedAction`, and takes the place of R_c or R_f: in a recipe

    [rewards]
    conversation = "mine.py:reward"
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from choreo.config.parts import REWARDS as REGISTRY
from choreo.errors import BadInput
from choreo.methods.waltz.chance import uniform
from choreo.methods.waltz.recipe import Rewards
from choreo.text.feedback import labels_right
from choreo.types import Episode, Feedback, Prompt, Verdict

Earned = tuple[float, dict[str, float]]  # a reward, and the weighted parts that it is the sum of


@dataclass(frozen=True, slots=True)
class RewardedAction:
    """One action of one agent and what came of it: all that a reward of one's own may look at. Plain data.

    prompt: what was asked. episode: the whole game, judged.
    round: t of the answer c_t, or of the feedback f_t on it.
    answer, verdict: the text of c_t, and the judge on it.
    review, feedback: the text of f_t and what it parsed to; "" and None of an answer that is rewarded, and None of a
        review that did not parse.
    revision, revised: the text of c_{t+1} and the judge on it, where there is one; of an answer that is rewarded None.
    stage: 1 or 2 of training.
    reward, parts: what the paper's equations give, R_c or R_f, and its weighted parts; None and {} where the verdict on
        c_t is undetermined and nothing is learnt from the action.
    """

    prompt: Prompt
    episode: Episode
    round: int
    answer: str
    verdict: Verdict
    stage: int
    reward: float | None
    parts: Mapping[str, float]
    review: str = ""
    feedback: Feedback | None = None
    revision: str | None = None
    revised: Verdict | None = None


Reward = Callable[[RewardedAction], Any]
"""A number; or (number, {part: number}), for the record; or None, where nothing is to be learnt from the action."""

REWARDS: dict[str, Reward] = {}  # by a name that a recipe may give beside module:object


def conversation_reward(verdict: Verdict) -> float:
    """R_c: 1 for an answer that is neither unsafe nor over-refusing, else 0; so too where the verdict is undetermined.

    `samples.answer_reward` leaves answers out that a fallible judge could not decide on, as rewards.undetermined says.
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


def own_reward(name: str, action: RewardedAction) -> Earned | None:
    """What the reward function `name`, as `module:object`, pays for an action.

    Raises BadInput where it gives no finite number.
    """
    given = REGISTRY.get(name)(action)
    if given is None:
        return None
    value, made_of = given if isinstance(given, tuple) and len(given) == 2 else (given, {"own": given})
    paid = (value, *made_of.values()) if isinstance(made_of, Mapping) else (None,)
    if not all(isinstance(number, numbers.Real) and math.isfinite(number) for number in paid):
        raise BadInput(
            f"reward {name!r}: expected a finite number, (number, {{part: number}}) or None, got {given!r:.60}"
        )
    return float(value), {part: float(number) for part, number in made_of.items()}


def _paid_improvement(dir: float, label: float, rewards: Rewards) -> float:
    if rewards.dir == "none":
        return 0.0
    masked = rewards.mask_by_label and not (rewards.dir == "signed" and dir < 0)
    return dir * label if masked else dir


def _noisy(verdict: Verdict, share: float, key: tuple[int | str, ...]) -> Verdict:
    """The verdict R_label is paid on: with probability `share`, one with one label flipped.

    It stays one that a review can say: satisfied becomes unsafe or over-refusing, each half of the time, and these two
    become satisfied.
    """
    if uniform("label noise", *key) >= share:
        return verdict
    if verdict.unsafe or (not verdict.overrefuse and uniform("flipped label", *key) < 0.5):
        return replace(verdict, unsafe=not verdict.unsafe)
    return replace(verdict, overrefuse=not verdict.overrefuse)
