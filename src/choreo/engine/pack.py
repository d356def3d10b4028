"""Packs sequences into few token slots, without changing a single log-probability.

Samples of one prompt share a beginning, which is computed once. Sequences with a common beginning form
a tree. Its nodes lie in one row, each at the position that it has in its own sequence, and a mask lets a
node see its ancestors only. A sequence that shares nothing is a tree of one path: a plain causal row
that needs no mask. Rows are padded on the right, where causal attention never looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from choreo.engine.constraint import FORCED
from choreo.engine.requests import Ids, Scorable

# The cost of one more cell of the attention mask, in token slots. A sequence joins a tree when the
# slots saved exceed the attention added. Measured on a CPU at d = 128; larger models favour joining more.
ATTENTION_COST = 1 / 256


@dataclass(frozen=True, slots=True)
class Pack:
    """One micro-batch.

    input_ids, position_ids: int64 [rows, length]; mask: float32 [rows, 1, length, length], additive.
    The last two are None when every row is one plain sequence (and its beginnings).
    where: int64 [n], the flat slot that predicts each action token; targets: int64 [n], that token. A forced token of a
    constrained turn is no action.
    rows: int64 [n], the row of the masks under which each action token was chosen, FORCED for tokens of free turns.
    None where every turn is free.
    units: indices of the units inside; action tokens lie in the order of units, sequences, ids.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    mask: Tensor | None
    where: Tensor
    targets: Tensor
    rows: Tensor | None
    units: list[int]

    def inputs(self) -> dict[str, object]:
        """The arguments of the model's forward."""
        if self.mask is None:
            return {"input_ids": self.input_ids, "use_cache": False}
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.mask,
            "use_cache": False,
        }


@dataclass(slots=True)
class _Tree:
    size: int = 0
    sequences: list[np.ndarray] = field(default_factory=list)
    paths: list[np.ndarray] = field(default_factory=list)  # the node of every token of every sequence
    starts: list[int] = field(default_factory=list)  # how many tokens of each path the tree had before

    def shared(self, sequence: np.ndarray) -> tuple[int, int]:
        """Length of the longest beginning that a sequence of this tree has in common, and which sequence that is."""
        return max(((_common(sequence, other), i) for i, other in enumerate(self.sequences)), default=(0, -1))

    def add(self, sequence: np.ndarray) -> np.ndarray:
        common, other = self.shared(sequence)
        new = np.arange(self.size, self.size + len(sequence) - common)
        path = np.concatenate([self.paths[other][:common], new]) if common else new
        self.size += len(new)
        self.sequences.append(sequence)
        self.paths.append(path)
        self.starts.append(common)
        return path


@dataclass(slots=True)
class _Block:
    """Units that must stay together in one micro-batch: trees, and per unit the (tree, path) of each sequence."""

    trees: list[_Tree]
    units: list[tuple[int, list[tuple[int, np.ndarray]]]]

    @property
    def length(self) -> int:
        return max(tree.size for tree in self.trees)


def pack(
    units: Sequence[Sequence[Scorable]],
    *,
    micro_tokens: int,
    share: bool = True,
    device: torch.device | str = "cpu",
) -> list[Pack]:
    """Micro-batches of at most `micro_tokens` padded slots (or one block, where that alone is larger).

    units: each holds the (context, ids) that a loss needs together, such as the two answers of a preference, with the
    choices of a turn that was constrained; a unit is never split. share: False puts every sequence in a row of its own,
    which sequences longer than a model's window need. Raises ValueError for an empty context.
    """
    inputs = []
    for unit in units:
        if any(not sequence[0] for sequence in unit):
            raise ValueError("a context must have at least one token: nothing predicts the first")
        inputs.append([np.array((*sequence[0], *sequence[1][:-1]), dtype=np.int64) for sequence in unit])
    order = sorted((i for i, unit in enumerate(units) if unit), key=lambda i: (*units[i][0][0], *units[i][0][1]))
    blocks = list(_shared_blocks(inputs, order)) if share else [_plain_block(inputs, i) for i in order]
    return [_assemble(group, units, device) for group in _cut(blocks, micro_tokens)]


