"""The log-probability kernel. Every log π that has a gradient, or is compared with one that has, comes from here."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.constraint import mask_table
from choreo.engine.head import token_logprobs
from choreo.engine.pack import Pack, action_places, pack
from choreo.engine.policies import Weights
from choreo.engine.requests import Ids, Scorable
from choreo.engine.sharded import Sharded


def logprobs(team: Team, weights: Weights | Sharded, batch: Pack, masks: Tensor | None = None) -> Tensor:
    """float32 [n]: log π of each action token of `batch`, differentiable in `weights`.

    masks: of the constraint, where the batch has constrained turns; their log π is the constrained distribution's.
    """
    hidden, head = team.run(weights, batch.inputs(), batch.where)
    if batch.rows is None:
        return token_logprobs(hidden, head, batch.targets)
    if masks is None:
        raise ValueError("turns with choices are scored under the masks of their constraint, and none were given")
    return token_logprobs(hidden, head, batch.targets, (mask_table(masks, len(head.weight), hidden), batch.rows))


@torch.no_grad()
def score(
    team: Team,
    agent: str | None,
    pairs: Sequence[Scorable],
    micro_tokens: int = 16384,
    masks: Tensor | None = None,
) -> list[tuple[float, ...]]:
    """log π(ids | context) per id for every (context, ids), in order; None is the reference. A forced id has 0."""
    return score_under(team, team.weights(agent), pairs, micro_tokens, masks)


@torch.no_grad()
def score_under(
    team: Team, weights: Weights, pairs: Sequence[Scorable], micro_tokens: int = 16384, masks: Tensor | None = None
) -> list[tuple[float, ...]]:
    """`score` of the policy that `weights` make of the base."""
    result: list[tuple[float, ...]] = [()] * len(pairs)
    units = [(pair,) for pair in pairs]
    for batch in pack(units, micro_tokens=micro_tokens, share=team.shares(units), device=team.device):
        values = iter(logprobs(team, weights, batch, masks).tolist())
        for i in batch.units:
            scores = [0.0] * len(pairs[i][1])
            for place in action_places(pairs[i]):
                scores[place] = next(values)
            result[i] = tuple(scores)
    return result


@torch.no_grad()
def last_states(team: Team, contexts: Sequence[Ids], micro_tokens: int = 16384) -> Tensor:
    """float32 [len(contexts), d] on the CPU: the reference's last hidden state at each context's last token."""
    result = torch.empty(len(contexts), team.decoder.model.config.get_text_config().hidden_size)
    units = [
        ((context, (0,)),) for context in contexts
    ]  # one target after each context, whose slot is the context's last token
    for batch in pack(units, micro_tokens=micro_tokens, share=team.shares(units), device=team.device):
        hidden, _ = team.run({}, batch.inputs(), batch.where)
        result[batch.units] = hidden.float().cpu()
    return result
