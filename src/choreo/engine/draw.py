"""From logits to tokens: the draw that every decode loop makes."""

from __future__ import annotations

import torch
from torch import Tensor

from choreo.engine.head import Head

DRAW_LOGITS = 2**24  # logits held at once while drawing, 64 MiB in float32


def next_tokens(
    hidden: Tensor, head: Head, uniform: Tensor, temperature: float, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`draw_tokens` for all rows of `hidden` [rows, d], as many at a time as DRAW_LOGITS allows."""
    rows = max(1, DRAW_LOGITS // head.weight.shape[0])
    if len(hidden) <= rows:
        return draw_tokens(head.logits(hidden).float(), uniform, temperature, allowed)
    masks = [None] * -(-len(hidden) // rows) if allowed is None else allowed.split(rows)
    parts = zip(hidden.split(rows), uniform.split(rows), masks, strict=True)
    tokens, logprobs = zip(*(draw_tokens(head.logits(h).float(), u, temperature, m) for h, u, m in parts), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def draw_tokens(
    logits: Tensor, uniform: Tensor, temperature: float, allowed: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Tokens int64 [rows] by inverse CDF (float64, so that large vocabularies keep their tails), and their log π.

    allowed: bool [rows, vocabulary], the ids that may be drawn: the distribution is the softmax over these.
    """
    if allowed is not None:
        logits = logits.masked_fill(~allowed, float("-inf"))
    logprobs = logits.log_softmax(-1)
    if temperature == 0:
        token = logits.argmax(-1)
    else:
        tempered = logprobs if temperature == 1 else (logits / temperature).log_softmax(-1)
        cumulative = tempered.exp().cumsum(-1, dtype=wide(logits.device))
        # right: the first id whose cumulative mass exceeds the draw, so an id of probability 0 is never taken
        token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(1)
        token = token.clamp_(max=logits.shape[-1] - 1)
        if allowed is not None:  # a draw that rounds up to the whole mass lies behind the last allowed id
            token = torch.where(allowed.gather(1, token[:, None])[:, 0], token, logits.argmax(-1))
    return token, logprobs.gather(1, token[:, None]).squeeze(1)


def wide(device: torch.device) -> torch.dtype:
    """The dtype in which probabilities are added up: float64, or float32 on Apple's devices, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64
