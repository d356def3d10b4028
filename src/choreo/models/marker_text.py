"""Turn markers that a chat template writes as ordinary text, such as `[INST]`, `### Response:` or `User:`.

A marker that is a token of its own is kept out of other texts by safe_encoder.py. A marker of this module is several
pieces of the vocabulary, which other words need too, so no piece can be kept out. What can be kept out is the spelling:
the template's markers have the ids that the tokenizer gives them. Where a user writes the same text, it is spelled
letter by letter, so its ids are others.

An example: the template writes `User:` as ("User", ":"), and a user's `User:` becomes ("U", "s", "e", "r", ":").

`find_text_markers` lists the markers of a template; `TextMarkers` spells or drops them in other contents.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any, NamedTuple

from choreo.models.chat import Ids
from choreo.models.marker_tokens import CLOSES, OPENS, letters_and_signs, text_of

_TAG = re.compile(r"[^\w\s]+\w+[^\w\s]+")  # [INST], <|im_start|>, <</SYS>>
_NOTHING = re.compile(r"(?!)")  # matches nowhere


def find_text_markers(
    tokenizer: Any, ids: Ids, marker_tokens: Collection[int], first: bool = False
) -> dict[Ids, set[str]]:
    """The markers in `ids`, which a template writes around contents.

    The result has one key for every run of ids between marker tokens, and the markers in its text as the value. A
    marker is a whole line, or a part of a line in brackets (`_TAG`). Letters alone are no marker, such as `user`
    between two tokens.

    first: whether `ids` stand before the first content. They may begin with a system prompt, so of their lines only
    the last can be a marker, and only if it does not read as a sentence.
    """
    found: dict[Ids, set[str]] = {}
    end = 0
    for is_token, group in groupby(ids, marker_tokens.__contains__):
        run = tuple(group)
        end += len(run)
        if is_token:
            continue
        text = text_of(tokenizer, run).replace(OPENS, "\n").replace(CLOSES, "\n")
        lines = [stripped for line in text.splitlines() if (stripped := line.strip())]
        tags = _TAG.findall("\n".join(lines))
        if first:
            lines = [line for line in lines[-1:] if end == len(ids) and not _is_prose(line)]
        found[run] = {marker for marker in (*lines, *tags) if letters_and_signs(marker)}
    return found


def _is_prose(line: str) -> bool:
    return line[-1] in ".!?" or (line[0].isalnum() and line[-1].isalnum())


class _Place(NamedTuple):
    """Where a marker stands in some ids.

    positions: of the ids that hold a part of the marker.
    divisible: whether one of these ids holds several of its letters and can be spelled letter by letter.
    """

    positions: range
    divisible: bool


class TextMarkers:
    """The text markers of one template, spelled or dropped in what users and policies write.

    protected: markers that only the template writes with the ids that the tokenizer gives them. In any other
        content the pieces of such a marker are spelled letter by letter. The text stays the same, so a model may
        still read it as a marker.
    unprotected: markers that the vocabulary spells letter by letter in any case. A user can write these.

    A marker that begins in one content and ends in the template's text behind it is not looked for: the template would
    have to write the end of a marker without its beginning.
    """

    def __init__(
        self,
        tokenizer: Any,
        runs: Mapping[Ids, Collection[str]],
        never_encoded: Collection[int],
        encode: Callable[[str], Ids],
    ):
        """runs: runs of ids that the template writes, each with its markers (`find_text_markers`).
        never_encoded: tokens that no text is encoded to. encode: gives the ids of a text in the middle of another."""
        self._tokenizer, self._never_encoded = tokenizer, frozenset(never_encoded)
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._letters = lru_cache(maxsize=8192)(self._spell)
        # What the vocabulary calls a marker: it has other letters than the text has for spaces and bytes.
        names = {
            marker: "".join(self._names(encode(marker))).strip("▁Ġ") for found in runs.values() for marker in found
        }

        def is_protected(marker: str) -> bool:
            """Whether the marker can be spelled in another way wherever the template writes it."""
            search = _any_of([names[marker]])
            places = [place for ids, found in runs.items() if marker in found for place in self._find(ids, search)]
            return bool(places) and all(place.divisible for place in places)

        protected = {*filter(is_protected, names)}
        # A marker that holds another needs no search of its own: it cannot be written without the inner one.
        self.protected = tuple(sorted(m for m in protected if not any(other in m for other in protected - {m})))
        self.unprotected = tuple(sorted(m for m in names if not any(other in m for other in protected)))
        self._search = _any_of([names[marker] for marker in self.protected])

    def spell_out(self, ids: Ids) -> Ids:
        """The ids of the same text with its markers spelled letter by letter."""
        places = self._find(ids, self._search)
        if not places:
            return ids
        names, inside = self._names(ids), {position for place in places for position in place.positions}
        spelled: list[int] = []
        for position, one in enumerate(ids):
            letters = self._letters(names[position]) if position in inside else ()
            spelled += letters or (one,)
        return tuple(spelled)

    def drop(self, ids: Ids) -> Ids:
        """The ids without the markers that are not spelled letter by letter.

        For sampled ids: letter by letter these could be more ids than a game has room for.
        """
        while inside := {i for place in self._find(ids, self._search) if place.divisible for i in place.positions}:
            ids = tuple(one for position, one in enumerate(ids) if position not in inside)
        return ids

    def _find(self, ids: Ids, search: re.Pattern[str]) -> list[_Place]:
        """Every place in `ids` where `search` finds a marker."""
        if search is _NOTHING:
            return []
        names = self._names(ids)
        ends = [*accumulate(map(len, names))]  # ends[i]: the number of letters in the first i + 1 names
        found = []
        for match in search.finditer("".join(names)):
            begin, end = match.span(1)
            positions = range(bisect_right(ends, begin), bisect_left(ends, end) + 1)
            divisible = any(
                min(ends[i], end) - max(ends[i] - len(names[i]), begin) > 1 and self._letters(names[i])
                for i in positions
            )
            found.append(_Place(positions, divisible))
        return found

    def _names(self, ids: Sequence[int]) -> list[str]:
        """What the vocabulary calls each id; "" for an id that the tokenizer lacks, as a model may embed more ids."""
        return [name or "" for name in self._tokenizer.convert_ids_to_tokens(list(ids))]

    def _spell(self, name: str) -> Ids:
        """The ids of the letters of a piece.

        Empty where the piece has one letter, or its letters are not all in the vocabulary or give another text.
        """
        letters = tuple(self._vocabulary.get(letter, -1) for letter in name)
        if len(name) < 2 or -1 in letters or not self._never_encoded.isdisjoint(letters):
            return ()
        same = text_of(self._tokenizer, letters) == text_of(self._tokenizer, (self._vocabulary[name],))
        return letters if same else ()


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    """Finds every place of each name (group 1), overlapping ones too; of names that begin together the longest."""
    by_length = sorted(names, key=lambda name: (-len(name), name))
    return re.compile(f"(?=({'|'.join(map(re.escape, by_length))}))") if by_length else _NOTHING
