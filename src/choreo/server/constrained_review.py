"""Constrained decoding of a review: the agent samples its reasoning, two labels, and the feedback where it is needed.

The rest of the JSON is given, and a satisfied review ends with its second label. This is for serving only. Training
samples every token: a token that is given has no probability to learn from.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from choreo.engine.continuous import Row
from choreo.models.chat import Chat, Ids

HEAD = '{"reasoning": "'
TAIL = ', "feedback": ""}'  # of a satisfied review

_REASONING = re.compile(re.escape(HEAD) + r'(?:[^"\\]|\\.)*"', re.DOTALL)
_LABEL = re.compile(" (true|false)")


def given(text: str) -> str | None:
    """What must come after `text`: "" where the agent writes freely, None where no more is needed.

    Inside its strings an agent may write anything. An agent that leaves the JSON outside of them is not held any more,
    and its review is read as strictly as any other.
    """
    head = _REASONING.match(text)
    if head is None:
        return ""
    rest, labels = text[head.end() :], []
    for key in (', "unsafe":', ', "overrefuse":'):
        if key.startswith(rest):
            return key[len(rest) :]
        label = _LABEL.match(rest, len(key)) if rest.startswith(key) else None
        if label is None:
            return ""
        labels.append(label[1])
        rest = rest[label.end() :]
    if labels == ["false", "false"]:
        return None if TAIL.startswith(rest) else ""
    key = ', "feedback": "'
    return key[len(rest) :] if key.startswith(rest) else ""


class ReviewConstraint:
    """Holds rows in the format of `chat` to the JSON of a review.

    head: the ids that begin a review, as part of its context.
    """

    def __init__(self, chat: Chat):
        self.chat = chat
        self.head: Ids = chat.encode(HEAD)
        vocabulary = chat.tokenizer.get_vocab().values()
        self._quotes = frozenset(i for i in vocabulary if '"' in chat.decode([i]))

    def listener(self) -> Callable[[Row], bool]:
        """A function that is called after every token of one row: it forces what must come next, and says whether the
        row has ended. To decode a row takes longer than a token, so it waits for a quote, which ends the reasoning."""
        closing = False

        def listen(row: Row) -> bool:
            nonlocal closing
            closing = closing or row.ids[-1] in self._quotes
            if not closing or row.forced:
                return False
            text = HEAD + self.chat.decode(row.ids)
            more = given(text)
            if more is None:
                return True
            row.forced = list(self.chat.encode(more))
            closing = _REASONING.match(text) is not None and not more.endswith(
                ' "'
            )  # else the agent's own text comes now
            return False

        return listen

    def whole(self, row_ids: Ids) -> Ids:
        """The ids of the whole review, from those that its row has."""
        text = HEAD + self.chat.decode(row_ids)
        if given(text) is not None:
            return (*self.head, *row_ids)
        written = next(n for n in range(len(TAIL), -1, -1) if text.endswith(TAIL[:n]))  # a label may end in a comma
        return (*self.head, *row_ids, *self.chat.encode(TAIL[written:]), self.chat.end_id)
