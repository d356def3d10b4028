"""Losses. Each returns a SUM and a COUNT; the learner divides once, by the count of the whole batch.

A mean taken here would be a mean of means as soon as a batch is split over micro-batches or ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Actions:
    """The action tokens of one micro-batch, flat, in the order of sequences and ids.

    logprobs: float32 [n], log π_θ, with gradient. old, reference: float32 [n], log π_old and log π_ref.
    advantages: float32 [n]. Those three are None when the samples do not carry them.
    sequence: int64 [n], which sequence each token belongs to; sequences: how many there are.
    """

    logprobs: Tensor
    sequence: Tensor
    sequences: int
    old: Tensor | None = None
    reference: Tensor | None = None
    advantages: Tensor | None = None

    def given(self, name: Literal["old", "reference", "advantages"]) -> Tensor:
        """The field, or ValueError when the samples lack it."""
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"this loss needs {name}, and the samples have none")
        return value

    def per_sequence(self, values: Tensor) -> Tensor:
        """[sequences]: the sum of `values` [n] over each sequence's tokens."""
        return values.new_zeros(self.sequences).index_add(0, self.sequence, values)


class Terms(NamedTuple):
    """total: the SUM, differentiable. over: the COUNT that divides it. record: more sums over that count, to report."""

    total: Tensor
    over: Tensor
    record: Mapping[str, Tensor] = {}


Loss = Callable[[Actions], Terms]


@dataclass(frozen=True)
class PolicyLoss:
    """Clipped policy gradient: −Σ m·min(ρA, clip(ρ, 1−ε, 1+ε_high)A), ρ = π_θ/π_old per token (PPO, arXiv 1707.06347).

    clip, clip_high: ε and ε_high (the latter defaults to ε; DAPO takes 0.28).
    kl: β of the k2 term β·½(log π_θ/π_ref)², whose gradient is that of the reverse KL on-policy
        (arXiv 2501.03262). k1 belongs in the reward: as a loss its expected gradient is zero.
    divide: "tokens": by the number of action tokens (REINFORCE++, DAPO); "sequences": each sequence's
        mean, by the number of sequences (GRPO); an int L: by L per sequence (Dr.GRPO's constant length).
    Records `clip_fraction`, the share of the objective's weight where the clip cut the gradient.
    """

    clip: float = 0.2
    clip_high: float | None = None
    kl: float = 0.0
    divide: Literal["tokens", "sequences"] | int = "tokens"

    def __call__(self, actions: Actions) -> Terms:
        """The clipped loss of a micro-batch. Raises ValueError without advantages, π_old or (with kl) π_ref."""
        advantages = actions.given("advantages")
        ratio = (actions.logprobs - actions.given("old")).exp()
        clipped = ratio.clamp(1 - self.clip, 1 + (self.clip if self.clip_high is None else self.clip_high))
        loss = -torch.minimum(ratio * advantages, clipped * advantages)
        if self.kl:
            loss = loss + self.kl * 0.5 * (actions.logprobs - actions.given("reference")).square()
        cut = (ratio * advantages > clipped * advantages).to(loss)
        if self.divide == "tokens":
            return Terms(loss.sum(), torch.tensor(float(len(loss))), {"clip_fraction": cut.sum()})
        if self.divide == "sequences":
            lengths = actions.per_sequence(torch.ones_like(loss)).clamp(min=1)
            count = torch.tensor(float(actions.sequences))
            means = [actions.per_sequence(values) / lengths for values in (loss, cut)]
            return Terms(means[0].sum(), count, {"clip_fraction": means[1].sum()})
        count = torch.tensor(float(actions.sequences * self.divide))
        return Terms(loss.sum(), count, {"clip_fraction": cut.sum()})

    def shares(self, lengths: Sequence[int]) -> list[float]:
        """By sequence, what each of its tokens weighs in the loss once that is divided: total / over is the sum over
        the tokens of share · loss. lengths: of all sequences of the batch."""
        if self.divide == "tokens":
            return [1 / sum(lengths)] * len(lengths)
        each = lengths if self.divide == "sequences" else [self.divide] * len(lengths)
        return [1 / (len(lengths) * max(length, 1)) for length in each]


def sft_loss(actions: Actions) -> Terms:
    """Negative log-likelihood per token: −Σ w·log π_θ over Σ w. w is `advantages` where samples carry any, else 1."""
    weights = torch.ones_like(actions.logprobs) if actions.advantages is None else actions.advantages
    return Terms(-(weights * actions.logprobs).sum(), weights.sum())


@dataclass(frozen=True)
class DPOLoss:
    """−log σ(β·[(log π_θ/π_ref)(chosen) − (log π_θ/π_ref)(rejected)]) on summed log-probabilities (arXiv 2305.18290).

    Units are pairs of samples: chosen, then rejected. Divided by the number of pairs.
    sft: weight of −log π_θ(chosen) over `sft_length`, added to each pair's loss.
    sft_length: None: the answer's own, so that every answer weighs the same and a token of a short one more; or a
        constant, such as the mean over all chosen answers, so that every token weighs the same.
    Records `accuracy` (share of pairs with a positive margin; a tie counts half) and `margin` (β·[…], in nats).
    """

    beta: float = 0.1
    sft: float = 0.0
    sft_length: float | None = None

    def __call__(self, actions: Actions) -> Terms:
        """The DPO loss of a micro-batch. Raises ValueError for an odd number of samples, or without π_ref."""
        if actions.sequences % 2:
            raise ValueError("DPO needs pairs of samples: chosen, then rejected")
        gain = actions.per_sequence(actions.logprobs - actions.given("reference")).view(-1, 2)
        margin = self.beta * (gain[:, 0] - gain[:, 1])
        loss = -F.logsigmoid(margin)
        if self.sft:
            own = actions.per_sequence(torch.ones_like(actions.logprobs)).clamp(min=1)
            mean = actions.per_sequence(actions.logprobs) / (own if self.sft_length is None else self.sft_length)
            loss = loss - self.sft * mean.view(-1, 2)[:, 0]
        accuracy = 0.5 * (margin.detach().sign() + 1)
        count = torch.tensor(float(len(margin)))
        return Terms(loss.sum(), count, {"accuracy": accuracy.sum(), "margin": margin.detach().sum()})
