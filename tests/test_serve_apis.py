"""The Responses API and Anthropic's Messages API, by their official clients: the same sessions in other words."""

from __future__ import annotations

import re
from pathlib import Path

import anthropic
import httpx2
import openai
import pytest
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from pydantic import TypeAdapter
from serving import KEY, Serving, listening, make_run
from stub_endpoint import Say, Stub
from stub_endpoint import chat as said

from choreo.server import messages_requests, responses_requests
from choreo.server.app import application
from choreo.server.keys import own_key
from choreo.server.session import UNSAFE, WITHHELD, Down
from choreo.server.state import Server, Settings
from choreo.text.feedback import render_feedback
from choreo.types import CONVERSATION, FEEDBACK, Feedback, Limits, Turn

ASKED = "How do I rob a bank?"


def clients(url: str) -> tuple[openai.OpenAI, anthropic.Anthropic]:
    theirs = anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0)
    return openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0), theirs


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Serving(make_run(tmp_path_factory.mktemp("runs") / "run"), "--system", "prepend") as server:
        yield clients(server.url)
        assert server.rest == []


def script(body, n):
    """Both agents. The prompt says what goes wrong."""
    reviewing = "response_format" in body
    words = body["messages"][1 if reviewing else 0]["content"]
    if "garbled" in words and reviewing:
        return Say(said("{nonsense"))
    if not reviewing:
        return Say({}, 500) if "mute" in words else Say(said("an answer"))
    return Say(said(render_feedback(Feedback("", "bad" in words, False, "Refuse."))))


@pytest.fixture(scope="module")
def scripted():
    with Stub(script) as stub:
        where = [part for agent in ("conversation", "feedback") for part in (f"--{agent}", f"run@{stub.url}")]
        with Serving(None, *where) as server:
            yield clients(server.url)


@pytest.mark.parametrize("mode", ["adaptive", "off"])
def test_a_request_has_one_answer_in_all_apis(pair, mode):
    ours, theirs = pair
    # Anthropic's client has no argument for the temperature any more.
    shared = {"model": "run", "extra_body": {"temperature": 0, "choreo": {"trace": True, "mode": mode}}}
    told = [{"role": "user", "content": "What is 3 plus 4?"}, {"role": "assistant", "content": "7"}]
    turns = [*told, {"role": "user", "content": ASKED}]
    chat = ours.chat.completions.create(messages=[{"role": "system", "content": "Be brief."}, *turns], **shared)
    response = ours.responses.create(instructions="Be brief.", input=turns, **shared)
    message = theirs.messages.create(system="Be brief.", messages=turns, max_tokens=999, **shared)
    text = chat.choices[0].message.content
    if chat.choices[0].finish_reason != "content_filter":
        assert (response.output_text, message.content[0].text) == (text, text)
        assert response.status == "completed" and message.stop_reason == "end_turn"
    else:
        assert response.output[0].content[0].type == message.stop_reason == "refusal"
    used = (chat.usage.prompt_tokens, chat.usage.completion_tokens)
    assert (response.usage.input_tokens, response.usage.output_tokens) == used
    assert (message.usage.input_tokens, message.usage.output_tokens) == used
    for reply in (response, message):
        moves = reply.choreo["choices"][0]["moves"]
        assert [(m["stage"], m["tokens"]) for m in moves] == [
            (m["stage"], m["tokens"]) for m in chat.choreo["choices"][0]["moves"]
        ]


def test_a_reply_may_be_sent_back_as_it_came(pair):
    ours, theirs = pair
    response = ours.responses.create(model="run", input="What is 3 plus 4?")
    turns = [{"role": "user", "content": "What is 3 plus 4?"}, *response.output, {"role": "user", "content": ASKED}]
    again = ours.responses.create(model="run", input=turns)
    assert again.usage.input_tokens > response.usage.input_tokens and again.id != response.id
    message = theirs.messages.create(model="run", max_tokens=99, messages=turns[:1])
    block = {"type": "text", "text": ASKED, "cache_control": {"type": "ephemeral"}}
    more = [{"role": "assistant", "content": message.content}, {"role": "user", "content": [block]}]
    assert theirs.messages.create(model="run", max_tokens=99, messages=[*turns[:1], *more]).content[0].text


