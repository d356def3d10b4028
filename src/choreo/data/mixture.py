"""Joins the prompts of several files into one set, with weights, and with wrappers where a recipe names them."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

from choreo.config.prompts import Source
from choreo.data.prompts import load
from choreo.data.reading import counted
from choreo.errors import BadInput
from choreo.files.rows import rows
from choreo.types import Prompt, Turns

HELD_OUT = 10  # one prompt in so many is held out
# The place for the request in a wrapper. A wrapper without one gets the request at its end.
PLACE = re.compile(
    r"[\[{(]\s*(?:insert|your|the)?\s*(?:prompt|question|request|query)(?: here)?\s*[\]})]", re.IGNORECASE
)


@dataclass(frozen=True)
class Mixture:
    """prompts: of all sources, in their order. weights: of one prompt, by suite, such that a source is drawn as often
    as its weight says, whatever its size. counts: how many rows were read, used and left out, by source.

    A prompt that two sources have is used in both, and counted."""

    prompts: tuple[Prompt, ...]
    weights: dict[str, float]
    counts: dict[str, dict[str, Any]]


def mixture(sources: Mapping[str, Source], seed: int) -> Mixture:
    """The prompts of `sources`. Raises BadInput for a file that does not fit or has no usable prompt."""
    prompts: list[Prompt] = []
    weights: dict[str, float] = {}
    counts: dict[str, dict[str, Any]] = {}
    seen: set[Turns] = set()
    for name, source in sources.items():
        loaded = load(source.file, source.format or None, kind=source.kind or None, name=name)
        own = loaded.rows
        if not own:
            why = "; ".join(f"{reason}: {count}" for reason, count in loaded.counts.items())
            raise BadInput(f"{source.file}: has no prompt that can be used ({why})")
        if source.most:
            own = random.Random(f"most/{seed}/{name}").sample(own, min(source.most, len(own)))
        if source.wrap:
            own = wrapped(own, wrappers(source.wrap), f"{seed}/{name}")
        sizes = Counter(prompt.kind for prompt in own)
        weights |= {prompt.suite: source.weight / sizes[prompt.kind] for prompt in own}
        prompts += own
        counts[name] = {"file": source.file} | counted(loaded) | {"used": len(own)}
        counts[name] |= Counter(prompt.kind for prompt in own)
        if again := sum(prompt.turns in seen for prompt in own):
            counts[name] |= {"of these in an earlier source, too": again}
        seen |= {prompt.turns for prompt in own}
    return Mixture(tuple(prompts), weights, counts)


def parted(prompts: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
    """(training prompts, held-out prompts), by a checksum of the whole conversation, so that a prompt is on the same
    side in every file and with every seed, under whatever system message."""
    sides: tuple[list[Prompt], list[Prompt]] = ([], [])
    for prompt in prompts:
        said = "\n".join(text for role, text in prompt.turns if role != "system")
        sides[checksum(said) % HELD_OUT == 0].append(prompt)
    return sides


def checksum(text: str) -> int:
    """64 bits of a text, whatever its case and its spaces."""
    words = " ".join(text.casefold().split()).encode()
    return int.from_bytes(blake2b(words, digest_size=8).digest(), "big")


def wrappers(file: str) -> list[str]:
    """The texts of a file of jailbreaks, whose rows have a field `prompt`. Raises BadInput."""
    found: list[str] = []
    for line, row in rows(Path(file)):
        if isinstance(row, BadInput):
            raise row
        if not isinstance(text := row.get("prompt"), str) or not text.strip():
            raise BadInput(f"{file}:{line}: prompt: expected the text of a jailbreak")
        found.append(text)
    if not found:
        raise BadInput(f"{file}: holds no rows")
    return found


def wrapped(prompts: Sequence[Prompt], around: Sequence[str], key: str) -> list[Prompt]:
    """Every prompt in a wrapper, which is chosen by (key, the prompt's id): at the wrapper's place, or at its end."""
    made = []
    for prompt in prompts:
        wrapper = random.Random(f"wrap/{key}/{prompt.id}").choice(around)
        text, places = PLACE.subn(lambda _, inside=prompt.text: inside, wrapper)  # type: ignore[misc]
        made.append(replace(prompt, text=text if places else f"{wrapper.rstrip()}\n\n{prompt.text}"))
    return made
