"""What the server sends, as types: mypy holds the code to them, and `openapi` describes them.

The fields are OpenAI's; `choreo` among them is ours. What comes in has to be checked, so those types are pydantic
models (`openai_requests`, `guardrail`).
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

Finish = Literal["stop", "length", "content_filter", "tool_calls"]


class ErrorDetails(TypedDict):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(TypedDict):
    error: ErrorDetails


class CalledFunction(TypedDict):
    name: str
    arguments: str


class CalledTool(TypedDict):
    """index: in a stream alone."""

    index: NotRequired[int]
    id: str
    type: Literal["function"]
    function: CalledFunction


class AssistantMessage(TypedDict):
    role: Literal["assistant"]
    content: str | None
    refusal: str | None
    tool_calls: NotRequired[list[CalledTool]]


class Choice(TypedDict):
    index: int
    message: AssistantMessage
    finish_reason: Finish
    logprobs: None


class Delta(TypedDict):
    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    refusal: NotRequired[str]
    tool_calls: NotRequired[list[CalledTool]]


class ChunkChoice(TypedDict):
    index: int
    delta: Delta
    finish_reason: Finish | None
    logprobs: None


class StageTokens(TypedDict):
    draft_tokens: int
    feedback_tokens: int
    revision_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    choreo: StageTokens


class TracedMove(TypedDict):
    """One move of a game. A draft and a revision have `text`; a review has `parsed` and the fields after it.

    lenient: the review could only be read leniently, which is done for a model that was never trained to review.
    """

    stage: Literal["draft", "feedback", "revision"]
    tokens: int
    ms: float
    version: int
    text: NotRequired[str]
    parsed: NotRequired[bool]
    unsafe: NotRequired[bool]
    overrefuse: NotRequired[bool]
    feedback: NotRequired[str]
    reasoning: NotRequired[str | None]
    lenient: NotRequired[bool]


class TracedGame(TypedDict):
    triggered: bool
    revised: bool
    withheld: str | None
    bypassed: str | None
    moves: list[TracedMove]


class Trace(TypedDict):
    mode: str
    choices: list[TracedGame]


class StreamedMove(TypedDict):
    index: int
    move: TracedMove


class ReplyHead(TypedDict):
    """What all objects of one reply share."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(ReplyHead):
    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Usage
    choreo: NotRequired[Trace]


class Note(TypedDict):
    """The content of a chunk without choices."""

    usage: NotRequired[Usage]
    choreo: NotRequired[Trace | StreamedMove]


class Chunk(ReplyHead, Note):
    """One event of a stream."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChunkChoice]


class ServedModel(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: Literal["choreo"]


class ServedModels(TypedDict):
    object: Literal["list"]
    data: list[ServedModel]


class Health(TypedDict):
    status: Literal["alive"]


class Ready(TypedDict):
    status: Literal["ready"]
    model: str
    mode: str
    rounds: int
    fingerprint: str
    example: str


class Action(TypedDict):
    """The reply that LiteLLM expects. texts: what passes instead, where the action is GUARDRAIL_INTERVENED."""

    action: Literal["NONE", "BLOCKED", "GUARDRAIL_INTERVENED"]
    blocked_reason: NotRequired[str]
    texts: NotRequired[list[str]]