def _shared_blocks(inputs: list[list[np.ndarray]], order: list[int]) -> Iterator[_Block]:
    block: _Block | None = None
    for i in order:  # sorted, so that sequences with a common beginning are neighbours
        first = inputs[i][0]
        if block is not None:
            size, length = block.trees[0].size, len(first)
            common = block.trees[0].shared(first)[0]
            added = (size + length - common) ** 2 - size**2 - length**2
            if common <= added * ATTENTION_COST:
                yield block
                block = None
        if block is None:
            block = _Block([_Tree()], [])
        block.units.append((i, [(0, block.trees[0].add(sequence)) for sequence in inputs[i]]))
    if block is not None:
        yield block


def _plain_block(inputs: list[list[np.ndarray]], i: int) -> _Block:
    trees = [_Tree() for _ in inputs[i]]
    return _Block(trees, [(i, [(k, tree.add(inputs[i][k])) for k, tree in enumerate(trees)])])


def _cut(blocks: list[_Block], micro_tokens: int) -> Iterator[list[_Block]]:
    group: list[_Block] = []
    rows = 0
    for block in sorted(blocks, key=lambda block: block.length):  # the newest is the longest: it sets the width
        if group and (rows + len(block.trees)) * block.length > micro_tokens:
            yield group
            group, rows = [], 0
        group.append(block)
        rows += len(block.trees)
    if group:
        yield group


def action_places(sequence: Scorable) -> Sequence[int]:
    """Where in its ids the action tokens of a sequence are: all of them, or those that a constrained turn chose.

    Raises ValueError where it has another number of choices than of ids.
    """
    _, ids, *more = sequence
    choices: Ids = more[0] if more else ()
    if choices and len(choices) != len(ids):
        raise ValueError(f"a turn has {len(ids)} ids and {len(choices)} choices")
    return [i for i, row in enumerate(choices) if row != FORCED] if choices else range(len(ids))


def _rows(sequence: Scorable) -> np.ndarray:
    """int64 [n]: the row of the masks of each action token."""
    if len(sequence) == 3 and sequence[2]:
        return np.array([row for row in sequence[2] if row != FORCED], dtype=np.int64)
    return np.full(len(sequence[1]), FORCED, dtype=np.int64)


def _assemble(blocks: list[_Block], units: Sequence[Sequence[Scorable]], device: torch.device | str) -> Pack:
    trees = [tree for block in blocks for tree in block.trees]
    length = max(tree.size for tree in trees)
    tokens = np.zeros((len(trees), length), dtype=np.int64)  # the id of padding does not matter: no token sees it
    plain = all(tree.size == max(map(len, tree.paths)) for tree in trees)
    positions = np.zeros_like(tokens)
    sees = None if plain else np.zeros((len(trees), 1, length, length), dtype=bool)
    for row, tree in enumerate(trees):
        for sequence, path, start in zip(tree.sequences, tree.paths, tree.starts, strict=True):
            new = path[start:]
            tokens[row, new] = sequence[start:]
            positions[row, new] = np.arange(start, len(path))
            if sees is not None and len(new):
                own = slice(int(new[0]), int(new[-1]) + 1)
                sees[row, 0, own, path[:start]] = True
                sees[row, 0, own, own] = np.tri(len(new), dtype=bool)
    where, targets, rows, inside = [], [], [], []
    row = 0
    for block in blocks:
        for i, places in block.units:
            inside.append(i)
            for (tree_index, path), turn in zip(places, units[i], strict=True):
                first, actions = len(turn[0]) - 1, np.array(action_places(turn), dtype=np.int64)
                where.append((row + tree_index) * length + path[first + actions])
                targets.append(np.array(turn[1], dtype=np.int64)[actions])
                rows.append(_rows(turn))
        row += len(block.trees)
    constrained = any(len(turn) == 3 and turn[2] for i in inside for turn in units[i])
    mask = None
    if sees is not None:
        sees |= np.eye(length, dtype=bool)  # padding must see something: a softmax over nothing is NaN
        mask = torch.zeros(sees.shape).masked_fill_(torch.from_numpy(~sees), float("-inf")).to(device)
    return Pack(
        input_ids=torch.from_numpy(tokens).to(device),
        position_ids=None if plain else torch.from_numpy(positions).to(device),
        mask=mask,
        where=torch.from_numpy(np.concatenate(where)).to(device),
        targets=torch.from_numpy(np.concatenate(targets)).to(device),
        rows=torch.from_numpy(np.concatenate(rows)).to(device) if constrained else None,
        units=inside,
    )


def _common(a: np.ndarray, b: np.ndarray) -> int:
    n = min(len(a), len(b))
    differs = a[:n] != b[:n]
    first = int(differs.argmax()) if n else 0
    return first if n and differs[first] else n
