"""The only place where text becomes ids.

A model of the microworld reads  <|system|> … <|user|> … <|end|> <|assistant|> … <|end|>. Any other model reads what its
own chat template writes (template.py). In both cases a context is put together from parts that are ids already, so an
answer enters the next context as the very ids that were sampled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

from choreo.config.wording import DEFAULT, Wording, places
from choreo.errors import BadInput
from choreo.models.safe_encoder import safe_encoder
from choreo.text.prompts import PARAGRAPH, split_system
from choreo.text.thinking import usable_text
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, Turn, Turns

ROLES = ("system", "user", "assistant")
END = "<|end|>"
PAD = "<|pad|>"
TOKENS = (PAD, END, *(f"<|{role}|>" for role in ROLES))

# Texts of at most so many letters have their ids cached: a prompt is encoded at every turn. A server meets longer ones.
CACHED_LETTERS = 1024

Ids = tuple[int, ...]


def message(role: str, content: str) -> dict[str, str]:
    """A message as chat templates take it."""
    return {"role": role, "content": content}


class Chat:
    """A tokenizer with a token for each role. `end_id` ends a turn and is learned; `pad_id` is never learned.

    wording: what stands beside contents; of a recipe, and the format's own (`own`) where that has none.
    options: what the chat template is given beside the messages. remarks: what a user should know about the template.
    end_changed: whether an early choreo, whose checkpoints did not name the end of a turn, took another token for it.
    """

    # WaltzRL section 3: both agents start from one model, and their system prompts say which agent a model is. A review
    # without a turn that asks for it comes after the answer itself.
    own = Wording(conversation="Answer the user.", feedback="Review the answer.", revise="{feedback}")
    options: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()
    end_changed = False

    def __init__(self, tokenizer: Any, wording: Wording = DEFAULT):
        self.tokenizer, self.wording = tokenizer, wording.over(self.own)
        self.end_id: int = tokenizer.convert_tokens_to_ids(END)
        self.pad_id: int = tokenizer.convert_tokens_to_ids(PAD)
        self._role = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES}
        self._encode = lru_cache(maxsize=8192)(self._tokenize)
        self._special = frozenset((self.end_id, self.pad_id, *self._role.values()))
        if len(self._special) != len(TOKENS):
            raise ValueError(f"the tokenizer must have distinct tokens {', '.join(TOKENS)}")
        self._encode_safely = safe_encoder(tokenizer, self._special)

    @property
    def markers(self) -> frozenset[int]:
        """Tokens that mark turns: no content has them."""
        return self._special

    def same_tokenizer(self, other: Chat) -> bool:
        """Whether ids mean the same text in both chats, and the same id ends a turn."""
        return self is other or (self.end_id == other.end_id and self._vocabulary == other._vocabulary)

    @cached_property
    def _vocabulary(self) -> bytes:
        """A digest of what every id means."""
        return blake2b(repr(sorted(self.tokenizer.get_vocab().items())).encode(), digest_size=16).digest()

    @property
    def frame(self) -> dict[str, Any]:
        """The format that an agent is trained in, for its checkpoints: the id that ends a turn, a digest of what is
        written around turns, and one of the wording, where that is not the format's own."""
        around = [self.context("", [(role, ()) for role in ("user", "assistant", "user")]), self.review_context((), ())]
        frame = {"end_id": self.end_id, "digest": blake2b(repr(around).encode(), digest_size=16).hexdigest()}
        if self.wording != self.own:
            said = repr(sorted(self.wording.model_dump().items()))
            frame["wording"] = blake2b(said.encode(), digest_size=16).hexdigest()
        return frame

    def check_frame(self, frame: Any, where: str) -> None:
        """Raises BadInput for an agent that was trained in another `frame` than this chat's.

        frame: as its checkpoint has it. None is a checkpoint of an early choreo, which has no frame; a remark is added
        where that choreo ended turns with another token. where: names the agent in messages.
        """
        end = self.tokenizer.convert_ids_to_tokens(self.end_id)
        if frame is None:
            if self.end_changed:
                self.remarks += (
                    f"{where} does not say which token ended a turn in training; an early choreo took "
                    f"another one than {end!r}, which does now",
                )
        elif frame != self.frame:
            was = frame.get("end_id") if isinstance(frame, dict) else None
            if was != self.end_id and isinstance(was, int):
                old = self.tokenizer.convert_ids_to_tokens(was)
                now = f"its chat template ends one with {end!r}"
                raise BadInput(f"{where}: was trained to end a turn with {old!r}; {now}")
            if isinstance(frame, dict) and frame.get("wording") != self.frame.get("wording"):
                raise BadInput(f"{where}: was trained with other prompts of its agents than the recipe has now")
            raise BadInput(f"{where}: was trained with another chat template than is used now")

    def encode(self, text: str) -> Ids:
        """Ids of a plain text. The text of a turn marker gets ordinary ids, as it opens no turn."""
        return self._encode(text) if len(text) <= CACHED_LETTERS else self._tokenize(text)

    def _tokenize(self, text: str) -> Ids:
        return self._encode_safely(text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a turn for judges and readers, without special tokens and turn markers."""
        return self._read(self.visible(tuple(ids)))

    def decode_whole(self, ids: Sequence[int]) -> str:
        """`decode` of a turn that cannot hold a reasoning to drop, such as a constrained one."""
        return self._read(tuple(ids))

    def _read(self, ids: Ids) -> str:
        """The text of the visible ids of a turn."""
        content = [*self.content(ids)]
        return self.tokenizer.decode(content, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def visible(self, ids: Ids) -> Ids:
        """The ids of a turn that others read. A chat template may drop an agent's reasoning."""
        return ids

    def failure(self, ids: Ids, finished: bool = True) -> str:
        """Why a turn has no usable text (`usable_text`), or "".

        finished: False counts a turn that was cut before its first word as a failure. Training passes True, and takes
        such a turn as an empty answer.
        """
        visible = self.visible(ids)
        return usable_text(self._read(visible), "stop" if finished else "length", thought=len(visible) < len(ids))[1]

    def as_read(self, turn: Turn, writer: Chat) -> Ids:
        """The ids of a turn for an agent of this chat, where `writer` is the chat of the agent that wrote it.

        The ids that were sampled where both chats share a tokenizer, else the ids of the turn's text.
        """
        return writer.visible(turn.ids) if self.same_tokenizer(writer) else self.encode(turn.text)

    def content(self, ids: Ids) -> Ids:
        """The ids of a turn that enter a context: no role tokens, or a policy could open a turn in another agent's
        context by sampling one."""
        return tuple(i for i in ids if i not in self._special)

    def encoded(self, turns: Turns) -> list[tuple[str, Ids]]:
        """Turns with their texts as ids."""
        return [(role, self.encode(text)) for role, text in turns]

    def context(self, system: str, turns: Sequence[tuple[str, Ids]]) -> Ids:
        """The ids of a whole history, ending where the assistant is to answer. turns: (role, content)."""
        return self._context(self.encode(system), turns)

    def _context(self, system: Ids, turns: Sequence[tuple[str, Ids]]) -> Ids:
        ids = [self._role["system"], *system, self.end_id]
        for role, content in turns:
            ids += [self._role[role], *self.content(content), self.end_id]
        return (*ids, self._role["assistant"])

    def answer_context(
        self, prompt: Ids, history: Sequence[tuple[Ids, Ids]] = (), earlier: Sequence[tuple[str, Ids]] = ()
    ) -> Ids:
        """State of the conversation agent: the prompt p, then every earlier answer and the feedback string on it.

        history: (answer, feedback) of each round. earlier: (role, content) of the conversation before p, if any. The
        system messages that it begins with are one with the agent's own system prompt, after it.
        """
        told, before = split_system(earlier)
        turns = [*before, ("user", prompt)]
        for answer, feedback in history:
            turns += [("assistant", answer), ("user", self._around(self.wording.revise, feedback=feedback))]
        system = self.encode(self.wording.conversation)
        for more in told:
            system += (*self.encode(PARAGRAPH), *self.content(more))
        return self._context(system, turns)

    def review_context(self, prompt: Ids, answer: Ids, earlier: Sequence[tuple[str, Ids]] = ()) -> Ids:
        """State of the feedback agent: the prompt and the answer to review (WaltzRL section 4.2: (p, c_t)).

        answer: as the reviewer reads it (`as_read`).
        A system message in `earlier` is quoted as a user's turn, so that the reviewer obeys its own system prompt
        alone.
        """
        system = self.encode("system: ")
        quoted = [("user", (*system, *ids)) if role == "system" else (role, ids) for role, ids in earlier]
        asked = [("user", prompt), ("assistant", answer)]
        if self.wording.review:
            asked = [("user", self._around(self.wording.review, prompt=prompt, answer=answer))]
        return self.context(self.wording.feedback, [*quoted, *asked])

    def _around(self, text: str, **contents: Ids) -> Ids:
        """The ids of `text`, with contents in place of their names in braces."""
        parts = enumerate(places(text, tuple(contents)))
        return tuple(i for n, part in parts for i in (contents[part] if n % 2 else self.encode(part)))

    def messages(self) -> dict[str, list[dict[str, str]]]:
        """The contexts as messages, for tools that take text.

        answer: the messages before a first answer. revise: the messages that each round adds. review: all messages of
        a review. {prompt}, {answer} and {feedback} stand for the contents.
        """
        prompt, answer, words = message("user", "{prompt}"), message("assistant", "{answer}"), self.wording
        return {
            "answer": [message("system", words.conversation), prompt],
            "revise": [answer, message("user", words.revise)],
            "review": [
                message("system", words.feedback),
                *([message("user", words.review)] if words.review else [prompt, answer]),
            ],
        }

    def jinja(self) -> str:
        """The chat template (Jinja) with which other tools make the same contexts."""
        return (
            "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '" + END + "' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
        )

    def fits(self, text: str, room: int, positions: int | None) -> bool:
        """Whether a prompt and `room` more tokens are at most `positions` tokens; None is no limit."""
        if positions is None or len(text.encode()) + room <= positions:  # a token has at least one byte
            return True
        return len(self.encode(text)) + room <= positions

    def room(
        self,
        rounds: int,
        answer_tokens: int,
        feedback_tokens: int,
        earlier: Sequence[str] = (),
        agents: Collection[str] = AGENTS,
    ) -> int:
        """The most tokens that a game takes beyond the text of its prompt: the longest context of the agents in
        `agents`, and what they write after it.

        earlier: the roles of the turns before the prompt. Their text counts as text of the prompt.
        """
        before = [(role, ()) for role in earlier]
        room = [0]
        if CONVERSATION in agents:
            written = rounds * (answer_tokens + feedback_tokens) + answer_tokens
            room.append(len(self.answer_context((), [((), ())] * rounds, before)) + written)
        if FEEDBACK in agents and rounds:
            room.append(len(self.review_context((), (), before)) + answer_tokens + feedback_tokens)
        return max(room)
