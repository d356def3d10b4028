"""The tokens that a chat template writes around turns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

Ids = tuple[int, ...]

OPENS, CLOSES = "<think>", "</think>"  # how models that reason in their answers mark it

_UNKNOWN = "\U0010fffd"  # a letter for private use, which a vocabulary has in bytes or not at all


class Marks(NamedTuple):
    """left_out: what no content has, sampled or not. sealed: what no text is encoded to."""

    left_out: frozenset[int]
    sealed: frozenset[int]


def marks(tokenizer: Any, template: str, literals: Mapping[str, Ids]) -> Marks:
    """The tokens that mark turns: those that are flagged special, and those that the template writes around turns
    (`literals`, text and ids) and are no words or spaces: added to the vocabulary, or pieces of it such as
    <start_of_turn> or User:.

    What marks reasoning is no turn: an agent may sample it. Neither is what a template writes elsewhere, as around
    tools; but no text is encoded to these. The unknown token, where a vocabulary has not all letters, is
    no mark either: it stands for what was said. One that is BOS or EOS too, or that the template writes, is a mark.
    """
    added = tokenizer.added_tokens_decoder
    flagged = {i for i, token in added.items() if token.special} | {*tokenizer.all_special_ids}
    written: set[int] = set()
    for literal, ids in literals.items():
        words = set(literal.split())
        for i in ids:
            text = spell(tokenizer, (i,)).strip()
            if text and (i in added or _bracketed(text) or (mixed(text) and words.issuperset(text.split()))):
                written.add(i)
    if tokenizer.unk_token_id in tokenizer.encode(_UNKNOWN, add_special_tokens=False):
        flagged -= {tokenizer.unk_token_id} - {tokenizer.bos_token_id, tokenizer.eos_token_id, *written}
    # A letter or a comma cannot be spelled in other pieces. Some tokenizers have such a one as their pad.
    bare = {i for i in flagged | written if _bare(spell(tokenizer, (i,)))} - (flagged & written)
    elsewhere = {i for i, token in added.items() if _bracketed(token.content.strip()) and token.content in template}
    reasoning = {i for i in written - flagged if spell(tokenizer, (i,)).strip() in (OPENS, CLOSES)}
    turns = (flagged | written) - bare
    names = {tokenizer.convert_ids_to_tokens(i).strip("▁Ġ") for i in turns if mixed(spell(tokenizer, (i,)))}
    held = re.compile("|".join(map(re.escape, sorted(names))) or "(?!)")  # a piece such as " <start_of_turn>" holds one
    holding = {i for name, i in tokenizer.get_vocab().items() if held.search(name)}
    return Marks(frozenset(turns - reasoning), frozenset(turns | elsewhere | holding))


def spell(tokenizer: Any, ids: Ids) -> str:
    """The text of `ids`, special tokens too."""
    return tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def mixed(text: str) -> bool:
    """Whether `text` has letters or digits, and others beside."""
    return any(map(str.isalnum, text)) and not text.isalnum()


def _bracketed(text: str) -> bool:
    return mixed(text) and not text[0].isalnum() and not text[-1].isalnum()


def _bare(text: str) -> bool:
    return len(text) == 1 and text.isascii() and (text.isprintable() or text.isspace())
