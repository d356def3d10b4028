"""What a server drew, in token ids."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Drawn:
    """ids: the tokens that a server drew, with the one that ended the turn. logprobs: what it says of each, up to the
    first of which it says nothing."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
