"""The text of single tokens, by the tokenizer of a base that is on this machine. Nothing is ever fetched for it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from choreo.models import cache, gguf, smollm2
from choreo.models.resolve import BASES

BROKEN = "\ufffd"  # a decoder writes it for a letter whose bytes have not all come yet


def pieces(base: str, ids: Sequence[int]) -> list[str] | None:
    """The text that each id adds; None where the tokenizer of `base` is not here. A letter of several tokens stands at
    its last one."""
    if (tokenizer := _tokenizer(base)) is None:
        return None
    found: list[str] = []
    start = done = 0  # ids[start:done] have been written, and give the next ones what stands before them
    for end in range(1, len(ids) + 1):
        before = tokenizer.decode(ids[start:done], skip_special_tokens=False)
        now = tokenizer.decode(ids[start:end], skip_special_tokens=False)
        if now.endswith(BROKEN) and end < len(ids):
            found.append("")
        else:
            found.append(now[len(before) :])
            start, done = done, end
    return found


@lru_cache(maxsize=8)
def _tokenizer(base: str) -> Any:
    from tokenizers import Tokenizer

    folder = _folder(base)
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json")) if folder else None
    except Exception:  # of another library, which raises plain exceptions; the ids are shown instead
        return None


def _folder(base: str) -> Path | None:
    """Where the tokenizer of `base` is; None where it would have to be fetched or converted first."""
    for folder in (BASES / base, Path(base)):
        if base and (folder / "tokenizer.json").is_file():
            return folder
    if gguf.is_gguf(base) and Path(base).is_file():
        return cache.kept(gguf.contents([Path(base)]))
    return cache.kept(smollm2.SHA256) if base == smollm2.NAME else None
