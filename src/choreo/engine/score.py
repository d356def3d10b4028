"""The log-probability kernel. Every log π that has a gradient, or is compared with one that has, comes from here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.head import token_logprobs
from choreo.engine.pack import Pack, pack
from choreo.engine.policies import Weights
from choreo.engine.requests import Ids


def logprobs(team: Team, weights: Weights, batch: Pack) -> Tensor:
    """float32 [n]: log π of each action token of `batch`, differentiable in `weights`."""
    hidden, head = team.run(weights, batch.inputs(), batch.where)
    return token_logprobs(hidden, head, batch.targets)


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
def last_states(team: Team, contexts: Sequence[Ids], micro_tokens: int = 16384) -> Tensor:
    """float32 [len(contexts), d] on the CPU: the reference's last hidden state at each context's last token."""
    result = torch.empty(len(contexts), team.decoder.model.config.get_text_config().hidden_size)
    units = [
        ((context, (0,)),) for context in contexts
    ]  # one target after each context, whose slot is the context's last token
    for batch in pack(units, micro_tokens=micro_tokens, share=team.full_attention, device=team.device):
        hidden, _ = team.run({}, batch.inputs(), batch.where)
        result[batch.units] = hidden.float().cpu()
    return result
