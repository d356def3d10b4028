"""The decode loop: prefill once per distinct context, then one token for all rows at a time.

Contexts are padded on the right, so the prefill needs no mask, and a token's position is its place. The
t-th new token of every row goes into the same slot after the longest context; the gap between is masked.
Rows that have finished leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from choreo.engine.agent import Team
from choreo.engine.constrained_sample import constrained_sample
from choreo.engine.draw import next_tokens, wide
from choreo.engine.noise import uniforms
from choreo.engine.policies import Weights
from choreo.engine.prefill import gap_mask, prefill
from choreo.engine.requests import Completion, Request
from choreo.engine.step import Feed

COMPACT = 0.75  # finished rows are removed when less than this share of the rows is alive


@torch.inference_mode()
def sample(
    team: Team,
    agent: str | None,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    temperature: float,
    end_id: int,
    pad_id: int,
    slots: int,
) -> list[Completion]:
    """One completion per request, in order; see `Engine.sample`. At most `slots` cache slots (or one row) at a time.

    None is the reference, whose version is 0.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise ValueError(f"max_new_tokens must be >= 1 and temperature >= 0, got {max_new_tokens} and {temperature}")
    if any(not request.context for request in requests):
        raise ValueError("a context must have at least one token: nothing predicts the first")
    weights = {name: value.detach() for name, value in team.weights(agent).items()}
    version = 0 if agent is None else team.version[agent]
    result: list[Completion | None] = [None] * len(requests)
    for wave in _waves(team, requests, max_new_tokens, slots):
        chosen = [requests[i] for i in wave]
        if chosen[0].constraint is not None:
            done = constrained_sample(
                team,
                weights,
                chosen,
                chosen[0].constraint,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                end_id=end_id,
                pad_id=pad_id,
                version=version,
                compact=COMPACT,
            )
            for i, completion in zip(wave, done, strict=True):
                result[i] = completion
            continue
        ids, logprobs = _decode(team, weights, chosen, max_new_tokens, temperature, end_id, pad_id)
        ended = ids == end_id
        lengths = np.where(ended.any(1), ended.argmax(1) + 1, max_new_tokens)
        for row, i in enumerate(wave):
            n = int(lengths[row])
            finished = bool(ended[row, n - 1])
            result[i] = Completion(tuple(ids[row, :n].tolist()), tuple(logprobs[row, :n].tolist()), finished, version)
    return [completion for completion in result if completion is not None]


def _waves(team: Team, requests: Sequence[Request], max_new_tokens: int, slots: int) -> Iterator[list[int]]:
    """Indices of requests to decode together: of one constraint, and of similar length, so that rows have little
    padding.

    Models with sliding windows count the window in slots, so all contexts of their waves have one length.
    """
    kinds = list(dict.fromkeys(request.constraint for request in requests))
    order = sorted(
        range(len(requests)),
        key=lambda i: (kinds.index(requests[i].constraint), len(requests[i].context), requests[i].context),
    )
    wave: list[int] = []
    for i in order:
        length = len(requests[i].context)
        full = (len(wave) + 1) * (length + max_new_tokens) > slots
        uneven = not team.full_attention and wave and len(requests[wave[0]].context) != length
        other = wave and requests[wave[0]].constraint is not requests[i].constraint
        if wave and (full or uneven or other):
            yield wave
            wave = []
        wave.append(i)
    if wave:
        yield wave


def _decode(
    team: Team,
    weights: Weights,
    requests: Sequence[Request],
    max_new_tokens: int,
    temperature: float,
    end_id: int,
    pad_id: int,
) -> tuple[np.ndarray, np.ndarray]:
    """ids int64 and logprobs float32, both [rows, max_new_tokens]; what comes after end_id means nothing."""
    device = team.device
    start = prefill(team, weights, [request.context for request in requests], max_new_tokens, pad_id)
    hidden, head, step, cache, lengths, width, capacity = start
    noise = torch.from_numpy(uniforms([request.key for request in requests], max_new_tokens)).to(device, wide(device))
    alive = torch.arange(len(requests), device=device)  # which request each row of the batch belongs to
    ids = torch.full((len(requests), max_new_tokens), pad_id, device=device)
    logprobs = torch.zeros(len(requests), max_new_tokens, device=device)

    for t in range(max_new_tokens):
        token, logprob = next_tokens(hidden, head, noise[alive, t], temperature)
        ids[alive, t] = token
        logprobs[alive, t] = logprob
        # A finished row stays in the batch until the next compaction; what it writes after its end is cut off.
        live = (ids[alive, : t + 1] != end_id).all(1)
        count = int(live.sum())
        if t + 1 == max_new_tokens or count == 0:
            break
        if count < COMPACT * len(alive):
            rows = live.nonzero().squeeze(1)
            cache = [layer.take(rows, capacity) for layer in cache]
            alive, lengths, token = alive[rows], lengths[rows], token[rows]
        part = Feed(token[:, None], (lengths + t)[:, None], cache, gap_mask(lengths, width, t + 1))
        hidden = step(part)[0][:, 0]
    return ids.cpu().numpy(), logprobs.cpu().numpy()
