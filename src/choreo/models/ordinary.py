"""The marks of turns that a template writes as ordinary text, and how others write them: letter by letter.

A mark that is a token can be kept from a text by its name (sealed.py). `[INST]`, `### Response:` or `User:`, where they
are no tokens, have none: their pieces are in other words too. So it is their spelling that is the template's alone.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any

from choreo.models.marks import CLOSES, OPENS, Ids, mixed, spell

_TAG = re.compile(r"[^\w\s]+\w+[^\w\s]+")  # [INST], <|im_start|>, <</SYS>>


class Words:
    """kept: marks that nobody else writes as the template does. Where the text of ids has one, each piece of several
        letters in it is spelt in single ones. So what is said never has the ids by which the template writes a mark,
        nor others that the tokenizer gives it. The text stays the same, and a model may still read it as the mark.
    open: marks that the vocabulary spells letter by letter anyway. Anybody can write these.

    A mark that begins in one content and ends in what stands behind it is not looked for: the template would have to
    write the end of a mark without its beginning.
    """

    def __init__(
        self,
        tokenizer: Any,
        written: Mapping[Ids, Collection[str]],
        sealed: Collection[int],
        encode: Callable[[str], Ids],
    ):
        """written: stretches of the template's own text, each with the marks in it (`ordinary`). sealed: tokens that no
        text has. encode: a text in the middle of another."""
        self._tokenizer, self._sealed = tokenizer, frozenset(sealed)
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._letters = lru_cache(maxsize=8192)(self._spelt)
        names = {mark: "".join(self._names(encode(mark))).strip("▁Ġ") for marks in written.values() for mark in marks}

        def is_kept(mark: str) -> bool:
            spelt = [self._places(ids, _any([names[mark]])) for ids, marks in written.items() if mark in marks]
            several = [found for places in spelt for _, found in places]
            return bool(several) and all(several)

        kept = {*filter(is_kept, names)}
        # Where a mark is in another, the other is not written either.
        self.kept = tuple(sorted(mark for mark in kept if not any(other in mark for other in kept - {mark})))
        self.open = tuple(sorted(mark for mark in names if not any(other in mark for other in kept)))
        self._marks = _any([names[mark] for mark in self.kept])

    def apart(self, ids: Ids) -> Ids:
        """The ids of a text, its marks letter by letter."""
        found = self._places(ids, self._marks)
        if not found:
            return ids
        names, places = self._names(ids), {i for there, _ in found for i in there}
        parts = (self._letters(names[i]) or (one,) if i in places else (one,) for i, one in enumerate(ids))
        return tuple(i for part in parts for i in part)

    def without(self, ids: Ids) -> Ids:
        """Sampled ids, but for marks that are not letter by letter. These are left out: spelt so they could be more ids
        than a game has room for."""
        while out := {i for places, several in self._places(ids, self._marks) if several for i in places}:
            ids = tuple(one for i, one in enumerate(ids) if i not in out)
        return ids

    def _places(self, ids: Ids, marks: re.Pattern[str]) -> list[tuple[range, bool]]:
        """Where `marks` are in `ids`, and of each whether some piece has several letters of it and could have one."""
        if marks is _NONE:
            return []
        names = self._names(ids)
        ends, found = [*accumulate(map(len, names))], []
        for mark in marks.finditer("".join(names)):
            begin, end = mark.span(1)
            places = range(bisect_right(ends, begin), bisect_left(ends, end) + 1)
            several = any(
                min(ends[i], end) - max(ends[i] - len(names[i]), begin) > 1 and self._letters(names[i]) for i in places
            )
            found.append((places, several))
        return found

    def _names(self, ids: Sequence[int]) -> list[str]:
        """What the vocabulary calls `ids`: their text, with other letters for spaces and bytes. A model may have more
        ids than its tokenizer."""
        return [name or "" for name in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def _spelt(self, name: str) -> Ids:
        """The ids of the letters of a piece; none where it has but one, or is not the same text in letters."""
        letters = tuple(self._vocabulary.get(letter, -1) for letter in name)
        if len(name) < 2 or -1 in letters or not self._sealed.isdisjoint(letters):
            return ()
        return letters if spell(self._tokenizer, letters) == spell(self._tokenizer, (self._vocabulary[name],)) else ()


def ordinary(tokenizer: Any, ids: Ids, tokens: Collection[int], first: bool = False) -> dict[Ids, set[str]]:
    """The stretches of `ids`, which a template writes, between those of `tokens`, each with the marks in it.

    Marks are its lines, and whatever is in brackets in these. Letters alone, as `user` between two tokens, are none.
    first: what stands before the first content, which may begin with a system prompt: of its lines the last may be one.
    """
    found: dict[Ids, set[str]] = {}
    end = 0
    for is_token, group in groupby(ids, tokens.__contains__):
        run = tuple(group)
        end += len(run)
        if is_token:
            continue
        text = spell(tokenizer, run).replace(OPENS, "\n").replace(CLOSES, "\n")
        lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
        tags = _TAG.findall("\n".join(lines))
        if first:
            lines = [line for line in lines[-1:] if end == len(ids) and not _is_prose(line)]
        found[run] = {mark for mark in (*lines, *tags) if mixed(mark)}
    return found


def _is_prose(line: str) -> bool:
    return line[-1] in ".!?" or (line[0].isalnum() and line[-1].isalnum())


def _any(names: Collection[str]) -> re.Pattern[str]:
    """Finds every place of each, also where they overlap; of several that begin together the longest."""
    listed = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(f"(?=({'|'.join(map(re.escape, listed))}))") if listed else _NONE


_NONE = re.compile(r"(?!)")
