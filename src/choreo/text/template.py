"""Contexts in a model's own chat template, put together from ids.

A template makes text of messages. It is rendered once for every shape of history, with marks where contents go; what
stands between the marks is encoded once, and contents, which are ids, are put where the marks were. So the template
decides what surrounds a turn, and never sees, changes or encodes anew what was sampled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError

from choreo import utf8
from choreo.errors import BadInput
from choreo.text.chat import Chat, Ids, message
from choreo.text.prompts import EARLIER, REVIEW, REVISE, SYSTEM
from choreo.types import CONVERSATION, FEEDBACK

# Some templates write today's date, and a run must not depend on the day; some make room for reasoning, which the
# protocol has no budget for. Templates that know neither ignore both.
OPTIONS = {"date_string": "26 Jul 2024", "enable_thinking": False}
OPENS, CLOSES = "<think>", "</think>"  # how models that reason in their answers mark it

Message = dict[str, str]
Frame = tuple[Ids, ...]  # the ids before, between and after the contents

_MARK = re.compile(r"zqx(\d+)xqz")


class TemplateChat(Chat):
    """A tokenizer with a chat template: its own, or `template`.

    end_id: the special token that the template writes after an answer; the tokenizer's EOS where it writes none.
    pad_id: any token but end_id will do, for padding is never looked at; the tokenizer's own where it has such a one.
    Raises BadInput, saying what is wrong with the template.
    """

    options = OPTIONS

    def __init__(self, tokenizer: Any, template: str | None = None):
        if template is None and not tokenizer.chat_template:
            raise BadInput("its tokenizer has no chat template; name a file with one in the recipe (template)")
        self.tokenizer, self.template = tokenizer, template
        self._encode = lru_cache(maxsize=8192)(self._tokenize)
        self._frame = lru_cache(maxsize=64)(self._split)
        added = tokenizer.added_tokens_decoder
        self._special = frozenset({i for i, token in added.items() if token.special} | {*tokenizer.all_special_ids})
        # Tokenizers of the SentencePiece kind put a space before whatever begins a text. In the middle of one, where
        # contents stand, there is none.
        self._newline = tuple(tokenizer.encode("\n", add_special_tokens=False))
        together = tuple(tokenizer.encode("\na", add_special_tokens=False))
        self._spaced = together != self._newline + tuple(tokenizer.encode("a", add_special_tokens=False))
        self._system = self._takes_system()
        self._forgets, self._begun = self._reasoning()
        self.end_id: int = self._end()
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None and pad != self.end_id else int(self.end_id == 0)
        self._special |= {self.end_id}

    def answer_context(
        self, prompt: Ids, history: Sequence[tuple[Ids, Ids]] = (), earlier: Sequence[tuple[str, Ids]] = ()
    ) -> Ids:
        contents = [*self._said(earlier), prompt]
        for answer, feedback in history:
            contents += [self.spoken(answer), feedback]
        return self._fill(self._frame(len(history), tuple(role for role, _ in earlier)), contents)

    def review_context(self, prompt: Ids, answer: Ids, earlier: Sequence[tuple[str, Ids]] = ()) -> Ids:
        contents = [*self._said(earlier), prompt, answer]
        return self._fill(self._frame(None, tuple(role for role, _ in earlier)), contents)

    def context(self, system: str, turns: Sequence[tuple[str, Ids]]) -> Ids:
        messages = [message("system", system)] if system else []
        messages += [message(role, _mark(i)) for i, (role, _) in enumerate(turns)]
        return self._fill(self._cut(messages, len(turns)), self._said(turns))

    def messages(self) -> dict[str, list[Message]]:
        def opened(agent: str, first: str) -> list[Message]:
            system = [message("system", SYSTEM[agent])] if SYSTEM[agent] else []
            return self._taken([*system, message("user", first)])

        return {
            "answer": opened(CONVERSATION, "{prompt}"),
            "revise": [message("assistant", "{answer}"), message("user", REVISE.format("{feedback}"))],
            "review": opened(FEEDBACK, REVIEW.format("{prompt}", "{answer}")),
        }

    def jinja(self) -> str:
        return self.template or str(self.tokenizer.chat_template)

    def decode(self, ids: Sequence[int]) -> str:
        return super().decode(self.spoken(tuple(ids)))

    def spoken(self, ids: Ids) -> Ids:
        """What is left of a turn when its reasoning is dropped, as such templates do with every earlier turn."""
        if not self._forgets:
            return ids
        text = self._spell(ids)
        if CLOSES not in text:
            return () if self._begun or OPENS in text else ids  # cut off while it was thinking
        low, high = 0, len(ids)  # the fewest ids that hold every closing mark
        while low < high:
            middle = (low + high) // 2
            if self._spell(ids[:middle]).count(CLOSES) < text.count(CLOSES):
                low = middle + 1
            else:
                high = middle
        while high < len(ids) and not self._spell(ids[high : high + 1]).strip():
            high += 1
        return ids[high:]

    def _spell(self, ids: Ids) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def _tokenize(self, text: str) -> Ids:
        if not self._spaced:
            return super()._tokenize(text)
        whole = super()._tokenize("\n" + text)
        n = len(self._newline)
        return whole[n:] if whole[:n] == self._newline else super()._tokenize(text)

    def _said(self, turns: Sequence[tuple[str, Ids]]) -> list[Ids]:
        return [self.spoken(ids) if role == "assistant" else ids for role, ids in turns]

    def _fill(self, frame: Frame, contents: Sequence[Ids]) -> Ids:
        ids = list(frame[0])
        for said, after in zip(contents, frame[1:], strict=True):
            ids += [*self.content(said), *after]
        return tuple(ids)

    def _split(self, rounds: int | None, earlier: tuple[str, ...] = ()) -> Frame:
        """The frame of an answer after so many rounds; None is that of a review. earlier: roles of turns before p.

        A reviewer is shown them inside its one message: they are to be read, not to be gone on with.
        """
        first = len(earlier)
        if rounds is None:
            shown = [f"{role}: {_mark(i)}\n\n" for i, role in enumerate(earlier)]
            before = "".join([EARLIER, *shown, "=====\n\n"]) if shown else ""
            system, count = SYSTEM[FEEDBACK], first + 2
            turns = [message("user", before + REVIEW.format(_mark(first), _mark(first + 1)))]
        else:
            system, count = SYSTEM[CONVERSATION], first + 2 * rounds + 1
            turns = [message(role, _mark(i)) for i, role in enumerate((*earlier, "user"))]
            for i in range(first + 1, count, 2):
                turns += [message("assistant", _mark(i)), message("user", REVISE.format(_mark(i + 1)))]
        return self._cut([*([message("system", system)] if system else []), *turns], count)

    def _cut(self, messages: list[Message], count: int) -> Frame:
        text, *rest = _MARK.split(self._render(messages))
        if [int(number) for number in rest[::2]] != list(range(count)):
            raise BadInput("its chat template leaves out, repeats or reorders what was said")
        between = [self._literal(text, first=True), *(self._literal(part) for part in rest[1::2])]
        return tuple(between)

    def _literal(self, text: str, first: bool = False) -> Ids:
        """Ids of what a template writes, its special tokens read as such."""
        encoded = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if first or not self._spaced:
            return encoded
        whole, n = tuple(self.tokenizer.encode("\n" + text, add_special_tokens=False)), len(self._newline)
        return whole[n:] if whole[:n] == self._newline else encoded

    def _taken(self, messages: list[Message]) -> list[Message]:
        """Messages as the template takes them: a system message that it knows nothing of opens the first other one."""
        if messages[0]["role"] != "system" or self._system:
            return messages
        system, user, *rest = messages
        return [message("user", f"{system['content']}\n\n{user['content']}"), *rest]

    def _render(self, messages: list[Message]) -> str:
        try:
            return self._apply(self._taken(messages))
        except (TemplateError, ValueError, TypeError) as error:
            raise BadInput(f"its chat template cannot be used: {str(error).splitlines()[0]}") from None

    def _apply(self, messages: list[Message]) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=self.template, tokenize=False, add_generation_prompt=True, **self.options
        )
        if wrong := utf8.broken(text):
            raise ValueError(f"it writes {wrong[1]}")
        return text

    def _takes_system(self) -> bool:
        """Some templates refuse a system message and some pass over it; it then opens the first message."""
        try:
            return _mark(1) in self._apply([message("system", _mark(1)), message("user", _mark(0))])
        except (TemplateError, ValueError, TypeError):
            return False

    def _reasoning(self) -> tuple[bool, bool]:
        """Whether the template drops the reasoning of earlier turns, and whether it begins one itself."""
        turn = f"{OPENS}\n{_mark(1)}\n{CLOSES}\n\n{_mark(2)}"
        text = self._render([message("user", _mark(0)), message("assistant", turn), message("user", _mark(3))])
        asked = text.rpartition(_mark(3))[2]
        return _mark(2) in text and _mark(1) not in text, asked.rfind(OPENS) > asked.rfind(CLOSES)

    def _end(self) -> int:
        after = self._frame(1)[2]
        for i, token in enumerate(after):
            if token in self._special:
                return token if not self._spell(after[:i]).strip() else self._eos()
        return self._eos()

    def _eos(self) -> int:
        if self.tokenizer.eos_token_id is None:
            raise BadInput("its chat template ends no turn with a special token, and its tokenizer has no EOS")
        return self.tokenizer.eos_token_id


def _mark(number: int) -> str:
    return f"zqx{number}xqz"
