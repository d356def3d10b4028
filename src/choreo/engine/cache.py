"""Keys and values in buffers of fixed capacity. A cache that grows by concatenation is copied whole at each step.

`Slots` is for a batch that is decoded to its end. `Pool` is for rows that join and leave, and `Prefixes` keeps the keys
and values of their contexts for later rows.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from choreo.engine.requests import Ids


class Slots(CacheLayerMixin):
    """One layer. keys, values: [rows, heads, capacity, width], of which the first `used` slots are filled."""

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
        """Adds [rows, heads, new, width]. Returns all filled slots."""
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
        """The cache of `rows` (int64, which may repeat a row), with `capacity` slots."""
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
    """The layers in the type that transformers takes. They are not copied: what it adds is added to `layers`."""
    return Cache(layers=list(layers))


class PoolView(CacheLayerMixin):
    """One layer of some rows of a `Pool`, for one step. keys, values: [rows, heads, capacity, width].

    slots: int64 [rows, new], where each row's new tokens go. reach: the number of slots that attention sees.
    """

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor, slots: Tensor, reach: int):
        super().__init__()
        self.keys, self.values, self.slots, self.reach = keys, values, slots, reach
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        """Adds [rows, heads, new, width] at each row's slots. Returns the first `reach` slots."""
        assert self.keys is not None and self.values is not None
        rows = torch.arange(len(self.slots), device=self.slots.device)[:, None]
        self.keys[rows, :, self.slots] = key_states.transpose(1, 2)
        self.values[rows, :, self.slots] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.reach], self.values[:, :, : self.reach]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("a pool has its buffers from the start")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.reach, 0

    def get_seq_length(self) -> int:
        return self.reach - self.slots.shape[1]

    def get_max_length(self) -> int:
        return self.reach


class Pool:
    """Keys and values of rows that join and leave. keys, values: [layers, room, heads, capacity, width].

    Every row fills its own number of slots, from slot 0 on. room is the number of rows that the buffers can hold; it
    and capacity grow when they must.
    """

    def __init__(self, like: Sequence[Slots]):
        """like: the model's layers, not empty, for their shapes. Raises ValueError where heads or width differ."""
        self.keys, self.values = _empty([layer.keys for layer in like]), _empty([layer.values for layer in like])

    def fit(self, room: int, capacity: int, most: int) -> None:
        """Grows to at least `room` rows of `capacity` slots. most: the most slots that a row can have."""
        held = self.keys.shape[1], self.keys.shape[3]
        if room <= held[0] and capacity <= held[1]:
            return
        room, capacity = (
            have if need <= have else max(need, 2 * have) for need, have in zip((room, capacity), held, strict=True)
        )
        capacity = min(capacity, most)
        for name in ("keys", "values"):
            old = getattr(self, name)
            # Zeros, not empty: attention multiplies masked slots by 0, and 0 · NaN is NaN.
            grown = old.new_zeros(old.shape[0], room, old.shape[2], capacity, old.shape[4])
            grown[:, : held[0], :, : held[1]] = old
            setattr(self, name, grown)

    def clear(self) -> None:
        """Frees all memory, also what one long row made the buffers grow to."""
        self.keys, self.values = self.keys[:, :0, :, :0].clone(), self.values[:, :0, :, :0].clone()

    def layers(self, rows: slice, slots: Tensor, reach: int) -> list[PoolView]:
        """The layers of `rows` for a step that fills `slots`, int64 [rows, new]. reach: as in `PoolView`."""
        pairs = zip(self.keys[:, rows], self.values[:, rows], strict=True)
        return [PoolView(keys, values, slots, reach) for keys, values in pairs]

    def move(self, sources: Sequence[int], targets: Sequence[int], used: int) -> None:
        """Copies the first `used` slots of rows `sources` to rows `targets`."""
        if sources:
            self.keys[:, targets, :, :used] = self.keys[:, sources, :, :used]
            self.values[:, targets, :, :used] = self.values[:, sources, :, :used]


