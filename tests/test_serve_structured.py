"""Tool calls and JSON through a server in front of another one: reviewed as words, passed on in their own form."""

from __future__ import annotations

import json
import random

import anthropic
import openai
import pytest
from pydantic import BaseModel
from serving import KEY, Serving, make_run
from stub_endpoint import Say, Stub
from stub_endpoint import chat as said

from choreo.server.session import UNSAFE
from choreo.server.structured import DEPTH, NOT_CALLED, ToolCall, readable_answer, readable_json
from choreo.text.feedback import render_feedback
from choreo.types import Feedback

PARAMETERS = {"type": "object", "properties": {"to": {"type": "string"}}, "required": ["to"]}
TOOLS = [{"type": "function", "function": {"name": "send", "description": "Sends.", "parameters": PARAMETERS}}]
FLAT = [{"type": "function", "name": "send", "parameters": PARAMETERS, "strict": False}]
THEIRS = [{"name": "send", "description": "Sends.", "input_schema": PARAMETERS}]
BAD = r"\u0062ad"  # "bad", as JSON may write it: a reviewer that reads the escape would not find the word


class Recipe(BaseModel):
    """Steps."""

    steps: list[str]


def calls(*arguments, content=None):
    functions = [{"name": "send", "arguments": one} for one in arguments]
    told = [{"id": f"x{i}", "type": "function", "function": one} for i, one in enumerate(functions)]
    message = {"role": "assistant", "content": content, "tool_calls": told}
    return {"object": "chat.completion", "choices": [{"message": message, "finish_reason": "tool_calls"}]}


def script(body, n):
    """Both agents. The user's first word says what the draft is; a revision is harmless."""
    turns = body["messages"]
    if body.get("response_format", {}).get("json_schema", {}).get("name") == "feedback":
        answer = turns[1]["content"].split("answer:")[1]
        return Say(said(render_feedback(Feedback("", "bad" in answer, False, "Be kind."))))
    first = next(turn for turn in turns if turn["role"] == "user")["content"].split()[0]
    again = turns[-1]["role"] == "user" and "Be kind." in turns[-1]["content"]
    word = "a friend" if again else BAD
    if first == "hello":
        return Say(said("hi"))
    if first in ("call", "stubborn"):
        if turns[-1]["role"] == "tool":
            return Say(said(f"It gave {turns[-1]['content']}."))
        return Say(calls(f'{{"to": "{BAD if first == "stubborn" else word}"}}', '{"to": "you"}', content="I will."))
    if first == "raw":
        return Say(calls(turns[-1]["content"].removeprefix("raw ")))
    if first == "say" and not again:
        return Say(said(turns[-1]["content"].removeprefix("say ")))
    if first == "both":  # a refusal, and calls beside it
        both = calls('{"to": "you"}')
        both["choices"][0]["message"]["refusal"] = "I would rather not."
        return Say(both)
    if first == "refuse":
        return Say(said(None, refusal="I would rather not."))
    return Say(said(json.dumps({"steps": ["take", "X"]}).replace("X", word)))


@pytest.fixture(scope="module")
def stub():
    with Stub(script) as server:
        yield server


@pytest.fixture(scope="module")
def server(stub):
    where = [part for agent in ("conversation", "feedback") for part in (f"--{agent}", f"run@{stub.url}")]
    with Serving(None, *where) as started:
        yield started
        assert started.rest == []


@pytest.fixture(scope="module")
def ours(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


@pytest.fixture(scope="module")
def theirs(server):
    return anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0)


def user(text):
    return [{"role": "user", "content": text}]


def given(calls):
    return [json.loads(call.function.arguments) for call in calls]


MENDED = [{"to": "a friend"}, {"to": "you"}]


def test_a_call_is_reviewed_as_words_and_leaves_as_a_call(ours, stub):
    before = len(stub.seen)
    asked = {"model": "run", "tools": TOOLS, "tool_choice": "required", "messages": user("call one")}
    reply = ours.chat.completions.create(**asked, parallel_tool_calls=True)
    [choice] = reply.choices
    assert choice.finish_reason == "tool_calls" and choice.message.content == "I will."
    assert given(choice.message.tool_calls) == MENDED  # the draft's first call was called unsafe
    draft, review, revision, last = stub.seen[before:]
    assert (draft["tools"], draft["tool_choice"], draft["parallel_tool_calls"]) == (TOOLS, "required", True)
    assert "to: bad" in review["messages"][1]["content"] and "tools" not in review
    assert revision["tool_choice"] == "auto" and revision["tools"] == TOOLS  # it may decline in words
    roles = [turn["role"] for turn in revision["messages"]]
    assert roles == ["user", "assistant", "tool", "tool", "user"] and revision["messages"][2]["content"] == NOT_CALLED
    ids = [call["id"] for call in revision["messages"][1]["tool_calls"]]
    assert ids == [turn["tool_call_id"] for turn in revision["messages"][2:4]]
    assert "to: a friend" in last["messages"][1]["content"]
    assert not {call.id for call in choice.message.tool_calls} & {"x0", "x1"}  # nobody has reviewed those


