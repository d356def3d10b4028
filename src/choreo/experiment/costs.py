"""The arithmetic of `choreo plan`: operations, bytes and seconds of a training. Pure functions over plain data.

Notation: N weights of the linear layers that read a token, V·d the output layer, L layers of width d, T tokens, R
ranks. A multiplication and an addition are two operations (FLOP).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from choreo.methods.passes import Pass

FLOAT32 = 4
ADAM = 8  # bytes per parameter: two moments in float32
ADAM_TRAFFIC = 28  # bytes per parameter and update: weight, gradient and moments are read, all but the gradient written


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model costs.

    matrix: N. head: V·d. stored: all weights; of experts those too that a token does not read. keys: numbers per token
    and layer in the cache, keys and values. size: bytes of a number. learnt: parameters that an agent learns.
    full: these are all weights. beside: they are adapters that stand beside W; otherwise adapters are laid over W,
    whose gradient is then computed. recompute: layers run again in the backward pass. sharded: ranks share the weights
    of an agent, and gather them for every micro-batch of micro_tokens.
    """

    matrix: float
    head: float
    stored: float
    layers: int
    width: int
    keys: int
    size: int
    learnt: float
    full: bool = False
    beside: bool = False
    recompute: bool = False
    sharded: bool = False
    micro_tokens: float = 8192


@dataclass(frozen=True, slots=True)
class Machine:
    """What one device does.

    rates: FLOP/s of matrix products, by the width of the matrices; a card's peak is one number, at width 1.
    utilisation: the share of that rate that a forward or backward pass reaches. bandwidth: bytes/s that it reads of its
    memory. step: seconds that a decode step takes for each layer, beside arithmetic and memory. link: bytes/s between
    ranks; None is not known. measured: whether all this was measured, not said.
    """

    rates: Mapping[int, float]
    utilisation: float
    bandwidth: float
    step: float = 0.0
    link: float | None = None
    measured: bool = False
    about: str = ""

    def rate(self, width: int) -> float:
        """FLOP/s that a model of that width gets: the rate at its width, times the utilisation.

        Between two measured widths it is a power of the width; beyond the ends it is that of the end.
        """
        known = sorted(self.rates)
        at = min(max(width, known[0]), known[-1])
        low = max(w for w in known if w <= at)
        high = min(w for w in known if w >= at)
        if low == high:
            return self.rates[low] * self.utilisation
        part = math.log(at / low) / math.log(high / low)
        return self.rates[low] ** (1 - part) * self.rates[high] ** part * self.utilisation


def forward(shape: Shape, tokens: float, seen: float, actions: float) -> float:
    """FLOP of a forward pass.

    2·N·T in the linear layers, 4·L·d·T·seen in attention (two products with `seen` positions on average), 2·V·d for
    each of the `actions` tokens whose log-probability is asked for, and 2·T for each parameter of adapters that stand
    beside W.
    """
    adapter = 2 * shape.learnt * tokens if shape.beside else 0.0
    attention = 4 * shape.layers * shape.width * tokens * seen
    return 2 * shape.matrix * tokens + attention + 2 * shape.head * actions + adapter


def update(shape: Shape, tokens: float, seen: float, actions: float) -> float:
    """FLOP of a forward and a backward pass: 6·N·T where the gradient of W is computed, 4·N·T with adapters beside W.

    Forward 2·N·T; the gradient of the layers' inputs 2·N·T; the gradient of W 2·N·T. Attention's backward pass is twice
    its forward. Logits are computed again in the backward pass: 2 + 2 + 2 times V·d an action, and 2 more where
    all weights learn. An adapter beside W takes 6 a parameter and token. Recomputed layers take their forward again.
    """
    linear = 2 * shape.matrix * tokens
    attention = 4 * shape.layers * shape.width * tokens * seen
    head = 2 * shape.head * actions * (4 if shape.full else 3)
    adapter = 6 * shape.learnt * tokens if shape.beside else 0.0
    again = linear + attention + (2 * shape.learnt * tokens if shape.beside else 0.0) if shape.recompute else 0.0
    return linear * (2 if shape.beside else 3) + 3 * attention + head + adapter + again


def cache_bytes(layers: int, keys: int, size: int) -> int:
    """Bytes of keys and values that one token takes in the cache: L · keys · size, keys counting both."""
    return layers * keys * size


def optimiser_bytes(learnt: float) -> float:
    """Bytes of AdamW's two moments in float32: 8 a parameter that learns."""
    return ADAM * learnt


