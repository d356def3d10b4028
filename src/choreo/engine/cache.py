"""Keys and values of one layer in buffers of fixed capacity. Growing by concatenation copies it all each step.

`Slots` for a batch that is played to its end, `Places` for rows that come and go.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class Slots(CacheLayerMixin):
    """keys, values: [rows, heads, capacity, width], of which the first `used` slots hold something."""

    is_sliding = False

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.used = capacity, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        rows, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(rows, heads, self.capacity, width)
        self.values = value_states.new_empty(rows, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Adds [rows, heads, new, width] and returns all that there is now."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.used + key_states.shape[2]
        self.keys[:, :, self.used : end] = key_states
        self.values[:, :, self.used : end] = value_states
        self.used = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.used + query_length, 0

    def get_seq_length(self) -> int:
        return self.used

    def get_max_length(self) -> int:
        return self.capacity

    def take(self, rows: Tensor, capacity: int) -> Slots:
        """The cache of `rows` (repeated where asked), with room for `capacity` slots."""
        assert self.keys is not None and self.values is not None
        taken = Slots(capacity)
        taken.used, taken.is_initialized = self.used, True
        for name in ("keys", "values"):
            source = getattr(self, name)
            target = source.new_empty(len(rows), source.shape[1], capacity, source.shape[3])
            target[:, :, : self.used] = source[rows, :, : self.used]
            setattr(taken, name, target)
        return taken


def as_cache(layers: Sequence[CacheLayerMixin]) -> Cache:
    """The layers as transformers takes them; they are the same objects, so what it adds is added to them."""
    return Cache(layers=list(layers))


class Places(CacheLayerMixin):
    """keys, values: [room, heads, capacity, width]. Row r holds its own number of slots, counted from its own start, so
    that rows may come and go; what lies beyond the first `rows` is free. Room and capacity grow when they have to."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.lengths = torch.zeros(0, dtype=torch.int64)  # of each row, and …
        self.reach = 0  # … slots that attention sees: in the step under way (`aim`)

    def admit(self, layer: Slots, copies: Tensor, capacity: int) -> None:
        """Adds rows `copies` of a prefilled `layer`; they may grow to `capacity` slots."""
        assert layer.keys is not None and layer.values is not None
        held, total = self.rows, self.rows + len(copies)
        self._grow(layer.keys, total, capacity)
        assert self.keys is not None and self.values is not None
        self.keys[held:total, :, : layer.used] = layer.keys[copies, :, : layer.used]
        self.values[held:total, :, : layer.used] = layer.values[copies, :, : layer.used]
        self.rows = total

    def _grow(self, like: Tensor, room: int, capacity: int) -> None:
        if self.keys is not None and room <= self.keys.shape[0] and capacity <= self.keys.shape[2]:
            return
        held = (0, 0) if self.keys is None else (self.keys.shape[0], self.keys.shape[2])
        room, capacity = (
            have if need <= have else max(need, 2 * have) for need, have in zip((room, capacity), held, strict=True)
        )
        for name in ("keys", "values"):
            # Zeros: what attention gives no weight must still be a number, for 0 · NaN is NaN.
            grown = like.new_zeros(room, like.shape[1], capacity, like.shape[3])
            if self.is_initialized:
                grown[: held[0], :, : held[1]] = getattr(self, name)
            setattr(self, name, grown)
        self.is_initialized = True

    def keep(self, order: Sequence[int], used: int) -> None:
        """Row i becomes what was row `order[i]`, its first `used` slots; rows that move must move into gaps."""
        moves = [(source, i) for i, source in enumerate(order) if source != i]
        if moves:
            assert self.keys is not None and self.values is not None
            sources, targets = (torch.tensor(side, device=self.keys.device) for side in zip(*moves, strict=True))
            for buffer in (self.keys, self.values):
                buffer[targets, :, :used] = buffer[sources, :, :used]
        self.rows = len(order)

    def aim(self, lengths: Tensor, reach: int) -> None:
        """Before a step: where each row's next slot is, and how many slots the longest row then has."""
        self.lengths, self.reach = lengths, reach

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Adds [rows, heads, 1, width] at each row's end and returns all that there is."""
        assert self.keys is not None and self.values is not None
        rows = torch.arange(self.rows, device=self.lengths.device)
        self.keys[rows, :, self.lengths] = key_states[:, :, 0]
        self.values[rows, :, self.lengths] = value_states[:, :, 0]
        return self.keys[: self.rows, :, : self.reach], self.values[: self.rows, :, : self.reach]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("rows are admitted with their keys and values")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.reach, 0

    def get_seq_length(self) -> int:
        return self.reach - 1

    def get_max_length(self) -> int:
        return self.reach
