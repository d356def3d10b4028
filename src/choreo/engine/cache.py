"""Keys and values of one layer in a buffer of fixed capacity. Growing by concatenation copies it all each step."""

from __future__ import annotations

from collections.abc import Sequence

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


def as_cache(layers: Sequence[Slots]) -> Cache:
    """The layers as transformers takes them; they are the same objects, so what it adds is added to them."""
    return Cache(layers=list(layers))