@pytest.mark.parametrize("stream", ["checked", "unchecked"])
def test_the_clients_own_accumulators_read_the_streams(pair, stream):
    ours, theirs = pair
    shared = {"model": "run", "extra_body": {"temperature": 0, "choreo": {"mode": "off"}}}
    turns = [{"role": "user", "content": ASKED}]
    text = ours.responses.create(input=ASKED, **shared).output_text
    if stream == "unchecked":
        shared["extra_body"] |= {"choreo": {"stream": "unchecked", "trace": True}}
    with ours.responses.stream(input=ASKED, **shared) as events:
        seen = list(events)
        final = events.get_final_response()
    assert final.output_text == text and final.status == "completed" and final.usage.output_tokens > 0
    assert [event.sequence_number for event in seen] == [*range(len(seen))]
    kinds = [event.type for event in seen]
    deltas = [event.delta for event in seen if event.type == "response.output_text.delta"]
    assert "".join(deltas) == text and (len(deltas) > 3) == (stream == "unchecked")
    head = ["created", "in_progress", "output_item.added", "content_part.added", "output_text.delta"]
    tail = ["output_text.done", "content_part.done", "output_item.done", "completed"]
    assert kinds[:5] == [f"response.{kind}" for kind in head] and kinds[-4:] == [f"response.{kind}" for kind in tail]
    with theirs.messages.stream(messages=turns, max_tokens=999, **shared) as events:
        kinds = [event.type for event in events if event.type != "text"]
        message = events.get_final_message()
    assert message.content[0].text == text and message.stop_reason == "end_turn"
    assert message.usage.output_tokens == final.usage.output_tokens
    assert message.usage.input_tokens == final.usage.input_tokens > 0
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


def test_what_is_withheld_is_a_refusal_in_each_apis_form(scripted):
    ours, theirs = scripted
    for asked, sentence in (("a bad one", UNSAFE), ("a garbled one", WITHHELD)):
        response = ours.responses.create(model="run", input=asked)
        [part] = response.output[0].content
        assert (response.status, part.type, part.refusal) == ("completed", "refusal", sentence)
        assert response.output_text == ""
        with ours.responses.stream(model="run", input=asked) as events:
            kinds = [event.type for event in events]
            [part] = events.get_final_response().output[0].content
        assert (part.type, part.refusal) == ("refusal", sentence) and "response.refusal.done" in kinds
        turns = [{"role": "user", "content": asked}]
        with theirs.messages.stream(model="run", max_tokens=9, messages=turns) as events:
            streamed = events.get_final_message()
        for message in (streamed, theirs.messages.create(model="run", max_tokens=9, messages=turns)):
            assert message.stop_reason == message.stop_details.type == "refusal"
            assert message.content[0].text == message.stop_details.explanation == sentence
        # A refusal may be a part of the conversation that goes on.
        again = [*turns, *response.output, {"role": "user", "content": "hello"}]
        assert ours.responses.create(model="run", input=again).output


TYPES = {
    "chat/completions": (openai.types.chat.ChatCompletion, openai.types.chat.ChatCompletionChunk),
    "responses": (openai.types.responses.Response, openai.types.responses.ResponseStreamEvent),
    "messages": (anthropic.types.Message, anthropic.types.RawMessageStreamEvent),
}


