"""An encoder for text of users and models: it never gives a token that marks a turn.

`split_special_tokens` of transformers keeps out the tokens that are flagged special, and no others. But a chat template
may mark turns by tokens that are not flagged, or by pieces of the ordinary vocabulary. So here a copy of the tokenizer
is made in which the marker tokens have other names, which nobody can guess. The copy spells the text of a marker in
other pieces, and every other text as before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from secrets import token_hex
from typing import Any

from choreo.errors import BadInput, opening


def safe_encoder(tokenizer: Any, markers: Collection[int]) -> Callable[[str], tuple[int, ...]]:
    """A function that encodes a text to ids none of which is in `markers`.

    tokenizer: of transformers; it is copied, not changed. There is one exception: where the unknown token is a marker
    and the vocabulary has no bytes, letters that the vocabulary lacks still get the unknown token.

    Raises BadInput for a tokenizer that is not of the tokenizers library, because its vocabulary cannot be changed.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise BadInput(f"its tokenizer ({type(tokenizer).__name__}) is not of the tokenizers library (tokenizer.json)")
    secret = token_hex(16)
    names = {name: f"{secret}{i}" for i in markers if (name := backend.id_to_token(i)) is not None}
    with opening("its tokenizer", "cannot be written out"):
        own = json.loads(backend.to_str())
    copy = own | {"truncation": None, "padding": None, "post_processor": None}
    for token in copy["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "special": True}
    _rename(copy["model"], names)
    with opening("its tokenizer", "cannot be read without the marks of its turns"):
        plain = Tokenizer.from_str(json.dumps(copy))
    plain.encode_special_tokens = True  # the names of special tokens are encoded as ordinary text

    def encode(text: str) -> tuple[int, ...]:
        return tuple(plain.encode(text, add_special_tokens=False).ids)

    return encode


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Renames pieces in the JSON of a tokenizers model (BPE, Unigram, WordPiece, WordLevel). Ids stay the same."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(word, word): i for word, i in vocabulary.items()}
    else:  # Unigram: a list, where the id is the position
        model["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [a, b] for a, b in model["merges"] if names.keys().isdisjoint((a, b, a + b.removeprefix(prefix)))
        ]
