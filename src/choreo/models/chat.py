"""Where text becomes ids, and the only place where it does.

A model of the microworld reads  <|system|> … <|user|> … <|end|> <|assistant|> … <|end|>. Any other reads what its
own chat template makes (template.py). Either way a context is put together from parts that are already ids, so an
answer enters the next context as the very ids that were sampled.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from choreo.errors import BadInput, first_line
from choreo.models import model_folder
from choreo.models.sealed import sealed
from choreo.text.thinking import arrived
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, Turn

ROLES = ("system", "user", "assistant")
END = "<|end|>"
PAD = "<|pad|>"
TOKENS = (PAD, END, *(f"<|{role}|>" for role in ROLES))

# WaltzRL section 3: both agents start from one model and are told apart by their system prompts.
SYSTEM = {CONVERSATION: "Answer the user.", FEEDBACK: "Review the answer."}

KEPT = 1024  # letters of the longest text whose ids are kept: prompts recur at every turn, and a server meets long ones

Ids = tuple[int, ...]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


class Chat:
    """A tokenizer with role tokens. `end_id` closes a turn and is learned; `pad_id` never is.

    options: what its chat template is rendered with, beside the messages. remarks: what a user should know of it.
    """

    options: Mapping[str, Any] = {}
    remarks: tuple[str, ...] = ()
    ends_anew = False  # whether choreo took another token for the end of a turn before checkpoints said which

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.end_id: int = tokenizer.convert_tokens_to_ids(END)
        self.pad_id: int = tokenizer.convert_tokens_to_ids(PAD)
        self._role = {role: tokenizer.convert_tokens_to_ids(f"<|{role}|>") for role in ROLES}
        self._encode = lru_cache(maxsize=8192)(self._tokenize)
        self._special = frozenset((self.end_id, self.pad_id, *self._role.values()))
        if len(self._special) != len(TOKENS):
            raise ValueError(f"the tokenizer must have distinct tokens {', '.join(TOKENS)}")
        self._sealed = sealed(tokenizer, self._special)

    @classmethod
    def load(
        cls, folder: str | Path, template: str | Path = "", setting: str = "template in the recipe", rounds: int = 1
    ) -> Chat:
        """The chat of a model's folder: the microworld's where its tokenizer has those tokens, else its own template's.

        template: a file with a chat template (Jinja) in place of the model's own, or the name of one of several that
            the model has. setting: how a user names one. rounds: of feedback, which the template has to hold.
        Raises BadInput for a folder without a tokenizer, with one that is another model's, with neither those tokens
        nor a template, or with a template that cannot be used.
        """
        from choreo.models.template import TemplateChat, template_of

        tokenizer = model_folder.tokenizer(folder)
        try:
            chat: Chat
            if not template and set(TOKENS) <= tokenizer.get_vocab().keys():
                chat = Chat(tokenizer)
            else:
                chat = TemplateChat(tokenizer, template_of(tokenizer, str(template), setting), rounds)
            written = {chat.end_id, chat.pad_id, *chat.answer_context(()), *chat.review_context((), ())}
        except (OSError, ValueError, BadInput) as error:
            raise BadInput(f"{folder}: {first_line(error, 1000)}") from None
        model_folder.check_ids(folder, tokenizer, written)
        return chat

    def same_tokenizer(self, other: Chat) -> bool:
        """Whether the ids of one mean the same text to the other, and end a turn in the same way."""
        return self is other or (self.end_id == other.end_id and self._vocabulary == other._vocabulary)

    @cached_property
    def _vocabulary(self) -> bytes:
        """A digest of what every id means."""
        return blake2b(repr(sorted(self.tokenizer.get_vocab().items())).encode(), digest_size=16).digest()

    @property
    def frame(self) -> dict[str, Any]:
        """What an agent is trained in, for its checkpoints: the end of a turn, and a digest of what is written around
        turns."""
        around = [self.context("", [(role, ()) for role in ("user", "assistant", "user")]), self.review_context((), ())]
        return {"end_id": self.end_id, "digest": blake2b(repr(around).encode(), digest_size=16).hexdigest()}

    def trained_in(self, frame: Any, where: str) -> None:
        """Raises BadInput, blaming `where`, for agents that were trained in another frame. One that does not say which
        (None) may be of an early choreo: where that was another one, a remark says so."""
        end = self.tokenizer.convert_ids_to_tokens(self.end_id)
        if frame is None:
            if self.ends_anew:
                self.remarks += (
                    f"{where} does not say which token ended a turn in training; an early choreo took "
                    f"another one than {end!r}, which does now",
                )
        elif frame != self.frame:
            was = frame.get("end_id") if isinstance(frame, dict) else None
            if was != self.end_id and isinstance(was, int):
                told = self.tokenizer.convert_ids_to_tokens(was)
                now = f"its chat template ends one with {end!r}"
                raise BadInput(f"{where}: was trained to end a turn with {told!r}; {now}")
            raise BadInput(f"{where}: was trained with another chat template than is used now")

    def encode(self, text: str) -> Ids:
        """Ids of plain text, which are never a turn's marks: a user who writes these has written text."""
        return self._encode(text) if len(text) <= KEPT else self._tokenize(text)

    def _tokenize(self, text: str) -> Ids:
        return self._sealed(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Text for judges and readers: special tokens and a turn's marks are left out."""
        return self._read(self.spoken(tuple(ids)))

    def _read(self, said: Ids) -> str:
        """The text of what `spoken` leaves."""
        ids = [*self.content(said)]
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def spoken(self, ids: Ids) -> Ids:
        """What of a turn's ids others read."""
        return ids

    def failure(self, ids: Ids, finished: bool = True) -> str:
        """Why a turn did not arrive, "" where it did (`arrived`). finished: False where a cut at the limit before the
        first word counts as such; training reads that as the empty answer that it is."""
        said = self.spoken(ids)
        return arrived(self._read(said), "stop" if finished else "length", thought=len(said) < len(ids))[1]

    def heard(self, turn: Turn, writer: Chat) -> Ids:
        """What is read here of a turn that was written in `writer`: the ids that were sampled where both share a
        tokenizer, else those of its words."""
        return writer.spoken(turn.ids) if self.same_tokenizer(writer) else self.encode(turn.text)

    def content(self, ids: Ids) -> Ids:
        """What of a turn's ids enters a context. A policy that samples role tokens must not be able to open a turn in
        another agent's context."""
        return tuple(i for i in ids if i not in self._special)

    def context(self, system: str, turns: Sequence[tuple[str, Ids]]) -> Ids:
        """The ids of a whole history, ending where the assistant is to speak."""
        ids = [self._role["system"], *self.encode(system), self.end_id]
        for role, said in turns:
            ids += [self._role[role], *self.content(said), self.end_id]
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
        """State of the feedback agent: the prompt and the answer to review (WaltzRL section 4.2: (p, c_t)).

        answer: what of it is read (`heard`).
        A system message of the caller's is quoted as the user's: the reviewer takes orders from its own alone.
        """
        said = self.encode("system: ")
        quoted = [("user", (*said, *ids)) if role == "system" else (role, ids) for role, ids in earlier]
        return self.context(SYSTEM[FEEDBACK], [*quoted, ("user", prompt), ("assistant", answer)])

    def messages(self) -> dict[str, list[dict[str, str]]]:
        """The contexts as messages for tools that take text: what opens an `answer`, what each round adds to `revise`
        it, and the whole of a `review`. {prompt}, {answer} and {feedback} stand for what was said."""
        asked, answered = message("user", "{prompt}"), message("assistant", "{answer}")
        return {
            "answer": [message("system", SYSTEM[CONVERSATION]), asked],
            "revise": [answered, message("user", "{feedback}")],
            "review": [message("system", SYSTEM[FEEDBACK]), asked, answered],
        }

    def jinja(self) -> str:
        """The chat template by which other tools make the same contexts."""
        return (
            "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '" + END + "' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
        )

    def fits(self, text: str, room: int, positions: int | None) -> bool:
        """Whether a prompt and `room` more tokens are at most `positions`; None is no limit."""
        if positions is None or len(text.encode()) + room <= positions:  # a token is a byte at least
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
        """Tokens that a game takes at most beyond its prompt's words: the longest context of those of `agents` who play
        in this format, and what is written after it.

        earlier: the roles of the turns before the prompt, whose words count as the prompt's.
        """
        before = [(role, ()) for role in earlier]
        room = [0]
        if CONVERSATION in agents:
            said = rounds * (answer_tokens + feedback_tokens) + answer_tokens
            room.append(len(self.answer_context((), [((), ())] * rounds, before)) + said)
        if FEEDBACK in agents and rounds:
            room.append(len(self.review_context((), (), before)) + answer_tokens + feedback_tokens)
        return max(room)
