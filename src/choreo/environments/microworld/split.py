"""Divides the world into parts by composition: which pairs of action and object, and which wrapper families.

core: the shipped base was pretrained on it, and it never changes. The rest is the reserve, which the base has never
seen in a dialogue; `split_seed` divides it into train and heldout. Every single word occurs in the core. Strata (an
action with a kind of thing; a wording) keep the parts similar for any seed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from hashlib import blake2b
from typing import Literal

from choreo.environments.microworld import lexicon, wording

WorldPart = Literal["core", "train", "heldout"]
PARTS: tuple[WorldPart, ...] = ("core", "train", "heldout")
CORE_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Pools:
    """The material of one part.

    pairs: (action, thing). adversarial, everyday: wrapper families (frame, wording style), by the sort of their frames.
    buckets: of the content of general requests, 0…39 by hash (`general_bucket`). things: what facts are about.
    """

    pairs: tuple[tuple[str, str], ...]
    adversarial: tuple[tuple[str, str], ...]
    everyday: tuple[tuple[str, str], ...]
    buckets: frozenset[int]
    things: tuple[str, ...] = tuple(lexicon.OBJECTS)

    def without(self, unknown: Collection[str]) -> Pools:
        """This part as somebody knows it who has never heard of the things in `unknown`."""
        pairs = tuple(pair for pair in self.pairs if pair[1] not in unknown)
        return replace(self, pairs=pairs, things=tuple(thing for thing in self.things if thing not in unknown))


def _rank(*parts: object) -> int:
    return int.from_bytes(blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


def _divide(stratum: Sequence[tuple[str, str]], part: WorldPart, split_seed: int) -> list[tuple[str, str]]:
    """The members of one stratum that belong to `part`."""
    fixed = sorted(stratum, key=lambda item: _rank("core", *item))
    n_core = round(CORE_SHARE * len(fixed))
    return fixed[:n_core] if part == "core" else _halve(fixed[n_core:], part, split_seed)


def _halve(reserve: Sequence[tuple[str, str]], part: WorldPart, split_seed: int) -> list[tuple[str, str]]:
    """The half of a stratum's reserve that is `part`: train or heldout."""
    shuffled = sorted(reserve, key=lambda item: _rank("reserve", split_seed, *item))
    # An odd member goes to one side by chance, so that no part is always the larger one.
    first = _rank("odd", split_seed, *sorted(reserve)[0]) % 2
    return shuffled[(part == "heldout") ^ first :: 2]


def _families(frames: Iterable[str], part: WorldPart, split_seed: int) -> tuple[tuple[str, str], ...]:
    """The wrapper families of `part`, stratified by wording. The core takes frames in rotation, so that it has all."""
    names = sorted(frames, key=lambda frame: _rank("core", frame))
    n_core = round(CORE_SHARE * len(names))
    members: list[tuple[str, str]] = []
    for styles in (wording.PLAIN, wording.PROTECT, wording.DEFINE):
        for turn, style in enumerate(styles):
            start = turn * n_core % len(names)
            rotated = [(frame, style) for frame in names[start:] + names[:start]]
            members += rotated[:n_core] if part == "core" else _halve(rotated[n_core:], part, split_seed)
    # A hidden request has the words of a plain one, so it belongs to the same part.
    hides = dict(zip(wording.PLAIN, wording.HIDDEN, strict=True))
    return (*members, *((frame, hides[style]) for frame, style in members if style in hides))


def third_of_things(number: int) -> frozenset[str]:
    """A third of the things, by chance, and about a third of every kind. Thirds 0, 1 and 2 share no thing."""
    ranked = sorted(lexicon.OBJECTS, key=lambda thing: (lexicon.OBJECTS[thing][0], _rank("third", thing)))
    return frozenset(ranked[number::3])


@cache
def pools(part: WorldPart, split_seed: int = 0) -> Pools:
    """The material of `part`. split_seed: divides the reserve; the core does not depend on it."""
    pairs = tuple(
        pair
        for action in lexicon.ACTIONS
        for kind in lexicon.KINDS_OF_THING
        for pair in _divide([(action, o) for o, row in lexicon.OBJECTS.items() if row[0] == kind], part, split_seed)
    )
    buckets = [("bucket", str(b)) for b in range(40)]
    return Pools(
        pairs=pairs,
        adversarial=_families(wording.ADVERSARIAL, part, split_seed),
        everyday=_families(wording.EVERYDAY, part, split_seed),
        buckets=frozenset(int(b) for _, b in _divide(buckets, part, split_seed)),
    )


def general_bucket(content: str) -> int:
    """The bucket, 0…39, of a general request. content: its question without frame and language."""
    return _rank("general", content) % 40