def _empty(layers: Sequence[Tensor | None]) -> Tensor:
    """[layers, 0, heads, 0, width]"""
    shapes = {(layer.shape[1], layer.shape[3]) for layer in layers if layer is not None}
    if len(shapes) != 1 or layers[0] is None:
        raise ValueError("rows that come and go need layers of one shape; those of this model differ")
    [(heads, width)] = shapes
    return layers[0].new_zeros(len(layers), 0, heads, 0, width)


BLOCK = 4  # tokens of a prefix that are kept or reused together

Block = tuple[int, Ids]
"""The number of the block before (0: none), and the tokens."""


class Prefixes:
    """Keys and values of contexts, for later rows whose contexts begin in the same way: with a system prompt, with the
    earlier turns of a chat, with the draft before its revision.

    They are kept in a tree of blocks of BLOCK tokens. Of more than `slots` slots the least recently used are dropped.
    """

    def __init__(self, pool: Pool, slots: int):
        self._pool, self._free = pool, list(range(slots // BLOCK))
        self._count = 0  # of all blocks so far: every block has a number of its own, which is not used again
        # [places, layers, heads, BLOCK, width]
        self._keys, self._values = (
            buffer.new_empty(slots // BLOCK, buffer.shape[0], buffer.shape[2], BLOCK, buffer.shape[4])
            for buffer in (pool.keys, pool.values)
        )
        # (number, place), the least recently used first
        self._blocks: OrderedDict[Block, tuple[int, int]] = OrderedDict()

    def known(self, ids: Ids) -> int:
        """How many tokens from the beginning of `ids` are kept."""
        return len(self._walk(ids)) * BLOCK

    def load(self, row: int, ids: Ids) -> int:
        """Fills the row's first slots from what is kept of `ids`. Returns how many slots."""
        places = [self._blocks[block][1] for block in self._walk(ids)]
        if places:
            for kept, buffer in ((self._keys, self._pool.keys), (self._values, self._pool.values)):
                buffer[:, row, :, : len(places) * BLOCK] = kept[places].permute(1, 2, 0, 3, 4).flatten(2, 3)
        return len(places) * BLOCK

    def keep(self, row: int, ids: Ids) -> None:
        """Keeps the row's slots of `ids`: as many whole blocks as there is room for."""
        path = self._walk(ids)
        begin, fresh, mine = len(path) * BLOCK, [], set(path)
        for start in range(begin, len(ids) - BLOCK + 1, BLOCK):
            if not self._free:
                oldest = next(iter(self._blocks))
                if oldest in mine:  # every kept block belongs to this prefix
                    break
                self._free.append(self._blocks.pop(oldest)[1])
            before = self._blocks[path[-1]][0] if path else 0
            path.append((before, ids[start : start + BLOCK]))
            mine.add(path[-1])
            self._count += 1
            fresh.append(self._free.pop())
            self._blocks[path[-1]] = self._count, fresh[-1]
        self._touch(path)
        if fresh:
            for kept, buffer in ((self._keys, self._pool.keys), (self._values, self._pool.values)):
                new = buffer[:, row, :, begin : begin + len(fresh) * BLOCK].unflatten(2, (len(fresh), BLOCK))
                kept[fresh] = new.permute(2, 0, 1, 3, 4)

    def _walk(self, ids: Ids) -> list[Block]:
        found: list[Block] = []
        before = 0
        for start in range(0, len(ids) - BLOCK + 1, BLOCK):
            block = before, ids[start : start + BLOCK]
            if block not in self._blocks:
                break
            before = self._blocks[block][0]
            found.append(block)
        self._touch(found)
        return found

    def _touch(self, path: Sequence[Block]) -> None:
        for block in reversed(path):  # the first block last, so that no block is kept longer than the one before it
            self._blocks.move_to_end(block)
