"""Parses a server's reply: a chat.completion or text_completion object becomes data. No network here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from choreo.files import utf8
from choreo.text.replies import shortened
from choreo.text.thinking import usable_text

# Fields in which servers send reasoning beside the text.
REASONING = ("reasoning_content", "reasoning", "reasoning_details", "thinking")
LARGEST_COUNT = 2**53


@dataclass(frozen=True)
class Reply:
    """A server's reply. Token counts are None where the server does not give them.

    text: None where the server sent none, which is not the empty text. Broken characters are U+FFFD (`utf8.repaired`).
    refused: the text of a refusal that the server sent in a field of its own, or "".
    finish: the finish_reason ("stop", "length", "content_filter", …).
    thought, called: the server sent reasoning, or tool calls, beside the text.
    """

    text: str | None
    finish: str
    refused: str
    prompt_tokens: int | None
    completion_tokens: int | None
    thought: bool = False
    called: bool = False

    @property
    def answer(self) -> tuple[str, str]:
        """(text behind the reasoning, ""), or ("", why there is none): see `usable_text`. A refusal is an answer."""
        if self.refused:
            return self.refused, ""
        return usable_text(self.text, self.finish, thought=self.thought, called=self.called)


@dataclass(frozen=True)
class Failure:
    """Why there is no reply, after every retry.

    kind: "unreachable", "timed out", "rate limited", "server error" or "malformed" (a retry may help);
        "rejected" (the server refuses this row); "wrong" (key, address or model: every row would be refused);
        "stopped" (the work was stopped before the request, or between two tries).
    """

    kind: str
    details: str

    @property
    def of_row(self) -> bool:
        """Whether the server refused this row alone, so that other rows may get a reply."""
        return self.kind == "rejected"


def parse_reply(content: bytes) -> Reply | Failure:
    """A chat.completion or text_completion object as a Reply; anything else is malformed."""
    try:
        data = utf8.loads(content)
        choice = data["choices"][0]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        text, refused, thought = _content(message.get("content"))
        refused = message.get("refusal") or refused
        if not isinstance(refused, str):
            raise TypeError
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return Failure("malformed", f"no completion: {shortened(content[:500].decode('utf-8', 'replace'))}")
    usage = _table(data.get("usage"))
    reasoned = _count(_table(usage.get("completion_tokens_details")).get("reasoning_tokens"))
    return Reply(
        text,
        str(choice.get("finish_reason") or ""),
        refused.strip() and refused,
        _count(usage.get("prompt_tokens")),
        _count(usage.get("completion_tokens")),
        thought=thought or bool(reasoned) or any(message.get(name) for name in REASONING),
        called=bool(message.get("tool_calls") or message.get("function_call")),
    )


def _content(content: Any) -> tuple[str | None, str, bool]:
    """(text, text of a refusal, whether there is reasoning) of a message's content.

    content: a text, None, or a list of parts. Raises TypeError or LookupError for anything else.
    """
    if content is None or isinstance(content, str):
        return content, "", False
    if not isinstance(content, list):
        raise TypeError
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    texts = [part["text"] for part in parts if part["type"] in ("text", "output_text")]
    refusals = [part["refusal"] for part in parts if part["type"] == "refusal"]
    thought = any(part["type"] in ("thinking", "reasoning") for part in parts)
    return "".join(texts) if texts else None, "".join(refusals), thought


def _table(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < LARGEST_COUNT else None
