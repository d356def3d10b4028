"""From hidden states to log-probabilities: the output layer, and the only place where logits exist in training.

Logits are the largest tensor of a language model: with a vocabulary of 128k they take 30 times as much memory as hidden
states of width 4096. So they are computed in pieces, and computed again in the backward pass instead of being kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits held at once on a CPU: 4 MiB in float32, about the size of its cache, and as fast as one piece. An
# accelerator needs more work per call. A piece has at least ROWS tokens, because a matrix product of fewer is slow; so
# a vocabulary that does not fit is cut into pieces as well.
CPU_LOGITS, ACCELERATOR_LOGITS, ROWS = 2**20, 2**24, 256


class Head(NamedTuple):
    """The output layer. logits = scale · (hidden · weightᵀ + bias), then cap · tanh(logits / cap) if there is a cap.

    weight: [vocabulary, d]; bias: [vocabulary] or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """[n, vocabulary] of hidden states [n, d], in the model's dtype."""
        logits = F.linear(hidden, self.weight, self.bias)
        if self.scale != 1:
            logits = logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def part(self, start: int, end: int) -> Head:
        """The head of the ids from `start` up to `end`."""
        bias = None if self.bias is None else self.bias[start:end]
        return self._replace(weight=self.weight[start:end], bias=bias)


def shaping(config: Any) -> tuple[float, float | None]:
    """(scale, cap) of a model's logits, from the fields of transformers' configurations."""
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None)


def tempered(scale: float, cap: float | None, temperature: float) -> tuple[float, float | None]:
    """The (scale, cap) of logits / temperature: cap · tanh(scale · x / cap) / τ has scale / τ and cap / τ."""
    return scale / temperature, None if cap is None else cap / temperature


Allowed = tuple[Tensor, Tensor]
"""A table of masks, bool [rows, vocabulary], and int64 [n]: the row of each token. The softmax of a token is over the
ids that its row allows."""


def token_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    allowed: Allowed | None = None,
    *,
    cells: int | None = None,
    least: int = ROWS,
) -> Tensor:
    """[n], float32 (float64 where `hidden` is): log softmax(head(hidden))[targets], over the allowed ids.

    hidden: [n, d]; targets: int64 [n]. At most `cells` logits exist at a time, in the backward pass too. A piece has at
    least `least` tokens.
    """
    cells = cells or (CPU_LOGITS if hidden.device.type == "cpu" else ACCELERATOR_LOGITS)
    vocabulary = head.weight.shape[0]
    if vocabulary * least > cells:
        tile = (least, max(1, cells // least))
        return _Tiled.apply(hidden, head.weight, head.bias, targets, head.scale, head.cap, tile, allowed)
    rows = cells // vocabulary
    if len(targets) <= rows:
        return _chunk(hidden, head, targets, allowed)
    parts = []
    owns: Sequence[Allowed | None] = [None] * -(-len(targets) // rows)
    if allowed is not None:
        owns = [(allowed[0], row) for row in allowed[1].split(rows)]
    for h, t, own in zip(hidden.split(rows), targets.split(rows), owns, strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk, h, head, t, own, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_chunk(h, head, t, own))
    return torch.cat(parts)


def _chunk(hidden: Tensor, head: Head, targets: Tensor, allowed: Allowed | None) -> Tensor:
    logits = _wide(head.logits(hidden))
    if allowed is not None:
        table, row = allowed
        logits = logits.masked_fill(~table[row], float("-inf"))
    return -F.cross_entropy(logits, targets, reduction="none")


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _Tiled(torch.autograd.Function):
    """`_chunk` over tiles of `tile` (tokens, ids): the softmax's sum is gathered tile by tile."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, scale, cap, tile, allowed):  # type: ignore[override]
        head, (height, columns) = Head(weight, bias, scale, cap), tile
        sums: list[Tensor] = []
        chosen: list[Tensor] = []
        for first in range(0, max(1, len(hidden)), height):
            rows, wanted = hidden[first : first + height], targets[first : first + height]
            total = rows.new_full((len(rows),), float("-inf"), dtype=torch.promote_types(rows.dtype, torch.float32))
            own = torch.zeros_like(total)
            for start in range(0, len(weight), columns):
                logits = _wide(head.part(start, start + columns).logits(rows))
                if allowed is not None:
                    logits.masked_fill_(_masked(allowed, first, height, start, columns), float("-inf"))
                total = torch.logaddexp(total, logits.logsumexp(-1))
                inside, place = _within(wanted, start, logits.shape[1])
                own = torch.where(inside, logits.gather(1, place[:, None])[:, 0], own)
            sums.append(total)
            chosen.append(own)
        ctx.save_for_backward(hidden, weight, bias, targets, torch.cat(sums))
        ctx.settings = (scale, cap, tile, allowed)
        return torch.cat(chosen) - torch.cat(sums)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[override]
        """∂ log p(target) / ∂ logit = 1[target] − p, with the logits computed again."""
        hidden, weight, bias, targets, sums = ctx.saved_tensors
        scale, cap, (height, columns), allowed = ctx.settings
        head, wide = Head(weight, bias, scale, cap), torch.promote_types(hidden.dtype, torch.float32)
        for_hidden = torch.zeros_like(hidden, dtype=wide)
        for_weight = torch.zeros_like(weight, dtype=wide) if ctx.needs_input_grad[1] else None
        for_bias = torch.zeros_like(bias, dtype=wide) if ctx.needs_input_grad[2] else None
        for first in range(0, len(hidden), height):
            rows = slice(first, first + height)
            own, given = hidden[rows], gradient[rows, None]
            for start in range(0, len(weight), columns):
                ids = slice(start, start + columns)
                logits = _wide(head.part(start, start + columns).logits(own))
                inside, place = _within(targets[rows], start, logits.shape[1])
                slope = (logits - sums[rows, None]).exp_().mul_(-given)
                slope.scatter_add_(1, place[:, None], torch.where(inside, gradient[rows], 0)[:, None])
                if cap is not None:
                    slope.mul_(1 - (logits / cap).square_())
                if allowed is not None:  # last, since logits that are not allowed may be larger than the sum
                    slope.masked_fill_(_masked(allowed, first, height, start, columns), 0)
                slope = slope.mul_(scale).to(hidden.dtype)
                for_hidden[rows] += slope @ weight[ids]
                if for_weight is not None:
                    for_weight[ids] += slope.T @ own
                if for_bias is not None:
                    for_bias[ids] += slope.sum(0)
        found = [None if g is None else g.to(like) for g, like in ((for_weight, weight), (for_bias, bias))]
        return for_hidden.to(hidden), *found, None, None, None, None, None


def _masked(allowed: Allowed, first: int, height: int, start: int, columns: int) -> Tensor:
    """bool [rows, ids] of a tile: what is not allowed."""
    table, row = allowed
    return ~table[row[first : first + height], start : start + columns]


def _within(targets: Tensor, start: int, width: int) -> tuple[Tensor, Tensor]:
    """Which targets lie in the tile of `width` ids from `start` on, and their places in it (0 for the others)."""
    place = targets - start
    inside = (place >= 0) & (place < width)
    return inside, torch.where(inside, place, 0)
