"""What a turn may consist of: constrained decoding as a state machine over token ids.

A token of a constrained turn is forced, or it is chosen among the ids that a mask allows. The probability of a chosen
id is that of the constrained distribution, the softmax over the allowed ids; a forced id has probability 1. So a forced
id is no action: it has no gradient and no importance ratio.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

from torch import Tensor

from choreo.models.chat import Ids

Choices = tuple[int, ...]
"""For every id of a turn the row of the masks under which it was chosen, or FORCED. Empty where a turn is free."""

FORCED = -1
ENDS = -1  # in place of a row of the masks: nothing is left to choose


class Given(NamedTuple):
    """What a constraint asks for next.

    ids: come now, by force. row: of the masks under which the next id is chosen; ENDS where the turn ends with `ids`.
    state: what `Constraint.after` needs to go on.
    """

    ids: Ids
    row: int
    state: Hashable


class Constraint(Protocol):
    """A pure state machine: the same state and id always give the same.

    masks: bool [rows, ids], which ids each row allows; at least one each. Ids beyond its width are never allowed.
    """

    @property
    def masks(self) -> Tensor: ...

    def start(self, limit: int) -> Given:
        """How a turn of at most `limit` ids begins. Raises ValueError where no turn is that short."""
        ...

    def after(self, state: Hashable, token: int) -> Given:
        """What comes after `token`, which was chosen in `state`."""
        ...


def mask_table(masks: Tensor, vocabulary: int, like: Tensor) -> Tensor:
    """bool [rows + 1, vocabulary] on the device of `like`: the masks of a constraint for a model of so many ids.

    The last row allows every id. It has the index FORCED, so a free token can have a row too.
    """
    table = masks.new_zeros(len(masks) + 1, vocabulary)
    width = min(vocabulary, masks.shape[1])
    table[:-1, :width] = masks[:, :width]
    table[-1] = True
    return table.to(like.device)
