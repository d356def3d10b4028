"""The decode loop: prefill once per distinct context, then one token for all rows at a time.

Contexts are padded on the right, so the prefill needs no mask, and a token's position is its place. The
t-th new token of every row goes into the same slot after the longest context; the gap between is masked.
Rows that have finished leave the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.cache import Slots, as_cache
from choreo.engine.head import Head
from choreo.engine.noise import uniforms
from choreo.engine.policies import Weights
from choreo.engine.requests import Completion, Request
from choreo.engine.step import Feed, step_of

DRAW_LOGITS = 2**24  # logits held at once while drawing, 64 MiB in float32
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
        ids, logprobs = _decode(team, weights, chosen, max_new_tokens, temperature, end_id, pad_id)
        ended = ids == end_id
        lengths = np.where(ended.any(1), ended.argmax(1) + 1, max_new_tokens)
        for row, i in enumerate(wave):
            n = int(lengths[row])
            finished = bool(ended[row, n - 1])
            result[i] = Completion(tuple(ids[row, :n].tolist()), tuple(logprobs[row, :n].tolist()), finished, version)
    return [completion for completion in result if completion is not None]


def _waves(team: Team, requests: Sequence[Request], max_new_tokens: int, slots: int) -> Iterator[list[int]]:
    """Indices of requests to decode together: of similar length, so that rows have little padding.

    Models with sliding windows count the window in slots, so all contexts of their waves have one length.
    """
    order = sorted(range(len(requests)), key=lambda i: (len(requests[i].context), requests[i].context))
    wave: list[int] = []
    for i in order:
        length = len(requests[i].context)
        full = (len(wave) + 1) * (length + max_new_tokens) > slots
        uneven = not team.full_attention and wave and len(requests[wave[0]].context) != length
        if wave and (full or uneven):
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
    contexts = list(dict.fromkeys(request.context for request in requests))
    place = {context: row for row, context in enumerate(contexts)}
    lengths = torch.tensor([len(context) for context in contexts], device=device)
    width = int(lengths.max())
    padded = torch.tensor([[*context, *[pad_id] * (width - len(context))] for context in contexts], device=device)
    last = torch.arange(len(contexts), device=device) * width + lengths - 1

    capacity = width + max_new_tokens
    cache = [Slots(capacity) for _ in range(team.layers)]
    inputs = {"input_ids": padded, "past_key_values": as_cache(cache), "use_cache": True}
    hidden, head = team.run(weights, inputs, last)
    step = step_of(team, weights)

    if len(contexts) < len(requests):
        copies = torch.tensor([place[request.context] for request in requests], device=device)
        cache = [layer.take(copies, capacity) for layer in cache]
        hidden, lengths = hidden[copies], lengths[copies]
    noise = torch.from_numpy(uniforms([request.key for request in requests], max_new_tokens)).to(device, _wide(device))
    alive = torch.arange(len(requests), device=device)  # which request each row of the batch belongs to
    ids = torch.full((len(requests), max_new_tokens), pad_id, device=device)
    logprobs = torch.zeros(len(requests), max_new_tokens, device=device)

    for t in range(max_new_tokens):
        token, logprob = _next(hidden, head, noise[alive, t], temperature)
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
        part = Feed(token[:, None], (lengths + t)[:, None], cache, _gap_mask(lengths, width, t + 1))
        hidden = step(part)[0][:, 0]
    return ids.cpu().numpy(), logprobs.cpu().numpy()


def _next(hidden: Tensor, head: Head, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """`_draw` for all rows, as many at a time as DRAW_LOGITS allows."""
    rows = max(1, DRAW_LOGITS // head.weight.shape[0])
    if len(hidden) <= rows:
        return _draw(head.logits(hidden).float(), uniform, temperature)
    parts = zip(hidden.split(rows), uniform.split(rows), strict=True)
    tokens, logprobs = zip(*(_draw(head.logits(h).float(), u, temperature) for h, u in parts), strict=True)
    return torch.cat(tokens), torch.cat(logprobs)


def _wide(device: torch.device) -> torch.dtype:
    """The dtype in which probabilities are added up: float64, or float32 on Apple's devices, which have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens int64 [rows] by inverse CDF (float64, so that large vocabularies keep their tails), and their log π."""
    logprobs = logits.log_softmax(-1)
    if temperature == 0:
        token = logits.argmax(-1)
    else:
        tempered = logprobs if temperature == 1 else (logits / temperature).log_softmax(-1)
        cumulative = tempered.exp().cumsum(-1, dtype=_wide(logits.device))
        # right: the first id whose cumulative mass exceeds the draw, so an id of probability 0 is never taken
        token = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True).squeeze(1)
        token = token.clamp_(max=logits.shape[-1] - 1)
    return token, logprobs.gather(1, token[:, None]).squeeze(1)


def _gap_mask(lengths: Tensor, width: int, new: int) -> Tensor | None:
    """float32 [rows, 1, 1, width + new], additive: hides the slots between a context's end and the first new token."""
    if bool((lengths == width).all()):
        return None
    slot = torch.arange(width + new, device=lengths.device)
    hidden = (slot >= lengths[:, None]) & (slot < width)
    return torch.zeros(hidden.shape, device=lengths.device).masked_fill_(hidden, float("-inf"))[:, None, None]
