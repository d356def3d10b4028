"""The log-probability kernel: every log π in choreo that has a gradient or is compared with one comes from here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from choreo.engine.agent import Team, Weights
from choreo.engine.pack import Pack, pack
from choreo.engine.requests import Ids

# Logits held at once, 4 MiB in float32: small enough to stay near the cache, and as fast as one piece. A matrix
# product of fewer rows than MIN_ROWS would waste the processor, so large vocabularies hold more.
CHUNK_LOGITS, MIN_ROWS = 2**20, 256


def logprobs(team: Team, weights: Weights, batch: Pack) -> Tensor:
    """float32 [n]: log π of each action token of `batch`, differentiable in `weights`."""
    hidden, head, bias = team.run(weights, batch.inputs(), batch.where)
    return token_logprobs(hidden, head, bias, batch.targets)


def token_logprobs(
    hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor, rows: int | None = None
) -> Tensor:
    """float32 [n] = log softmax(hidden · headᵀ + bias)[targets].

    hidden: [n, d]; head: [vocabulary, d]; targets: int64 [n]. The logits of `rows` tokens exist at
    a time, in the backward pass too: a chunk is computed again there instead of being kept.
    """
    rows = rows or max(MIN_ROWS, CHUNK_LOGITS // head.shape[0])
    if len(targets) <= rows:
        return _chunk(hidden, head, bias, targets)
    parts = []
    for h, t in zip(hidden.split(rows), targets.split(rows), strict=True):
        if torch.is_grad_enabled():
            parts.append(checkpoint(_chunk, h, head, bias, t, use_reentrant=False, preserve_rng_state=False))
        else:
            parts.append(_chunk(h, head, bias, t))
    return torch.cat(parts)


def _chunk(hidden: Tensor, head: Tensor, bias: Tensor | None, targets: Tensor) -> Tensor:
    return -F.cross_entropy(F.linear(hidden, head, bias).float(), targets, reduction="none")


@torch.no_grad()
def score(
    team: Team, agent: str | None, pairs: Sequence[tuple[Ids, Ids]], micro_tokens: int = 16384
) -> list[tuple[float, ...]]:
    """log π(ids | context) per id for every (context, ids), in order; None is the reference."""
    weights = team.weights(agent)
    result: list[tuple[float, ...]] = [()] * len(pairs)
    units = [(pair,) for pair in pairs]
    for batch in pack(units, micro_tokens=micro_tokens, share=team.full_attention, device=team.device):
        values = logprobs(team, weights, batch).tolist()
        start = 0
        for i in batch.units:
            end = start + len(pairs[i][1])
            result[i] = tuple(values[start:end])
            start = end
    return result


@torch.no_grad()
def features(team: Team, contexts: Sequence[Ids], micro_tokens: int = 16384) -> Tensor:
    """float32 [len(contexts), d] on the CPU: the reference's last hidden state at each context's last token."""
    result = torch.empty(len(contexts), team.decoder.model.config.get_text_config().hidden_size)
    units = [((context, (0,)),) for context in contexts]  # the slot that would predict one more token
    for batch in pack(units, micro_tokens=micro_tokens, share=team.full_attention, device=team.device):
        hidden, _, _ = team.run({}, batch.inputs(), batch.where)
        result[batch.units] = hidden.float().cpu()
    return result
