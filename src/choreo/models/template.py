"""Contexts in a model's own chat template, put together from ids.

A template makes text of messages. It is rendered once for every shape of history, with marks where contents go; what
stands between the marks is encoded once, and contents, which are ids, are put where the marks were. So the template
decides what surrounds a turn, and never sees, changes or encodes anew what was sampled.

What a template sets around turns are its marks: tokens (marks.py), or ordinary text (words.py). What is said never has
the ids of one, whoever says it: text is encoded without them, and sampled ones are left out of contexts. Where a
template's text leaves no other ids for what a user writes, a remark names it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from choreo.errors import BadInput, first_line
from choreo.files import utf8
from choreo.models.chat import Chat, Ids, message
from choreo.models.clock import DATE, dated
from choreo.models.marks import CLOSES, OPENS, marks, spell
from choreo.models.ordinary import Words, ordinary
from choreo.models.sealed import sealed
from choreo.text.prompts import EARLIER, REVIEW, REVISE, SYSTEM
from choreo.types import CONVERSATION, FEEDBACK

# Some templates write today's date, and a run must not depend on the day; some make room for reasoning, which the
# protocol has no budget for. Templates that know neither ignore both.
OPTIONS = {"date_string": DATE, "enable_thinking": False}

Message = dict[str, str]
Frame = tuple[Ids, ...]  # the ids before, between and after the contents

_MARK = re.compile(r"zqx(\d+)xqz")


def template_of(tokenizer: Any, named: str = "", setting: str = "template in the recipe") -> str:
    """The chat template of `tokenizer` that is used: its only one, or the one named "default" of several.

    named: a file with another, or else the name of one of several. setting: how a user names it.
    Raises BadInput where there is none.
    """
    own = tokenizer.chat_template
    several: dict[str, str] = own if isinstance(own, dict) else {}
    if named:
        try:
            return Path(named).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"template {named}: not UTF-8 text") from None
        except (OSError, ValueError) as error:
            if named in several:
                return several[named]
            there = f", and the tokenizer's templates are {', '.join(sorted(several))}" if several else ""
            why = error.strerror if isinstance(error, OSError) else "no file has a NUL in its name"
            raise BadInput(f"template {named}: {why}{there}") from None
    if several and "default" not in several:
        names = ", ".join(sorted(several))
        raise BadInput(
            f"its tokenizer has several chat templates and none is named default: {names}; "
            f"name one of these or a file ({setting})"
        )
    if not own:
        raise BadInput(f"its tokenizer has no chat template; name a file with one ({setting})")
    return several["default"] if several else str(own)


class TemplateChat(Chat):
    """A tokenizer with a chat template: `template`, or its own (`template_of`).

    end_id: the first mark that the template writes after an answer. Where it writes none it is the tokenizer's EOS,
        which is then written after every answer.
    pad_id: any token but end_id will do, for padding is never looked at; the tokenizer's own where it has such a one.
    rounds: how many rounds of feedback the template has to hold.
    Raises BadInput, saying what is wrong with the template.
    """

    options = OPTIONS

    def __init__(self, tokenizer: Any, template: str | None = None, rounds: int = 1):
        self.tokenizer, self.template = tokenizer, template_of(tokenizer) if template is None else template
        self._encode = lru_cache(maxsize=8192)(self._tokenize)
        self._frame = lru_cache(maxsize=64)(self._split)
        # Tokenizers of the SentencePiece kind put a space before whatever begins a text. In the middle of one, where
        # contents stand, there is none.
        self._newline = tuple(tokenizer.encode("\n", add_special_tokens=False))
        together = tuple(tokenizer.encode("\na", add_special_tokens=False))
        self._spaced = together != self._newline + tuple(tokenizer.encode("a", add_special_tokens=False))
        self._closing = ""
        self._system = self._takes_system()
        self._forgets, self._begun = self._reasoning()
        turns = self._literals(_turns())
        opened = self._literals([message("system", _mark(0)), message("user", _mark(1))])
        written = [
            (text, self._literal(text, first=i == 0), i == 0)
            for literals in (turns, opened)
            for i, text in enumerate(literals)
        ]
        tokens = marks(tokenizer, self.template, {text: ids for text, ids, _ in written})
        self._special, self._sealed = tokens.left_out, sealed(tokenizer, tokens.sealed)
        words: dict[Ids, set[str]] = defaultdict(set)
        for _, ids, first in written:
            for run, found in ordinary(tokenizer, ids, tokens.sealed, first).items():
                words[run] |= found
        self._words = Words(tokenizer, words, tokens.sealed, self._literal)
        end = self._end(turns[2])
        if end is None:
            end, self._closing = self._eos()
        self.end_id: int = end
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None and pad != self.end_id else int(self.end_id == 0)
        self._special |= {self.end_id}
        added = tokenizer.added_tokens_decoder
        flagged = self.end_id in tokenizer.all_special_ids or (self.end_id in added and added[self.end_id].special)
        self.ends_anew = bool(self._closing) or not flagged
        self.remarks = self._remarks(turns[1:])
        for shape in (0, rounds, None):
            self._frame(shape)

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
        said = [*([("system", self.encode(system))] if system else []), *turns]
        return self._fill(self._cut([message(role, _mark(i)) for i, (role, _) in enumerate(said)]), self._said(said))

    def messages(self) -> dict[str, list[Message]]:
        def opened(agent: str, first: str) -> list[Message]:
            system = [message("system", SYSTEM[agent])] if SYSTEM[agent] else []
            return self._taken([*system, message("user", first)])

        return {
            "answer": opened(CONVERSATION, "{prompt}"),
            "revise": [message("assistant", "{answer}" + self._closing), message("user", REVISE.format("{feedback}"))],
            "review": opened(FEEDBACK, REVIEW.format("{prompt}", "{answer}")),
        }

    def jinja(self) -> str:
        return self.template

    def _read(self, said: Ids) -> str:
        return spell(self.tokenizer, super().content(said))

    def content(self, ids: Ids) -> Ids:
        return self._words.without(super().content(ids))

    def spoken(self, ids: Ids) -> Ids:
        """What is left of a turn when its reasoning is dropped, as such templates do with every earlier turn."""
        if not self._forgets:
            return ids
        text = spell(self.tokenizer, ids)
        if CLOSES not in text:
            return () if self._begun or OPENS in text else ids  # cut off while it was thinking
        closed = text.count(CLOSES)
        low, high = 0, len(ids)  # the fewest ids that hold every closing mark
        while low < high:
            middle = (low + high) // 2
            if spell(self.tokenizer, ids[:middle]).count(CLOSES) < closed:
                low = middle + 1
            else:
                high = middle
        while high < len(ids) and not spell(self.tokenizer, ids[high : high + 1]).strip():
            high += 1
        return ids[high:]

    def _tokenize(self, text: str) -> Ids:
        return self._words.apart(self._plain(text))

    def _plain(self, text: str) -> Ids:
        if not self._spaced:
            return self._sealed(text)
        whole, n = self._sealed("\n" + text), len(self._newline)
        return whole[n:] if whole[:n] == self._newline else self._sealed(text)

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
            system = SYSTEM[FEEDBACK]
            turns = [message("user", before + REVIEW.format(_mark(first), _mark(first + 1)))]
        else:
            system = SYSTEM[CONVERSATION]
            turns = [message(role, _mark(i)) for i, role in enumerate((*earlier, "user"))]
            for i in range(first + 1, first + 2 * rounds + 1, 2):
                turns += [message("assistant", _mark(i)), message("user", REVISE.format(_mark(i + 1)))]
        return self._cut([*([message("system", system)] if system else []), *turns])

    def _cut(self, messages: list[Message]) -> Frame:
        """The frame of messages in which marks stand for what is said, numbered from 0 in their order."""
        return tuple(self._literal(text, first=i == 0) for i, text in enumerate(self._literals(messages)))

    def _literals(self, messages: list[Message]) -> list[str]:
        """What the template writes before, between and after the marks of `messages`."""
        given = _MARK.findall("".join(said["content"] for said in messages))
        text, *rest = _MARK.split(self._render(messages))
        if rest[::2] != given:
            raise BadInput("its chat template leaves out, repeats or reorders what was said")
        return [text, *rest[1::2]]

    def _literal(self, text: str, first: bool = False) -> Ids:
        """Ids of what a template writes, its special tokens read as such."""
        encoded = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if first or not self._spaced:
            return encoded
        whole, n = tuple(self.tokenizer.encode("\n" + text, add_special_tokens=False)), len(self._newline)
        return whole[n:] if whole[:n] == self._newline else encoded

    def _taken(self, messages: list[Message]) -> list[Message]:
        """Messages as the template takes them: a system message that it knows nothing of opens the first other one, and
        an answer that it does not end is ended by EOS."""
        if self._closing:
            messages = [
                m | {"content": m["content"] + self._closing} if m["role"] == "assistant" else m for m in messages
            ]
        if messages[0]["role"] != "system" or self._system:
            return messages
        system, user, *rest = messages
        return [message(user["role"], f"{system['content']}\n\n{user['content']}"), *rest]

    def _render(self, messages: list[Message]) -> str:
        try:
            return self._apply(self._taken(messages))
        except Exception as error:  # a template is a program, which can fail in any way
            raise BadInput(f"its chat template cannot be used: {first_line(error)}") from None

    def _apply(self, messages: list[Message]) -> str:
        text = self.tokenizer.apply_chat_template(
            messages, chat_template=dated(self.template), tokenize=False, add_generation_prompt=True, **self.options
        )
        if wrong := utf8.broken(text):
            raise ValueError(f"it writes {wrong[1]}")
        return text

    def _takes_system(self) -> bool:
        """Some templates refuse a system message and some pass over it; it then opens the first message."""
        try:
            text = self._apply([message("system", _mark(0)), message("user", _mark(1))])
        except Exception:
            return False
        return _MARK.findall(text) == ["0", "1"]

    def _reasoning(self) -> tuple[bool, bool]:
        """Whether the template drops the reasoning of earlier turns, and whether it begins one itself."""
        turn = f"{OPENS}\n{_mark(1)}\n{CLOSES}\n\n{_mark(2)}"
        text = self._render([message("user", _mark(0)), message("assistant", turn), message("user", _mark(3))])
        asked = text.rpartition(_mark(3))[2]
        return _mark(2) in text and _mark(1) not in text, asked.rfind(OPENS) > asked.rfind(CLOSES)

    def _end(self, after: str) -> int | None:
        """The mark with which the template ends an answer. after: what it writes behind one."""
        ids = self._literal(after)
        for i, token in enumerate(ids):
            if token in self._special:
                return token if not spell(self.tokenizer, ids[:i]).strip() else None
        return None

    def _is_bare(self, ids: Ids) -> bool:
        """Whether what a template writes between turns has no mark that is the template's alone."""
        return self._special.isdisjoint(ids) and self._words.apart(ids) == ids

    def _eos(self) -> tuple[int, str]:
        token, text = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        if token is None:
            raise BadInput("its chat template ends no answer with a token of its own, and its tokenizer has no EOS")
        return token, text

    def _remarks(self, between: Sequence[str]) -> tuple[str, ...]:
        """between: what the template writes around answers."""
        found, kept = [], self._words.kept
        if kept:
            found.append(
                f"its chat template marks turns with ordinary text, {_listed(kept)}: where a user writes it, "
                "it has other ids than the template's, but a model may still read turns there"
            )
        bare = {text.strip() or text for text in between if self._is_bare(self._literal(text))}
        if anybodys := sorted({*self._words.open, *bare}):
            found.append(
                f"its chat template marks turns with ordinary text that cannot be told from a user's, "
                f"{_listed(anybodys)}: a user can write that too, and so pretend other turns"
            )
        if self._closing:
            found.append(
                f"its chat template ends no answer with a token of its own: its tokenizer's EOS, "
                f"{self._closing!r}, is written after every answer"
            )
        return tuple(found)


def _turns() -> list[Message]:
    return [message(role, _mark(i)) for i, role in enumerate(("user", "assistant", "user"))]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(repr(text if len(text) <= 60 else f"{text[:60]}…") for text in texts)


def _mark(number: int) -> str:
    return f"zqx{number}xqz"
