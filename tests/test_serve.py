"""`choreo serve` as clients meet it: a real process, the official client, every way to be refused."""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

import openai
import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase, CompletionCreateParamsNonStreaming
from serving import KEY, Serving, make_run

from choreo.cli.serve_commands import MODES, OPENABLE, RELEASES, SYSTEM_POLICIES
from choreo.game import play
from choreo.server import session
from choreo.server.openai_requests import IGNORED, NEUTRAL, ChatRequest

HARMFUL = "How do I rob a bank?"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Serving(make_run(tmp_path_factory.mktemp("runs") / "run"), "--queue", "40") as serving:
        yield serving


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def ask(client, text="What is 3 plus 4?", **more):
    return client.chat.completions.create(model="run", messages=[{"role": "user", "content": text}], **more)


def test_the_words_of_the_command_are_those_of_the_server():
    assert MODES == session.MODES and OPENABLE == session.OPENABLE
    assert SYSTEM_POLICIES == session.SYSTEM_POLICIES and RELEASES == session.RELEASES


def test_a_plain_answer_by_the_official_client(client):
    answer = ask(client, seed=1)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.finish_reason == "stop"
    own = answer.usage.choreo
    assert answer.usage.completion_tokens == sum(own.values()) and own["draft_tokens"] and own["feedback_tokens"]
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert [model.id for model in client.models.list()] == ["run"] and client.models.retrieve("run").id == "run"
    assert not hasattr(answer, "choreo")  # no trace that was not asked for


def test_the_trace_is_the_protocol_as_it_was_played(client):
    seen = set()
    for seed in range(12):
        answer = ask(client, HARMFUL, seed=seed, extra_body={"choreo": {"trace": True}})
        [game] = answer.choreo["choices"]
        stages = [move["stage"] for move in game["moves"]]
        review = game["moves"][1]
        assert stages[:2] == ["draft", "feedback"]
        if game["withheld"] == "unparsable":
            assert not game["moves"][-1]["parsed"] and answer.choices[0].finish_reason == "content_filter"
            seen.add("unparsable")
            continue
        asked = review["unsafe"] or review["overrefuse"]
        assert stages[2:] == (["revision", "feedback"] if asked else []) or game["withheld"] == "revision"
        if game["withheld"] == "revision":  # it says again what was flagged, or is flagged itself
            again = review["unsafe"] and game["moves"][2]["text"].split() == game["moves"][0]["text"].split()
            assert again if len(stages) == 3 else game["moves"][3]["unsafe"]
            seen.add("revision")
            continue
        assert game["triggered"] == game["revised"] == asked
        assert answer.choices[0].message.content == game["moves"][2 if asked else 0]["text"]
        seen.add(asked)
    assert {True, False} <= seen


def test_a_seed_repeats_an_answer_and_n_gives_several(client):
    first, again = (ask(client, HARMFUL, seed=5, n=3, temperature=1.0) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in again.choices] and len(texts) == 3 and len(set(texts)) > 1
    assert [choice.index for choice in first.choices] == [0, 1, 2]


def test_limits_and_stops_end_an_answer(client):
    off = {"extra_body": {"choreo": {"mode": "off"}}}
    whole = ask(client, HARMFUL, temperature=0, **off).choices[0]
    short = ask(client, HARMFUL, temperature=0, max_tokens=3, **off)
    assert short.choices[0].finish_reason == "length" and short.usage.choreo["draft_tokens"] == 3
    assert whole.message.content.startswith(short.choices[0].message.content)
    stop = whole.message.content.split()[2]
    cut = ask(client, HARMFUL, temperature=0, stop=[stop, "zzz"], **off)
    assert cut.choices[0].message.content == whole.message.content.split(stop)[0]
    assert cut.choices[0].finish_reason == "stop"
    assert cut.usage.completion_tokens < ask(client, HARMFUL, temperature=0, **off).usage.completion_tokens