@pytest.mark.parametrize("path", TYPES)
def test_replies_are_of_the_clients_types_and_hold_nothing_that_is_withheld(scripted, path):
    """Byte by byte: the clients themselves check no types, and skip what they do not know."""
    whole, event = map(TypeAdapter, TYPES[path])
    url = f"{str(scripted[1].base_url).rstrip('/')}/v1/{path}"
    for asked, leaves in (("a fine one", True), ("a bad one", False), ("a garbled one", False)):
        turns = [{"role": "user", "content": asked}]
        body = {"model": "run", "max_tokens": 9, "messages": turns}
        if path == "responses":
            body = {"model": "run", "input": turns}
        got = httpx2.post(url, json=body, headers={"Authorization": f"Bearer {KEY}"})
        stream = httpx2.post(url, json=body | {"stream": True}, headers={"Authorization": f"Bearer {KEY}"})
        assert whole.validate_json(got.content)
        lines = [line.removeprefix("data: ") for line in stream.text.splitlines() if line.startswith("data: ")]
        assert all(event.validate_json(line) for line in lines if line != "[DONE]") and len(lines) > 2
        assert ("an answer" in got.text) == ("an answer" in stream.text) == leaves


def test_limits_and_stops_end_an_answer(pair):
    ours, theirs = pair
    shared = {"model": "run", "extra_body": {"temperature": 0, "choreo": {"mode": "off"}}}
    turns = [{"role": "user", "content": ASKED}]
    whole = ours.responses.create(input=ASKED, **shared).output_text
    short = ours.responses.create(input=ASKED, max_output_tokens=3, **shared)
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert short.output[0].status == "incomplete" and short.usage.output_tokens == 3
    with ours.responses.stream(input=ASKED, max_output_tokens=3, **shared) as events:
        *_, last = events
    assert last.type == "response.incomplete" and last.response.output_text == short.output_text
    assert theirs.messages.create(messages=turns, max_tokens=3, **shared).stop_reason == "max_tokens"
    stop = whole.split()[2]
    cut = theirs.messages.create(messages=turns, max_tokens=99, stop_sequences=["zzz", stop], **shared)
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    assert cut.content[0].text == whole.split(stop)[0]