def gradient_bytes(learnt: float) -> float:
    """Bytes of a gradient in float32: 4 a parameter that learns."""
    return FLOAT32 * learnt


def all_reduce_bytes(learnt: float, ranks: int) -> float:
    """Bytes that each rank sends to sum one gradient over all: 2·(R − 1)/R of its size, by a ring."""
    return 2 * (ranks - 1) / ranks * gradient_bytes(learnt)


def gather_bytes(shape: Shape, ranks: int) -> float:
    """Bytes that each rank sends so that all have the whole of weights that are sharded: (R − 1)/R of their size."""
    return (ranks - 1) / ranks * shape.stored * shape.size


def exchanged_bytes(work: Pass, shape: Shape, ranks: int) -> float:
    """Bytes that each rank sends in one of a `Pass`'s times.

    One sum of the gradient an update. Of weights that are sharded they are gathered whole to sample, and for every
    micro-batch once forward and once back, where the gradient of float32 goes to its owners: (R − 1)/R of its size.
    """
    if not shape.sharded:
        return all_reduce_bytes(shape.learnt, ranks) if work.kind == "learn" else 0.0
    if work.kind != "learn":
        return gather_bytes(shape, ranks) if work.kind == "sample" else 0.0
    tokens = math.ceil(work.rows / ranks) * (work.context + work.new * work.written)
    scattered = all_reduce_bytes(shape.learnt, ranks) / 2
    return math.ceil(tokens / shape.micro_tokens) * (2 * gather_bytes(shape, ranks) + scattered)


def cost(work: Pass, shape: Shape, machine: Machine, ranks: int, slots: float = math.inf) -> dict[str, float]:
    """Seconds of one `Pass` on `ranks` devices that share its rows, all its times together, by what they are spent on:
    "sample", "score" or "learn", and "exchange". slots: of the cache, of one device.

    The device with most rows counts: ⌈rows / R⌉. Judging, checkpoints and Python are not in it.
    """
    rows = math.ceil(work.rows / ranks)
    exchange = work.times * exchanged_bytes(work, shape, ranks) / machine.link if machine.link else 0.0
    if work.kind == "sample":
        return {"sample": work.times * _sampling(work, rows, ranks, shape, machine, slots), "exchange": exchange}
    length = work.context + work.new * work.written
    tokens, actions = rows * length, rows * work.new * work.written
    if work.kind == "score":
        return {"score": work.times * forward(shape, tokens, length / 2, actions) / machine.rate(shape.width)}
    learning = update(shape, tokens, length / 2, actions) / machine.rate(shape.width)
    learning += ADAM_TRAFFIC * shape.learnt / (ranks if shape.sharded else 1) / machine.bandwidth
    return {"learn": work.times * learning, "exchange": exchange}


def _sampling(work: Pass, rows: int, ranks: int, shape: Shape, machine: Machine, slots: float) -> float:
    """Contexts are read in one pass; then every decode step feeds each row one token. It takes as long as its
    operations, or as reading all weights and the cache takes, whichever is longer, and `step` for each layer. There are
    `new` steps, since some row is the longest, for every batch that the cache holds."""
    distinct = math.ceil((work.distinct if work.distinct is not None else work.rows) / ranks)
    reading = forward(shape, distinct * work.context, work.context / 2, 0) / machine.rate(shape.width)
    batches = math.ceil(rows * (work.context + work.new) / slots) if slots < math.inf else 1
    steps, tokens = work.new * batches, rows * work.new * work.written
    seen = work.context + work.new * work.written / 2
    arithmetic = forward(shape, tokens, seen, tokens) / machine.rate(shape.width)
    moved = steps * shape.stored * shape.size
    moved += tokens * seen * cache_bytes(shape.layers, shape.keys, shape.size)
    return reading + max(arithmetic, moved / machine.bandwidth) + steps * shape.layers * machine.step


def operations(work: Pass, shape: Shape) -> float:
    """FLOP of a `Pass`, all its times together, whoever does them."""
    length = work.context + work.new * work.written
    tokens, actions = work.rows * length, work.rows * work.new * work.written
    if work.kind == "learn":
        return work.times * update(shape, tokens, length / 2, actions)
    if work.kind == "score":
        return work.times * forward(shape, tokens, length / 2, actions)
    distinct = work.rows if work.distinct is None else work.distinct
    reading = forward(shape, distinct * work.context, work.context / 2, 0)
    return work.times * (reading + forward(shape, actions, work.context + work.new * work.written / 2, actions))


def totals(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The sums by name."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}