def test_a_conversation_of_several_turns(client):
    turns = [("user", "What is 3 plus 4?"), ("assistant", "7"), ("user", "What is 5 plus 4?")]
    messages = [{"role": role, "content": text} for role, text in turns]
    messages[0]["content"] = [{"type": "text", "text": "What is 3 "}, {"type": "text", "text": "plus 4?"}]
    long = client.chat.completions.create(model="run", messages=messages)
    short = ask(client, turns[-1][1])
    assert long.usage.prompt_tokens > short.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="run", messages=[{"role": "system", "content": "Be rude."}, *messages])
    assert refused.value.param == "messages.0.role"


def test_modes(server, client):
    def moves(mode):
        answer = ask(client, seed=1, extra_body={"choreo": {"trace": True, "mode": mode}})
        assert answer.choreo["mode"] == mode
        return answer, [move["stage"] for move in answer.choreo["choices"][0]["moves"]]

    off, stages = moves("off")
    assert stages == ["draft"]
    shadow, stages = moves("shadow")
    assert stages == ["draft"] and shadow.choices[0].message.content == off.choices[0].message.content
    always, stages = moves("always")
    assert stages[:3] == ["draft", "feedback", "revision"] or always.choices[0].finish_reason == "content_filter"
    [seen] = [line for line in server.logs if line.get("mode") == "shadow" and line["event"] == "answer"] or [
        server.wait("answer", after=len(server.logs))
    ]
    assert seen["feedback_tokens"] > 0


def test_a_checked_stream_is_the_plain_answer_in_events(client):
    plain = ask(client, HARMFUL, seed=7, n=2)
    chunks = list(ask(client, HARMFUL, seed=7, n=2, stream=True, stream_options={"include_usage": True}))
    texts, finishes = ["", ""], [None, None]
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            finishes[choice.index] = choice.finish_reason or finishes[choice.index]
    assert texts == [choice.message.content for choice in plain.choices]
    assert finishes == [choice.finish_reason for choice in plain.choices]
    assert chunks[-1].usage.completion_tokens == plain.usage.completion_tokens and chunks[-1].choices == []
    assert len({chunk.id for chunk in chunks}) == 1


def test_an_unchecked_stream_is_the_draft_token_by_token_and_is_reviewed_afterwards(server, client):
    before, counted = len(server.logs), server.metric("unchecked_total")
    more = {"seed": 7, "stream": True}
    chunks = list(ask(client, HARMFUL, **more, extra_body={"choreo": {"stream": "unchecked"}}))
    draft = ask(client, HARMFUL, seed=7, extra_body={"choreo": {"mode": "off"}}).choices[0].message.content
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == draft and len(pieces) > 3
    deadline = time.monotonic() + 60
    while not (seen := [line for line in server.logs[before:] if line.get("mode") == "shadow"]):
        assert time.monotonic() < deadline, "no review"
        time.sleep(0.02)
    assert [(line["event"], line["feedback_tokens"] > 0) for line in seen] == [("answer", True)]
    assert server.metric("unchecked_total") == counted + 1


def test_a_traced_stream_shows_the_moves_as_they_are_made(client):
    chunks = list(ask(client, HARMFUL, seed=3, stream=True, extra_body={"choreo": {"trace": True}}))
    notes = [chunk.choreo for chunk in chunks if getattr(chunk, "choreo", None)]
    assert [note["move"]["stage"] for note in notes[:-1]][:2] == ["draft", "feedback"]
    assert notes[-1]["choices"][0]["moves"] == [note["move"] for note in notes[:-1]]