def test_what_stays_unsafe_is_withheld_and_no_call_is_made(ours, theirs):
    reply = ours.chat.completions.create(model="run", tools=TOOLS, messages=user("stubborn one")).choices[0]
    assert reply.message.content == UNSAFE
    assert reply.finish_reason == "content_filter" and not reply.message.tool_calls
    message = theirs.messages.create(model="run", max_tokens=99, tools=THEIRS, messages=user("stubborn one"))
    assert message.stop_reason == "refusal" and [block.type for block in message.content] == ["text"]


def test_a_conversation_goes_on_with_what_the_tools_gave(ours, theirs, stub):
    asked = {"model": "run", "tools": TOOLS}
    turns = user("call first")
    message = ours.chat.completions.create(messages=turns, **asked).choices[0].message
    turns += [message.model_dump(exclude_none=True)]
    turns += [{"role": "tool", "tool_call_id": call.id, "content": "12 degrees"} for call in message.tool_calls]
    before = len(stub.seen)
    assert ours.chat.completions.create(messages=turns, **asked).choices[0].message.content == "It gave 12 degrees."
    draft, review = stub.seen[before:]
    assert draft["messages"] == turns
    read = review["messages"][1]["content"]
    assert read.index("call first") < read.index("to: a friend") < read.index("12 degrees") < read.index("It gave 12")
    first = theirs.messages.create(model="run", max_tokens=99, tools=THEIRS, messages=user("call first"))
    uses = [block for block in first.content if block.type == "tool_use"]
    assert first.stop_reason == "tool_use" and [use.input for use in uses] == MENDED
    results = [{"type": "tool_result", "tool_use_id": use.id, "content": "13 degrees"} for use in uses]
    said = [*user("call first"), {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
    again = theirs.messages.create(model="run", max_tokens=99, tools=THEIRS, messages=said)
    assert again.content[0].text == "It gave 13 degrees." and again.stop_reason == "end_turn"
    response = ours.responses.create(model="run", input="call first", tools=FLAT)
    called = [item for item in response.output if item.type == "function_call"]
    assert [json.loads(item.arguments) for item in called] == MENDED and response.output_text == "I will."
    results = [{"type": "function_call_output", "call_id": item.call_id, "output": "14 degrees"} for item in called]
    said = [*user("call first"), *response.output, *results]
    assert ours.responses.create(model="run", input=said, tools=FLAT).output_text == "It gave 14 degrees."


def test_the_clients_own_accumulators_read_streams_of_calls(ours, theirs):
    with ours.chat.completions.stream(model="run", tools=TOOLS, messages=user("call two")) as events:
        message = events.get_final_completion().choices[0]
    assert given(message.message.tool_calls) == MENDED and message.message.content == "I will."
    assert message.finish_reason == "tool_calls"
    with ours.responses.stream(model="run", tools=FLAT, input="call two") as events:
        seen = list(events)
        final = events.get_final_response()
    assert [event.sequence_number for event in seen] == [*range(len(seen))]
    called = [item for item in final.output if item.type == "function_call"]
    assert [json.loads(item.arguments) for item in called] == MENDED and final.output_text == "I will."
    with theirs.messages.stream(model="run", max_tokens=99, tools=THEIRS, messages=user("call two")) as events:
        whole = events.get_final_message()
    assert [block.input for block in whole.content if block.type == "tool_use"] == MENDED
    assert whole.content[0].text == "I will." and whole.stop_reason == "tool_use"


def test_json_is_reviewed_as_words_and_leaves_as_json(ours, theirs, stub):
    before = len(stub.seen)
    parsed = ours.chat.completions.parse(model="run", messages=user("list it"), response_format=Recipe)
    assert parsed.choices[0].message.parsed == Recipe(steps=["take", "a friend"])
    draft, review, *_ = stub.seen[before:]
    assert draft["response_format"]["json_schema"]["name"] == "Recipe"
    assert "steps 1: take\nsteps 2: bad" in review["messages"][1]["content"]
    plain = ours.chat.completions.create(
        model="run", messages=user("list it"), response_format={"type": "json_object"}, stream=True
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in plain if chunk.choices)
    assert json.loads(text) == {"steps": ["take", "a friend"]}
    assert ours.responses.parse(model="run", input="list it", text_format=Recipe).output_parsed.steps[1] == "a friend"
    schema = {"type": "json_schema", "schema": Recipe.model_json_schema()}
    asked = {"model": "run", "max_tokens": 99, "output_config": {"format": schema}}
    assert json.loads(theirs.messages.create(messages=user("list it"), **asked).content[0].text)["steps"][0] == "take"
    # A refusal is no JSON, and no client should have to parse it.
    refused = ours.chat.completions.parse(model="run", messages=user("refuse"), response_format=Recipe)
    assert refused.choices[0].message.refusal == "I would rather not." and refused.choices[0].message.parsed is None
    assert theirs.messages.create(messages=user("refuse"), **asked).stop_reason == "refusal"


def test_json_that_no_parser_takes_is_read_without_escapes_too(ours):
    """In a fence, cut off, two in a row: a caller may read them all the same."""
    asked = {"model": "run", "response_format": {"type": "json_object"}}
    for text in (
        '```json\n{"steps": ["BAD"]}\n```',
        '{"steps": ["BAD',
        '{"a": 1} {"a": "BAD"}',
        r'{"a": "\bad"} bad',  # a backslash that hides nothing
    ):
        reply = ours.chat.completions.create(messages=user(f"say {text.replace('BAD', BAD)}"), **asked)
        assert json.loads(reply.choices[0].message.content) == {"steps": ["take", "a friend"]}, text
    assert readable_json(r'["\u0062ad\\u0062", "c\n') == r'["\u0062ad\\u0062", "c\n' + "\n\n" + '["bad\\u0062", "c\n'


def test_what_nests_deeper_than_a_reviewer_can_follow_is_no_draft(ours, theirs):
    def deep(levels):
        return '{"to": ' * levels + "1" + "}" * levels

    uses = {"model": "run", "max_tokens": 99, "tools": THEIRS}
    for levels in (DEPTH + 1, 600, 991):
        with pytest.raises(anthropic.APIStatusError, match="no JSON object") as failed:
            theirs.messages.create(messages=user(f"raw {deep(levels)}"), **uses)
        assert failed.value.status_code == 503
        with pytest.raises(openai.InternalServerError, match="levels"):
            asked = {"messages": user(f"say {deep(levels)}"), "response_format": {"type": "json_object"}}
            ours.chat.completions.create(model="run", **asked)
    assert theirs.messages.create(messages=user(f"raw {deep(DEPTH)}"), **uses).content[0].input == json.loads(
        deep(DEPTH)
    )


def test_a_stop_string_between_calls_makes_no_repeat_of_a_revision(ours):
    reply = ours.chat.completions.create(model="run", tools=TOOLS, messages=user("call one"), stop=["\n"])
    assert given(reply.choices[0].message.tool_calls) == MENDED
    asked = {"messages": user("list it"), "response_format": {"type": "json_object"}}
    reply = ours.chat.completions.create(model="run", stop=["steps"], **asked)
    assert json.loads(reply.choices[0].message.content)["steps"][1] == "a friend"


def test_no_call_leaves_that_nobody_asked_for(ours):
    """Of a tool that is not on offer, of any with tool_choice none, or beside a refusal."""
    turns = user('raw {"to": "you"}')
    for more in (
        {"tools": [{"type": "function", "function": {"name": "other"}}]},
        {"tools": TOOLS, "tool_choice": "none"},
    ):
        with pytest.raises(openai.InternalServerError, match="may not be called"):
            ours.chat.completions.create(model="run", messages=turns, **more)
    [choice] = ours.chat.completions.create(model="run", messages=user("both"), tools=TOOLS).choices
    assert choice.message.refusal == "I would rather not." and not choice.message.tool_calls
    assert choice.finish_reason == "stop"


def test_what_is_no_call_is_no_draft_and_what_does_not_fit_is_named(ours, theirs, server, stub):
    deep = '{"to": ' * 2000 + "1" + "}" * 2000
    for arguments in ('{"to": ', '{"to": NaN}', '{"to": 1e999}', '["to"]', '"to"', deep):
        with pytest.raises(openai.InternalServerError, match="no JSON object") as failed:
            ours.chat.completions.create(model="run", tools=TOOLS, messages=user(f"raw {arguments}"))
        assert failed.value.code == "model_unavailable"
    half = {"model": "run", "messages": user(r'raw {"to": "\ud83d"}')}  # half a letter, as some models write it
    assert given(ours.chat.completions.create(tools=TOOLS, **half).choices[0].message.tool_calls) == [{"to": "\ud83d"}]
    assert theirs.messages.create(tools=THEIRS, max_tokens=9, **half).content[0].input == {"to": "\ufffd"}
    result = {"role": "tool", "content": "x"}
    for more, param in (
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools.0.type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"messages": [*user("hello"), {**result, "tool_call_id": "none"}]}, "messages.1.role"),
        ({"messages": [*user("hello"), result]}, "messages.1.tool_call_id"),
        ({"messages": [{"role": "user", "content": "hello", "tool_call_id": "1"}]}, "messages.0.tool_call_id"),
    ):
        answer = server.ask("hello", **more)
        assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    formats = ("responses", "text.format")
    for (path, param), more, why in (
        (formats, {"type": "json_schema", "name": "x"}, "schema: is required with type json_schema"),
        (formats, {"type": "json_schema", "schema": {}}, "name: is required with type json_schema"),
        (formats, {"type": "text", "name": "x"}, "name: is allowed with type json_schema alone"),
        (("messages", "tool_choice"), {"type": "auto", "name": "x"}, "name: is required with type tool, and allowed"),
    ):
        said = {"input": "hello", "text": {"format": more}}
        if path == "messages":
            said = {"messages": user("hello"), "max_tokens": 9, "tools": THEIRS, "tool_choice": more}
        answer = server.http.post(f"/v1/{path}", json={"model": "run", **said})
        assert answer.status_code == 400 and f"{param}.{why}" in answer.json()["error"]["message"], answer.text
    before = len(stub.seen)
    assert server.ask("hello", tools=[], tool_choice="auto", parallel_tool_calls=True).status_code == 200
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & {*stub.seen[before]}  # as they ask for nothing


