"""A tokenizer for what is said: no text gives it an id that marks a turn.

`split_special_tokens` of transformers leaves out the tokens that are flagged special, and no others. A chat template
may mark turns by tokens that are not flagged, or by pieces of the ordinary vocabulary. So here the marks lose their
names. The rest of the tokenizer spells them in other pieces, and every other text as before.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from secrets import token_hex
from typing import Any

from choreo.errors import BadInput, opening


def sealed(tokenizer: Any, marks: Collection[int]) -> Callable[[str], tuple[int, ...]]:
    """Encodes plain text by a copy of `tokenizer` (of transformers) to ids that are never in `marks`. (Where the token
    of unknown letters is one, such letters still have it, if the vocabulary has no bytes for them.)

    Raises BadInput for a tokenizer that is not of the tokenizers library: its vocabulary cannot be changed.
    """
    from tokenizers import Tokenizer

    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise BadInput(f"its tokenizer ({type(tokenizer).__name__}) is not of the tokenizers library (tokenizer.json)")
    nobody = token_hex(16)  # nobody can write a name that nobody can guess
    names = {name: f"{nobody}{i}" for i in marks if (name := backend.id_to_token(i)) is not None}
    with opening("its tokenizer", "cannot be written out"):
        own = json.loads(backend.to_str())
    copy = own | {"truncation": None, "padding": None, "post_processor": None}
    for token in copy["added_tokens"]:
        if token["content"] in names:
            token |= {"content": names[token["content"]], "special": True}
    _rename(copy["model"], names)
    with opening("its tokenizer", "cannot be read without the marks of its turns"):
        plain = Tokenizer.from_str(json.dumps(copy))
    plain.encode_special_tokens = True  # as text, that is

    def encode(text: str) -> tuple[int, ...]:
        return tuple(plain.encode(text, add_special_tokens=False).ids)

    return encode


def _rename(model: dict[str, Any], names: dict[str, str]) -> None:
    """Of a model of the tokenizers library (BPE, Unigram, WordPiece, WordLevel). Ids stay what they are."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(word, word): i for word, i in vocabulary.items()}
    else:  # Unigram's: an id is a place in the list
        model["vocab"] = [[names.get(word, word), score] for word, score in vocabulary]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            [a, b] for a, b in model["merges"] if names.keys().isdisjoint((a, b, a + b.removeprefix(prefix)))
        ]