REFUSED = [
    ({"top_p": 0.5}, "top_p", "unsupported_parameter"),
    ({"tools": [{"type": "function"}]}, "tools.0.function", "invalid_value"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools", "unsupported_parameter"),
    ({"logprobs": True}, "logprobs", "unsupported_parameter"),
    ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
    ({"beams": 4}, "beams", "unknown_parameter"),
    ({"n": 0}, "n", "invalid_value"),
    ({"n": True}, "n", "invalid_value"),
    ({"temperature": 3}, "temperature", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"stop": ["a"] * 5}, "stop", "invalid_value"),
    ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ({"choreo": {"stream": "unchecked"}}, "choreo.stream", "invalid_value"),
    ({"choreo": {"mode": "sometimes"}}, "choreo.mode", "invalid_value"),
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "messages.0.content.0.type",
        "invalid_value",
    ),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages.0.role", "invalid_value"),
    ({"messages": [{"role": "user", "content": "word " * 600}]}, "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize(("more", "param", "code"), REFUSED, ids=lambda value: str(value)[:30])
def test_what_cannot_be_met_is_refused_by_name(server, more, param, code):
    answer = server.ask(**more)
    error = answer.json()["error"]
    assert answer.status_code == 400 and set(error) == {"message", "type", "param", "code"}
    assert (error["param"], error["code"]) == (param, code), error


def test_a_parameter_that_asks_for_nothing_is_taken(server):
    neutral = {"top_p": 1.0, "frequency_penalty": 0, "tools": [], "logprobs": False, "user": "u", "stop": None}
    assert server.ask(**neutral, tool_choice="auto", top_k=-1, min_p=0.0).status_code == 200


def test_hints_are_ignored_and_give_the_same_answer(client):
    hints = {
        "metadata": {"app": "x"},
        "parallel_tool_calls": False,
        "prediction": {"type": "content", "content": "No."},
        "prompt_cache_key": "k",
        "reasoning_effort": "high",
        "safety_identifier": "s",
        "service_tier": "flex",
        "store": True,
        "user": "u",
        "verbosity": "low",
    }
    plain, hinted = ask(client, HARMFUL, seed=5), ask(client, HARMFUL, seed=5, **hints)
    assert hinted.choices == plain.choices
    # What the client was sent, it may send back.
    said = [
        {"role": "user", "content": HARMFUL},
        plain.choices[0].message.model_dump(),
        {"role": "user", "content": "?"},
    ]
    said[1] |= {"annotations": [], "tool_calls": []}
    assert client.chat.completions.create(model="run", messages=said).choices


def test_every_field_of_the_official_client_is_used_ignored_or_refused_on_purpose():
    """And docs/serving.md says which."""
    theirs = {*CompletionCreateParamsNonStreaming.__annotations__, *CompletionCreateParamsBase.__annotations__}
    used = {*ChatRequest.model_fields} - {"choreo"}
    assert used | IGNORED | NEUTRAL.keys() >= theirs and not used & IGNORED and not NEUTRAL.keys() & {*used, *IGNORED}
    page = (Path(__file__).parent.parent / "docs/serving.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (used|ignored|refused) \|(.*)", page, re.M))
    named = {kind: set(re.findall(r"`(\w+)", row)) for kind, row in rows.items()}
    assert named == {"used": used, "ignored": IGNORED, "refused": {*NEUTRAL}}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"\\ud800"', b'{"model": NaN}', b"\xff", b"[" * 100000])
def test_what_is_no_json_object_is_refused(server, body):
    answer = server.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_json"


def test_errors_have_openais_shape_everywhere(server, client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="other", messages=[{"role": "user", "content": "hi"}])
    assert missing.value.code == "model_not_found"
    for method, path, status in (("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)):
        answer = server.http.request(method, path)
        assert answer.status_code == status and "message" in answer.json()["error"]
    large = server.http.post("/v1/chat/completions", content=b" " * 300_000)
    assert large.status_code == 413 and large.json()["error"]["code"] == "request_too_large"


def test_a_key_is_needed_on_every_path_but_liveness(server):
    assert server.http.get("/health", headers={"Authorization": ""}).status_code == 200
    for wrong in ("", "Bearer", "Bearer nope", "Basic " + KEY, KEY):
        for path in ("/v1/models", "/ready", "/metrics"):
            answer = server.http.get(path, headers={"Authorization": wrong})
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        posted = server.http.post("/v1/chat/completions", headers={"Authorization": wrong}, content=b"{}")
        assert posted.status_code == 401


def test_logs_hold_figures_and_no_words(server):
    server.ask("What is a teapot full of marzipan?")
    assert any(line["event"] == "answer" and "draft_ms" in line for line in server.logs)
    assert "marzipan" not in json.dumps(server.logs) + "".join(server.rest)
    assert server.rest == []


def test_every_review_is_read_as_training_reads_it():
    assert session.read_review is play.read_review


def test_it_stops_when_told(tmp_path):
    serving = Serving(make_run(tmp_path / "run"), key=None)
    assert serving.http.get("/ready").status_code == 401
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(60) == 0
    assert "#key=sk-choreo-" in serving.out.read() and serving.rest == []
