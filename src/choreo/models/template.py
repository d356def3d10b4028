"""Contexts in a model's own chat template, put together from ids.

A chat template makes one text of a list of messages. It is rendered once for every shape of history, with placeholders
where contents go. The text between the placeholders is encoded once (a frame), and contents, which are ids already, are
put between. So the template decides what stands around a turn, and never sees, changes or encodes again what was
sampled.

What a template writes around turns are its markers: tokens (marker_tokens.py) or ordinary text (marker_text.py). No
content has the ids of a marker, whoever wrote it: text is encoded without them, and they are dropped from sampled ids.
Where no other ids exist for the text of a marker, a remark names the marker.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from choreo.config.wording import DEFAULT, Wording, filled
from choreo.errors import BadInput, first_line
from choreo.files import shipped, utf8
from choreo.models.chat import Chat, Ids, message
from choreo.models.fixed_date import DATE, with_fixed_date
from choreo.models.marker_text import TextMarkers, find_text_markers
from choreo.models.marker_tokens import CLOSES, OPENS, find_marker_tokens, text_of
from choreo.models.safe_encoder import safe_encoder
from choreo.text.prompts import EARLIER, PARAGRAPH, WORDING, split_system

# Some templates write today's date, and a run must not depend on the day. Some open a block for reasoning, for which
# a game has no tokens to spare. Templates that know neither option ignore both.
OPTIONS = {"date_string": DATE, "enable_thinking": False}

Message = dict[str, str]
Frame = tuple[Ids, ...]  # the ids before, between and after the contents: one more than there are contents

_PLACEHOLDER = re.compile(r"zqx(\d+)xqz")


def template_of(tokenizer: Any, named: str = "", setting: str = "template in the recipe") -> str:
    """The chat template to use with `tokenizer`: its only one, or of several the one named "default".

    named: a file with another template, which may be one that ships (choreo:templates/plain.jinja), or the name of one
    of the tokenizer's. setting: where a user sets `named`, for messages. Raises BadInput where there is no template.
    """
    own = tokenizer.chat_template
    several: dict[str, str] = own if isinstance(own, dict) else {}
    if named:
        try:
            return shipped.place(Path(named)).read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise BadInput(f"template {named}: not UTF-8 text") from None
        except (OSError, ValueError) as error:
            if named in several:
                return several[named]
            known = f", and the tokenizer's templates are {', '.join(sorted(several))}" if several else ""
            why = error.strerror if isinstance(error, OSError) else "no file has a NUL in its name"
            raise BadInput(f"template {named}: {why}{known}") from None
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
    """A tokenizer with a chat template: `template`, or the tokenizer's own (`template_of`).

    end_id: the first marker token that the template writes after an answer. Where it writes none, the tokenizer's EOS,
        which is then written after every answer.
    pad_id: the tokenizer's pad token where that is not end_id, else any other token: padding is never read.
    rounds: how many rounds of feedback the template must be able to hold.
    Raises BadInput that says what is wrong with the template.
    """

    own = WORDING
    options = OPTIONS

    def __init__(self, tokenizer: Any, template: str | None = None, rounds: int = 1, wording: Wording = DEFAULT):
        self.wording = wording.over(self.own)
        self.tokenizer, self.template = tokenizer, template_of(tokenizer) if template is None else template
        self._encode = lru_cache(maxsize=8192)(self._tokenize)
        self._frame = lru_cache(maxsize=64)(self._build_frame)
        # Tokenizers of the SentencePiece kind put a space before the first word of a text. Contents stand in the middle
        # of a text, where no such space is wanted.
        self._newline = tuple(tokenizer.encode("\n", add_special_tokens=False))
        together = tuple(tokenizer.encode("\na", add_special_tokens=False))
        self._adds_space = together != self._newline + tuple(tokenizer.encode("a", add_special_tokens=False))
        self._closing = ""
        self._has_system = self._takes_system()
        self._drops_reasoning, self._opens_reasoning = self._reasoning()
        turns = self._literals(_turns())
        opened = self._literals([message("system", _placeholder(0)), message("user", _placeholder(1))])
        written = [
            (text, self._literal(text, first=i == 0), i == 0)
            for literals in (turns, opened)
            for i, text in enumerate(literals)
        ]
        tokens = find_marker_tokens(tokenizer, self.template, {text: ids for text, ids, _ in written})
        self._special, self._encode_safely = tokens.dropped, safe_encoder(tokenizer, tokens.never_encoded)
        runs: dict[Ids, set[str]] = defaultdict(set)
        for _, ids, first in written:
            for run, found in find_text_markers(tokenizer, ids, tokens.never_encoded, first).items():
                runs[run] |= found
        self._text_markers = TextMarkers(tokenizer, runs, tokens.never_encoded, self._literal)
        end = self._end(turns[2])
        if end is None:  # from here on `_taken` ends answers with EOS
            end, self._closing = self._eos()
        self.end_id: int = end
        pad = tokenizer.pad_token_id
        self.pad_id: int = pad if pad is not None and pad != self.end_id else int(self.end_id == 0)
        self._special |= {self.end_id}
        added = tokenizer.added_tokens_decoder
        flagged = self.end_id in tokenizer.all_special_ids or (self.end_id in added and added[self.end_id].special)
        self.end_changed = bool(self._closing) or not flagged
        self.remarks = self._remarks(turns[1:])
        for after in (0, rounds, None):  # a template that cannot hold these contexts is refused here
            self._frame(after)

    def answer_context(
        self, prompt: Ids, history: Sequence[tuple[Ids, Ids]] = (), earlier: Sequence[tuple[str, Ids]] = ()
    ) -> Ids:
        contents = [*self._visible(earlier), prompt]
        for answer, feedback in history:
            contents += [self.visible(answer), feedback]
        return self._fill(self._frame(len(history), tuple(role for role, _ in earlier)), contents)

    def review_context(self, prompt: Ids, answer: Ids, earlier: Sequence[tuple[str, Ids]] = ()) -> Ids:
        contents = [*self._visible(earlier), prompt, answer]
        return self._fill(self._frame(None, tuple(role for role, _ in earlier)), contents)

    def context(self, system: str, turns: Sequence[tuple[str, Ids]]) -> Ids:
        every = [*([("system", self.encode(system))] if system else []), *turns]
        frame = self._cut([message(role, _placeholder(i)) for i, (role, _) in enumerate(every)])
        return self._fill(frame, self._visible(every))

    def messages(self) -> dict[str, list[Message]]:
        def opened(told: str, first: str) -> list[Message]:
            return self._taken([*([message("system", told)] if told else []), message("user", first)])

        return {
            "answer": opened(self.wording.conversation, "{prompt}"),
            "revise": [message("assistant", "{answer}" + self._closing), message("user", self.wording.revise)],
            "review": opened(self.wording.feedback, self.wording.review),
        }

    def jinja(self) -> str:
        return self.template

    def _read(self, ids: Ids) -> str:
        return text_of(self.tokenizer, super().content(ids))

    def content(self, ids: Ids) -> Ids:
        return self._text_markers.drop(super().content(ids))

    def visible(self, ids: Ids) -> Ids:
        """The ids of a turn behind its reasoning, where the template drops the reasoning of earlier turns; else all."""
        if not self._drops_reasoning:
            return ids
        text = text_of(self.tokenizer, ids)
        if CLOSES not in text:
            return () if self._opens_reasoning or OPENS in text else ids  # cut off within the reasoning
        closed = text.count(CLOSES)
        low, high = 0, len(ids)  # `high` becomes the fewest ids that hold every closing marker
        while low < high:
            middle = (low + high) // 2
            if text_of(self.tokenizer, ids[:middle]).count(CLOSES) < closed:
                low = middle + 1
            else:
                high = middle
        while high < len(ids) and not text_of(self.tokenizer, ids[high : high + 1]).strip():
            high += 1
        return ids[high:]

    def _tokenize(self, text: str) -> Ids:
        return self._text_markers.spell_out(self._plain(text))

    def _plain(self, text: str) -> Ids:
        """Ids of a text that stands in the middle of another: no marker tokens, no space put before it."""
        if not self._adds_space:
            return self._encode_safely(text)
        whole, n = self._encode_safely("\n" + text), len(self._newline)
        return whole[n:] if whole[:n] == self._newline else self._encode_safely(text)

    def _visible(self, turns: Sequence[tuple[str, Ids]]) -> list[Ids]:
        return [self.visible(ids) if role == "assistant" else ids for role, ids in turns]

    def _fill(self, frame: Frame, contents: Sequence[Ids]) -> Ids:
        ids = list(frame[0])
        for content, after in zip(contents, frame[1:], strict=True):
            ids += [*self.content(content), *after]
        return tuple(ids)

    def _build_frame(self, rounds: int | None, earlier: tuple[str, ...] = ()) -> Frame:
        """The frame of an answer after so many rounds of feedback, or of a review (None).

        earlier: the roles of the turns before the prompt. A reviewer is to read these turns, not to continue them, so
        they stand inside its one message.
        """
        first = len(earlier)
        if rounds is None:
            shown = [f"{role}: {_placeholder(i)}\n\n" for i, role in enumerate(earlier)]
            before = "".join([EARLIER, *shown, "=====\n\n"]) if shown else ""
            system = self.wording.feedback
            contents = {"prompt": _placeholder(first), "answer": _placeholder(first + 1)}
            turns = [message("user", before + filled(self.wording.review, **contents))]
        else:
            every = [(role, _placeholder(i)) for i, role in enumerate((*earlier, "user"))]
            told, after = split_system(every)
            system = PARAGRAPH.join([text for text in (self.wording.conversation, *told) if text])
            turns = [message(role, text) for role, text in after]
            for i in range(first + 1, first + 2 * rounds + 1, 2):
                asked = filled(self.wording.revise, feedback=_placeholder(i + 1))
                turns += [message("assistant", _placeholder(i)), message("user", asked)]
        return self._cut([*([message("system", system)] if system else []), *turns])

    def _cut(self, messages: list[Message]) -> Frame:
        """The frame of messages whose contents are placeholders, numbered from 0 in their order."""
        return tuple(self._literal(text, first=i == 0) for i, text in enumerate(self._literals(messages)))

    def _literals(self, messages: list[Message]) -> list[str]:
        """The texts that the template writes before, between and after the placeholders of `messages`."""
        given = _PLACEHOLDER.findall("".join(one["content"] for one in messages))
        text, *rest = _PLACEHOLDER.split(self._render(messages))
        if rest[::2] != given:
            raise BadInput("its chat template leaves out, repeats or reorders the contents of messages")
        return [text, *rest[1::2]]

    def _literal(self, text: str, first: bool = False) -> Ids:
        """Ids of a text that the template writes, in which special tokens are read as such.

        first: whether the text begins a context.
        """
        encoded = tuple(self.tokenizer.encode(text, add_special_tokens=False))
        if first or not self._adds_space:
            return encoded
        whole, n = tuple(self.tokenizer.encode("\n" + text, add_special_tokens=False)), len(self._newline)
        return whole[n:] if whole[:n] == self._newline else encoded

    def _taken(self, messages: list[Message]) -> list[Message]:
        """Messages in the form that the template can take.

        A system message that the template refuses or ignores is put before the first other one. An answer that the
        template does not end is ended by EOS.
        """
        if self._closing:
            messages = [
                m | {"content": m["content"] + self._closing} if m["role"] == "assistant" else m for m in messages
            ]
        if messages[0]["role"] != "system" or self._has_system:
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
            messages,
            chat_template=with_fixed_date(self.template),
            tokenize=False,
            add_generation_prompt=True,
            **self.options,
        )
        if wrong := utf8.broken(text):
            raise ValueError(f"it writes {wrong[1]}")
        return text

    def _takes_system(self) -> bool:
        """Whether the template writes a system message. Some refuse one, and some ignore it."""
        try:
            text = self._apply([message("system", _placeholder(0)), message("user", _placeholder(1))])
        except Exception:
            return False
        return _PLACEHOLDER.findall(text) == ["0", "1"]

    def _reasoning(self) -> tuple[bool, bool]:
        """Whether the template drops the reasoning of earlier turns, and whether it opens reasoning for a new turn."""
        turn = f"{OPENS}\n{_placeholder(1)}\n{CLOSES}\n\n{_placeholder(2)}"
        text = self._render(
            [message("user", _placeholder(0)), message("assistant", turn), message("user", _placeholder(3))]
        )
        behind = text.rpartition(_placeholder(3))[2]
        return _placeholder(2) in text and _placeholder(1) not in text, behind.rfind(OPENS) > behind.rfind(CLOSES)

    def _end(self, after: str) -> int | None:
        """The marker token with which the template ends an answer. after: the text that it writes behind an answer."""
        ids = self._literal(after)
        for i, token in enumerate(ids):
            if token in self._special:
                return token if not text_of(self.tokenizer, ids[:i]).strip() else None
        return None

    def _is_bare(self, ids: Ids) -> bool:
        """Whether ids that the template writes between turns have no marker that only the template can write."""
        return self._special.isdisjoint(ids) and self._text_markers.spell_out(ids) == ids

    def _eos(self) -> tuple[int, str]:
        """The id and the text of the tokenizer's EOS."""
        token, text = self.tokenizer.eos_token_id, self.tokenizer.eos_token
        if token is None:
            raise BadInput("its chat template ends no answer with a token of its own, and its tokenizer has no EOS")
        return token, text

    def _remarks(self, between: Sequence[str]) -> tuple[str, ...]:
        """What a user should know of this template. between: the texts that it writes around answers."""
        found, protected = [], self._text_markers.protected
        if protected:
            found.append(
                f"its chat template marks turns with ordinary text, {_listed(protected)}: where a user writes it, "
                "it has other ids than the template's, but a model may still read turns there"
            )
        bare = {text.strip() or text for text in between if self._is_bare(self._literal(text))}
        if unprotected := sorted({*self._text_markers.unprotected, *bare}):
            found.append(
                f"its chat template marks turns with ordinary text that cannot be told from a user's, "
                f"{_listed(unprotected)}: a user can write that too, and so pretend other turns"
            )
        if self._closing:
            found.append(
                f"its chat template ends no answer with a token of its own: its tokenizer's EOS, "
                f"{self._closing!r}, is written after every answer"
            )
        return tuple(found)


def _turns() -> list[Message]:
    return [message(role, _placeholder(i)) for i, role in enumerate(("user", "assistant", "user"))]


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(repr(text if len(text) <= 60 else f"{text[:60]}…") for text in texts)


def _placeholder(number: int) -> str:
    return f"zqx{number}xqz"
