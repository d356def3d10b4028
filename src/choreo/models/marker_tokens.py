"""The tokens with which a chat template marks where turns begin and end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from choreo.models.chat import Ids

OPENS, CLOSES = "<think>", "</think>"  # models that reason in their answers put their reasoning between these

_UNKNOWN = "\U0010fffd"  # a letter for private use: a vocabulary spells it in bytes, or as the unknown token


class MarkerTokens(NamedTuple):
    """Ids of the tokens that mark turns.

    dropped: tokens that are left out of every content, be it sampled by a policy or encoded from text.
    never_encoded: tokens that no text of a user is encoded to.
    """

    dropped: frozenset[int]
    never_encoded: frozenset[int]


def find_marker_tokens(tokenizer: Any, template: str, literals: Mapping[str, Ids]) -> MarkerTokens:
    """The tokens that mark turns in `template`, a Jinja text.

    literals: what the template writes around contents, each text with its ids.

    Two sorts of token mark turns: those that the tokenizer flags as special, and those in `literals` that are neither
    words nor spaces. The latter were added to the vocabulary, or are pieces of it, such as <start_of_turn> or User:.

    Exceptions:
    - Tokens that mark reasoning are not dropped, because an agent may sample them. No text is encoded to them.
    - Tokens that the template writes elsewhere, such as around tools, are treated in the same way.
    - The unknown token stands for letters that the vocabulary lacks, so it is part of a content. It is a marker only
      where it is the BOS or EOS token too, or where the template writes it.
    """
    added = tokenizer.added_tokens_decoder
    flagged = {i for i, token in added.items() if token.special} | {*tokenizer.all_special_ids}
    written: set[int] = set()
    for literal, ids in literals.items():
        words = set(literal.split())
        for i in ids:
            text = text_of(tokenizer, (i,)).strip()
            is_whole = letters_and_signs(text) and words.issuperset(text.split())
            if text and (i in added or _is_bracketed(text) or is_whole):
                written.add(i)
    if tokenizer.unk_token_id in tokenizer.encode(_UNKNOWN, add_special_tokens=False):
        flagged -= {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, *written}
    # A letter or a comma has no other spelling, so it cannot be kept from texts. Some tokenizers pad with one.
    single = {i for i in flagged | written if _is_single(text_of(tokenizer, (i,)))} - (flagged & written)
    elsewhere = {i for i, token in added.items() if _is_bracketed(token.content.strip()) and token.content in template}
    reasoning = {i for i in written - flagged if text_of(tokenizer, (i,)).strip() in (OPENS, CLOSES)}
    markers = (flagged | written) - single
    names = {
        tokenizer.convert_ids_to_tokens(i).strip("▁Ġ") for i in markers if letters_and_signs(text_of(tokenizer, (i,)))
    }
    # A piece may hold a marker and more, such as " <start_of_turn>".
    any_name = re.compile("|".join(map(re.escape, sorted(names))) or "(?!)")
    holding = {i for name, i in tokenizer.get_vocab().items() if any_name.search(name)}
    return MarkerTokens(frozenset(markers - reasoning), frozenset(markers | elsewhere | holding))


def text_of(tokenizer: Any, ids: Ids) -> str:
    """The text of `ids`, special tokens included."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def letters_and_signs(text: str) -> bool:
    """Whether `text` has at least one letter or digit and at least one other sign."""
    return any(map(str.isalnum, text)) and not text.isalnum()


def _is_bracketed(text: str) -> bool:
    return letters_and_signs(text) and not text[0].isalnum() and not text[-1].isalnum()


def _is_single(text: str) -> bool:
    return len(text) == 1 and text.isascii() and (text.isprintable() or text.isspace())