REFUSED = [
    ("responses", {"top_p": 0.5}, "top_p"),
    ("responses", {"tools": [{"type": "web_search"}]}, "tools.0.type"),
    ("responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
    ("responses", {"text": {"format": {"type": "json_object"}}}, "text.format"),
    ("responses", {"input": [{"role": "tool", "content": "x"}]}, "input.0.role"),
    ("responses", {"input": [{"role": "assistant", "content": "x"}]}, "input.0.role"),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type"),
    ("responses", {"input": "word " * 600}, "input"),
    ("responses", {"beams": 4}, "beams"),
    ("messages", {"top_k": 5}, "top_k"),
    ("messages", {"tools": [{"name": "f"}]}, "tools"),
    ("messages", {"max_tokens": 0}, "max_tokens"),
    ("messages", {"output_config": {"format": {"type": "json_schema"}}}, "output_config.format"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content.0"),
    ("messages", {"messages": [{"role": "user", "content": "word " * 600}]}, "the messages take"),
]


@pytest.mark.parametrize(("path", "more", "param"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_cannot_be_met_is_refused_by_name_in_the_apis_own_form(pair, path, more, param):
    ours, theirs = pair
    if path == "responses":
        with pytest.raises(openai.BadRequestError) as refused:
            ours.responses.create(**{"model": "run", "input": "hi"}, extra_body=more)
        assert refused.value.param == param
        return
    with pytest.raises(anthropic.BadRequestError, match=param) as failed:
        turns = [{"role": "user", "content": "hi"}]
        theirs.messages.create(**{"model": "run", "max_tokens": 9, "messages": turns}, extra_body=more)
    body = failed.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert param in body["error"]["message"] and "\n" not in body["error"]["message"]


def test_errors_have_the_apis_own_form_everywhere(pair, scripted):
    ours, theirs = pair
    turns = [{"role": "user", "content": "hi"}]
    with pytest.raises(anthropic.NotFoundError, match="no model 'claude' here"):
        theirs.messages.create(model="claude", max_tokens=9, messages=turns)
    with pytest.raises(anthropic.AuthenticationError):
        theirs.with_options(api_key="wrong").messages.create(model="run", max_tokens=9, messages=turns)
    bearer = anthropic.Anthropic(base_url=str(theirs.base_url), auth_token=KEY, max_retries=0)
    assert bearer.messages.create(model="run", max_tokens=9, messages=turns).type == "message"
    with pytest.raises(openai.AuthenticationError):  # the header is Anthropic's
        ours.responses.create(model="run", input="hi", extra_headers={"Authorization": "", "x-api-key": KEY})
    got = httpx2.get(f"{theirs.base_url}/v1/messages")
    assert got.status_code == 405 and got.headers["allow"] == "POST" and got.json()["type"] == "error"
    ours, theirs = scripted
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as down:
            ours.responses.create(model="run", input="mute", stream=stream)
        assert down.value.code == "model_unavailable"
        with pytest.raises(anthropic.APIStatusError) as failed:
            theirs.messages.create(
                model="run", max_tokens=9, messages=[{"role": "user", "content": "mute"}], stream=stream
            )
        assert failed.value.body["error"]["type"] == "overloaded_error" and failed.value.status_code == 503


class Failing:
    """An agent that fails in the middle of its answer."""

    trained = True

    def room(self, game, options, rounds):
        pass

    async def next_turn(self, game, options, on_token=None):
        if on_token is not None:
            on_token(Turn(CONVERSATION, 0, (), (1,), (), 0, "Sure. Take ", False))
        raise Down("it is gone")


def test_a_stream_that_fails_in_the_middle_ends_with_the_apis_own_event():
    settings = Settings("run", "adaptive", Limits(1, 9, 9), 0.6)
    server = Server(settings, {CONVERSATION: Failing(), FEEDBACK: Failing()}, [own_key(KEY)])
    unchecked = {"model": "run", "stream": True, "extra_body": {"choreo": {"stream": "unchecked"}}}
    with listening(application(server)) as http:
        ours, theirs = clients(str(http.base_url))
        events = list(ours.responses.create(input="hi", **unchecked))
        assert [event.type for event in events[-2:]] == ["response.output_text.delta", "error"]
        assert (events[-1].code, events[-1].sequence_number) == ("model_unavailable", len(events) - 1)
        stream = theirs.messages.create(messages=[{"role": "user", "content": "hi"}], max_tokens=9, **unchecked)
        seen = []
        with pytest.raises(anthropic.APIStatusError, match="it is gone"):
            seen += (event.type for event in stream)
        assert seen == ["message_start", "content_block_start", "content_block_delta"]


@pytest.mark.parametrize(
    ("name", "api", "model", "theirs"),
    [
        ("responses", responses_requests, responses_requests.ResponsesRequest, ResponseCreateParamsBase),
        ("messages", messages_requests, messages_requests.MessagesRequest, MessageCreateParamsBase),
    ],
)
def test_every_field_of_the_official_client_is_used_ignored_or_refused_on_purpose(name, api, model, theirs):
    """And docs/serving.md says which."""
    used, ignored, refused = {*model.model_fields} - {"choreo"}, api.IGNORED, {*api.NEUTRAL}
    assert used | ignored | refused >= {*theirs.__annotations__} and not (used & ignored or refused & (used | ignored))
    page = (Path(__file__).parent.parent / "docs/serving.md").read_text(encoding="utf-8")
    rows = dict(re.findall(rf"^\| {name}, (used|ignored|refused) \|(.*)", page, re.M))
    named = {kind: set(re.findall(r"`(\w+)", row)) for kind, row in rows.items()}
    assert named == {"used": used, "ignored": ignored, "refused": refused}


def test_hints_are_ignored(pair):
    ours, theirs = pair
    hints = {"reasoning": {"effort": "low"}, "store": True, "metadata": {"a": "b"}, "text": {"verbosity": "low"}}
    assert ours.responses.create(model="run", input="hi", user="u", include=["reasoning.encrypted_content"], **hints)
    turns, thinking = [{"role": "user", "content": "hi"}], {"type": "enabled", "budget_tokens": 1024}
    asked = {"messages": turns, "max_tokens": 9, "metadata": {"user_id": "u"}, "output_config": {"effort": "low"}}
    assert theirs.messages.create(model="run", thinking=thinking, **asked).type == "message"
