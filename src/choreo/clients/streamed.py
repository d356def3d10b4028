"""A reply that comes as server-sent events, put together again. No network here."""

from __future__ import annotations

import json
from typing import Any

from choreo.clients.reply import REASONING
from choreo.files import utf8


class StreamedReply:
    """A chat.completion object, from the bytes of its stream. A server that sends the object at once is read too.

    text: the content so far.
    """

    def __init__(self) -> None:
        self.text = ""
        self._line, self._chunks = b"", 0
        self._beside: dict[str, Any] = {}  # what else the message holds
        self._finish, self._usage = "", None

    def add(self, part: bytes) -> None:
        """Takes more bytes. Raises ValueError for an event that is no chunk of a completion."""
        *lines, self._line = (self._line + part).split(b"\n")
        for line in lines:
            field, _, data = line.partition(b":")
            if field == b"data" and data.strip() not in (b"", b"[DONE]"):
                try:
                    self._take(utf8.loads(data))
                except RecursionError:
                    raise ValueError("too deep") from None

    def completion(self, received: bytes) -> bytes:
        """The whole object, as JSON. A stream that broke off says so in its finish_reason. received: all bytes that
        came, which are the object where no event was among them."""
        if not self._chunks:
            return received
        message = {**self._beside, "role": "assistant", "content": self.text or None}
        choice = {"message": message, "finish_reason": self._finish or "aborted"}
        return json.dumps({"choices": [choice], "usage": self._usage}).encode()

    def _take(self, chunk: Any) -> None:
        try:
            self._chunks += 1
            if chunk.get("error"):
                self._finish = "error"
            self._usage = chunk.get("usage") or self._usage
            for choice in (chunk.get("choices") or ())[:1]:
                delta = choice.get("delta") or {}
                self.text += delta.get("content") or ""
                self._beside["refusal"] = self._beside.get("refusal", "") + (delta.get("refusal") or "")
                for name in (*REASONING, "tool_calls", "function_call"):
                    if delta.get(name):
                        self._beside[name] = True  # that there is some is all that is read of it
                self._finish = self._finish or str(choice.get("finish_reason") or "")
        except (TypeError, AttributeError, LookupError):
            raise ValueError("no chunk of a completion") from None