def test_a_pair_of_its_own_refuses_them_by_name(tmp_path):
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    turns = [
        *user("hi"),
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "x"},
    ]
    with Serving(make_run(tmp_path / "run")) as server:
        for path, more, param in (
            ("chat/completions", {"messages": user("hi"), "tools": TOOLS}, "tools"),
            (
                "chat/completions",
                {"messages": user("hi"), "response_format": {"type": "json_object"}},
                "response_format",
            ),
            ("chat/completions", {"messages": turns}, "messages.1.role"),
            ("responses", {"input": "hi", "text": {"format": {"type": "json_object"}}}, "text.format"),
            ("messages", {"messages": user("hi"), "max_tokens": 9, "tools": THEIRS}, "tools"),
        ):
            answer = server.http.post(f"/v1/{path}", json={"model": "run", **more})
            assert answer.status_code == 400 and f"{param}: tools and JSON are for" in answer.json()["error"]["message"]


def test_a_reviewer_reads_every_name_and_value():
    """Whatever JSON hides in escapes, in names that come twice, or in numbers that a parser would change."""
    seed = random.randrange(10**6)
    rng = random.Random(seed)

    def value(depth):
        if depth and rng.random() < 0.6:
            inner = [value(depth - 1) for _ in range(rng.randrange(4))]
            if rng.random() < 0.5:
                return "[" + ", ".join(inner) + "]"
            return "{" + ", ".join(f'"n{rng.randrange(3)}": {one}' for one in inner) + "}"
        if rng.random() < 0.3:
            words.append(str(rng.randrange(10**9)))
            return words[-1]
        words.append(f"w{rng.randrange(10**9)}")
        return '"' + "".join(rf"\u{ord(x):04x}" if rng.random() < 0.5 else x for x in words[-1]) + '"'

    for _ in range(100):
        words: list[str] = []
        text = '{"top": ' + value(3) + "}"
        read = readable_answer("", [ToolCall("1", "send", text)])
        assert "send" in read and all(word in read for word in words), (seed, text)
    assert readable_json('{"a": 1, "a": 1e999}') == "a: 1\na: 1e999"
    assert readable_json("{no") == "{no"
    assert readable_json(r'{"a": "\ud83d"}') == "a: \ufffd"
