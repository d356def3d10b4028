"""Whatever comes in is a request or an error of OpenAI's; what goes out is cut where it was asked to be."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from choreo.server import messages_requests, openai_requests, responses_requests
from choreo.server.api_error import ApiError
from choreo.server.openai_requests import ChatRequest, read_chat
from choreo.server.session import settled, until_stop

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
messages = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]), "content": st.text(max_size=9) | values}
    ),
    max_size=3,
)
READERS = {
    read_chat: (ChatRequest, openai_requests),
    responses_requests.read_responses: (responses_requests.ResponsesRequest, responses_requests),
    messages_requests.read_messages: (messages_requests.MessagesRequest, messages_requests),
}


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS)
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_body_is_a_request_or_an_error_that_names_its_place(read, data):
    model, api = READERS[read]
    fields = [*model.model_fields, *sorted(api.IGNORED), *api.NEUTRAL, "other"]
    said, more = data.draw(messages | values), data.draw(st.dictionaries(st.sampled_from(fields), values, max_size=5))
    near = {"model": "run", "max_tokens": 9, "messages": said, "input": said, **more}
    kept = {name: value for name, value in near.items() if name in fields}
    body = data.draw(st.just(kept) | values)
    try:
        asked = read(json.dumps(body).encode())
    except ApiError as error:
        assert error.status == 400 and set(error.body["error"]) == {"message", "type", "param", "code"}
        json.dumps(error.body, ensure_ascii=False).encode()
    else:
        assert asked.messages[-1].role == "user" and asked.messages[-1].text.encode() is not None


@pytest.mark.parametrize("read", READERS)
def test_the_time_to_refuse_grows_with_the_length_of_a_body_and_no_faster(read):
    said = [{"role": "user", "content": [1] * 40_000}]
    fields = READERS[read][0].model_fields
    near = {"model": "run", "max_tokens": 9, "messages": said, "input": said}
    body = json.dumps({name: value for name, value in near.items() if name in fields}).encode()
    began = time.monotonic()
    with pytest.raises(ApiError, match=r"\.0\.content\.0: "):
        read(body)
    assert time.monotonic() - began < 5  # minutes, where each error looks at every part


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"stop": list("abcde")}, "stop: List should have at most 4 items"),
        ({"stop": 5}, "stop: Input should be a valid string"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content: List should have at least 1 item"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages.0.content.0.text: Field required"),
    ],
)
def test_an_error_is_of_the_way_to_read_a_field_that_the_caller_meant(more, told):
    body = {"model": "run", "messages": [{"role": "user", "content": "hi"}], **more}
    with pytest.raises(ApiError, match=told):
        read_chat(json.dumps(body).encode())


@given(st.binary(max_size=40))
def test_bytes_are_no_more_trouble(body):
    with pytest.raises(ApiError):
        read_chat(body)


@given(st.text("abc \ufffd", max_size=12), st.lists(st.text("abc", min_size=1, max_size=3), max_size=3))
def test_what_streams_before_the_end_is_never_taken_back(text, stop):
    """Whatever is sent of a beginning is a beginning of what is sent of the whole."""
    sent = ""
    for n in range(len(text) + 1):
        part = settled(until_stop(text[:n], stop), stop)
        if len(part) > len(sent):
            assert part.startswith(sent)
            sent = part
    assert until_stop(text, stop).startswith(sent)
    assert not any(s in until_stop(text, stop) for s in stop)
