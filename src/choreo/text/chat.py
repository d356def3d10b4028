"""Where text becomes ids, and the only place where it does.

A conversation is rendered as  <|system|> … <|user|> … <|end|> <|assistant|> … <|end|>  from parts
that are already ids, so an answer enters the next context as the very ids that were sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from choreo.errors import BadInput
from choreo.types import CONVERSATION, FEEDBACK

ROLES = ("system", "user", "assistant")
END = "<|end|>"
PAD = "<|pad|>"

# WaltzRL section 3: both agents start from one model and are told apart by their system prompts.
SYSTEM = {CONVERSATION: "Answer the user.", FEEDBACK: "Review the answer."}

Ids = tuple[int, ...]


class Chat:
    """A tokenizer with role tokens. `end_id` closes a turn and is learned; `pad_id` never is."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.end_id: int = tokenizer.convert_tokens_to_ids(END)
        self.pad_id: int = tokenizer.convert_tokens_to_ids(PAD)
        self._role = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES}
        self._encode = lru_cache(maxsize=8192)(self._tokenize)  # prompts and system texts recur at every turn
        self._special = frozenset((self.end_id, self.pad_id, *self._role.values()))
        if len(self._special) != 5:
            raise ValueError(f"the tokenizer must have distinct tokens {END}, {PAD} and one per role in {ROLES}")

    @classmethod
    def load(cls, folder: str | Path) -> Chat:
        """The chat of a model's folder. Raises BadInput where its tokenizer lacks the tokens of the roles."""
        from transformers import AutoTokenizer

        try:
            return cls(AutoTokenizer.from_pretrained(str(folder)))
        except (OSError, ValueError) as error:
            raise BadInput(f"{folder}: {str(error).splitlines()[0]}") from None

    def same_tokenizer(self, other: Chat) -> bool:
        """Whether the ids of one mean the same text to the other."""
        return self is other or self.tokenizer.get_vocab() == other.tokenizer.get_vocab()

    def encode(self, text: str) -> Ids:
        """Ids of plain text. Role tokens spelled out in `text` stay text: a user cannot open a turn."""
        return self._encode(text)

    def _tokenize(self, text: str) -> Ids:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    def decode(self, ids: Sequence[int]) -> str:
        """Text for judges and readers: special tokens are left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def context(self, system: str, turns: Sequence[tuple[str, Ids]]) -> Ids:
        """The ids of a whole history, ending where the assistant is to speak."""
        ids = [self._role["system"], *self.encode(system), self.end_id]
        for role, content in turns:
            # A policy that samples role tokens must not be able to open a turn in another agent's context.
            ids += [self._role[role], *(i for i in content if i not in self._special), self.end_id]
        return (*ids, self._role["assistant"])

    def answer_context(
        self, prompt: Ids, history: Sequence[tuple[Ids, Ids]] = (), earlier: Sequence[tuple[str, Ids]] = ()
    ) -> Ids:
        """State of the conversation agent: p, then every earlier answer and the feedback string on it.

        earlier: (role, content) of the conversation before p, where p is not its first turn.
        """
        turns = [*earlier, ("user", prompt)]
        for answer, feedback in history:
            turns += [("assistant", answer), ("user", feedback)]
        return self.context(SYSTEM[CONVERSATION], turns)

    def review_context(self, prompt: Ids, answer: Ids, earlier: Sequence[tuple[str, Ids]] = ()) -> Ids:
        """State of the feedback agent: the prompt and the answer to review (WaltzRL section 4.2: (p, c_t))."""
        return self.context(SYSTEM[FEEDBACK], [*earlier, ("user", prompt), ("assistant", answer)])
