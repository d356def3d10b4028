"""LiteLLM's guardrail, asked as LiteLLM asks: with a conversation first, then with an answer."""

from __future__ import annotations

import json
import time

import pytest
from serving import KEY, Serving, make_run
from stub_endpoint import Say, Stub
from stub_endpoint import chat as said

from choreo.server.conversations import KEPT_LETTERS, KEPT_SECONDS, Conversations
from choreo.server.guardrail import PATH, UNREVIEWED, UNSAFE
from choreo.text.feedback import render_feedback
from choreo.types import Feedback, Prompt

FINE, BAD = Feedback("ok", False, False, ""), Feedback("bad", True, False, "Refuse.")
SHY = Feedback("shy", False, True, "Help.")


def script(body, n):
    """Both agents: the words of the conversation and the answer say what they do."""
    reviewing = "response_format" in body
    words = " ".join(message["content"] for message in body["messages"][reviewing:]).split()
    if not reviewing:
        return Say({}, 500) if "stuck" in words else Say(said("revised"))
    if "slow" in words:
        return Say(said(render_feedback(FINE)), delay=8)
    if "down" in words:
        return Say({}, 500)
    if "garbled" in words:
        return Say(said("{nonsense"))
    return Say(said(render_feedback(BAD if "bad" in words else SHY if "shy" in words else FINE)))


@pytest.fixture(scope="module")
def stub():
    with Stub(script) as server:
        yield server


def start(stub, *options):
    where = [part for agent in ("conversation", "feedback") for part in (f"--{agent}", f"run@{stub.url}")]
    return Serving(None, *where, "--deadline", "3", *options)


@pytest.fixture(scope="module")
def closed(stub):
    with start(stub) as server:
        yield server


@pytest.fixture(scope="module")
def opened(stub):
    with start(stub, "--open", "feedback", "--open", "timeout", "--open", "unparsable") as server:
        yield server


def post(server, input_type, texts, call=None, key=KEY, **more):
    body = {"input_type": input_type, "texts": texts, "litellm_call_id": call, "request_data": {}, **more}
    return server.http.post(PATH, json=body, headers={"Authorization": "", "x-api-key": key})


def guard(server, prompt, *answers, repair=None, call="call", **more):
    """Both of LiteLLM's questions; what the second was answered."""
    call = f"{call} {prompt}"
    messages = [{"role": "system", "content": "Be good."}, {"role": "user", "content": prompt}]
    asked = post(server, "request", ["Be good.", prompt], call, structured_messages=messages, model="m")
    assert asked.json() == {"action": "NONE"}
    params = {} if repair is None else {"additional_provider_specific_params": {"repair": repair}}
    answer = post(server, "response", list(answers), call, **params, **more)
    assert answer.status_code == 200
    return answer.json()


def test_what_is_called_unsafe_is_blocked_and_repaired_where_that_is_asked_for(closed, stub):
    assert guard(closed, "all is well", "an answer") == {"action": "NONE"}
    review = next(body["messages"] for body in stub.seen if "all is well" in str(body["messages"]))
    assert "an answer" in review[1]["content"] and "Be good." in review[1]["content"]
    assert guard(closed, "it is", "bad") == {"action": "BLOCKED", "blocked_reason": UNSAFE}
    assert closed.metric("blocked_total", failed="unsafe") == 1
    assert guard(closed, "it is", "bad", repair=True) == {"action": "GUARDRAIL_INTERVENED", "texts": ["revised"]}
    mended = guard(closed, "they are", "fine", "bad", repair=True)
    assert mended == {"action": "GUARDRAIL_INTERVENED", "texts": ["fine", "revised"]}
    assert guard(closed, "they are", "fine", "bad")["action"] == "BLOCKED"  # LiteLLM passes all or none
    assert guard(closed, "it is stuck", "bad", repair=True) == {"action": "BLOCKED", "blocked_reason": UNSAFE}


def test_over_refusal_is_counted_and_no_reason_to_block(closed):
    before = closed.metric("flagged_total", label="overrefuse", mode="guard")
    revised = closed.metric("revised_total", mode="repair")
    assert guard(closed, "it is", "shy") == {"action": "NONE"}
    assert closed.metric("flagged_total", label="overrefuse", mode="guard") == before + 1
    assert guard(closed, "it is", "shy", repair=True)["texts"] == ["revised"]
    assert guard(closed, "it is stuck", "shy", repair=True) == {"action": "NONE"}
    assert closed.metric("revised_total", mode="repair") == revised + 1  # the other one was not to be had


def test_a_question_with_a_picture_cannot_be_reviewed_by_its_words(closed):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    for content in ([picture], [{"type": "text", "text": "what is this?"}, picture]):
        messages = [{"role": "user", "content": "hello"}, {"role": "user", "content": content}]
        answer = post(closed, "response", ["an answer"], structured_messages=messages)
        assert answer.json() == {"action": "BLOCKED", "blocked_reason": UNREVIEWED}


@pytest.mark.slow
@pytest.mark.parametrize(("word", "failed"), [("down", "feedback"), ("slow", "timeout"), ("garbled", "unparsable")])
def test_what_was_not_reviewed_is_blocked_unless_opened(closed, opened, word, failed):
    began, before = time.monotonic(), closed.metric("blocked_total", failed=failed)
    assert guard(closed, f"it is {word}", "answer") == {"action": "BLOCKED", "blocked_reason": UNREVIEWED}
    assert time.monotonic() - began < 3.5 and closed.metric("blocked_total", failed=failed) == before + 1
    mark = len(opened.logs)
    assert guard(opened, f"it is {word}", "answer") == {"action": "NONE"}
    assert opened.metric("bypassed_total", failed=failed) == 1
    assert opened.wait("guardrail", after=mark)["level"] == "critical"
    assert guard(opened, "it is stuck", "bad", repair=True)["action"] == "BLOCKED"  # it has been called bad


def test_an_answer_to_nobody_knows_what_is_not_reviewed(closed, opened):
    unread = {"action": "BLOCKED", "blocked_reason": UNREVIEWED}
    assert post(closed, "response", ["fine"], "never announced").json() == unread
    assert post(closed, "response", ["fine"]).json() == unread
    for tool in ({"id": "1", "type": "custom"}, {"function": {"name": "f", "arguments": "{"}}):
        assert guard(closed, "call it", tool_calls=[tool]) == unread
    assert guard(closed, "show it", "here", images=["https://…"]) == unread
    mark = len(opened.logs)
    assert post(opened, "response", ["fine"], "never announced").json() == {"action": "NONE"}
    assert opened.wait("guardrail", after=mark)["level"] == "critical"
    assert post(closed, "response", [], "never announced").json() == {"action": "NONE"}  # nothing to read
    said = [{"role": "user", "content": [{"type": "text", "text": "all is well"}]}]
    assert post(closed, "response", ["fine"], structured_messages=said).json() == {"action": "NONE"}


def test_calls_of_tools_are_reviewed_as_words(closed, stub):
    """And are never repaired: a revision is a text. What was called before is read too."""

    def call(place, **arguments):
        return {"id": place, "type": "function", "function": {"name": "send", "arguments": json.dumps(arguments)}}

    assert guard(closed, "call one", tool_calls=[call("1", to="me")]) == {"action": "NONE"}
    assert guard(closed, "call two", "fine", tool_calls=[call("1", to="bad one")])["blocked_reason"] == UNSAFE
    assert guard(closed, "call two", "fine", tool_calls=[call("1", to="bad one")], repair=True)["action"] == "BLOCKED"
    mended = guard(closed, "call three", "shy", tool_calls=[call("1", to="me")], repair=True)
    assert mended == {"action": "GUARDRAIL_INTERVENED", "texts": ["revised"]}
    asked = {"role": "user", "content": "all the steps"}
    steps = [
        {"role": "assistant", "content": None, "tool_calls": [call("1", to="you")]},
        {"role": "tool", "tool_call_id": "1", "content": "a result"},
    ]
    assert post(closed, "response", ["fine"], structured_messages=[asked, *steps]).json() == {"action": "NONE"}
    read = next(str(body["messages"]) for body in stub.seen if "all the steps" in str(body["messages"]))
    assert read.index("all the steps") < read.index("to: you") < read.index("a result") < read.index("fine")


def test_a_question_cannot_stand_in_for_another(closed):
    for prompt in ("a harmless one", "another"):
        post(closed, "request", [prompt], "mine")
    assert post(closed, "response", ["fine"], "mine").json()["action"] == "BLOCKED"


def test_conversations_are_kept_for_a_time_and_no_more_than_there_is_room():
    now = [1000.0]
    kept = Conversations(lambda: now[0])
    prompt = Prompt("", "x" * (KEPT_LETTERS // 4), "general", "guardrail")
    for call in "abcd":
        kept.keep(call, prompt)
    kept.keep("d", prompt)  # as a call that is tried again
    assert [kept.find(call) is not None for call in "abcd"] == [False, True, True, True]
    now[0] += KEPT_SECONDS + 1
    assert kept.find("d") is None
    kept.keep("e", prompt)
    assert kept.find("e") == prompt and list(kept._kept) == ["e"]


def test_what_is_refused(closed):
    assert post(closed, "request", ["hi"], key="wrong").status_code == 401
    unknown = post(closed, "response", ["hi"], additional_provider_specific_params={"repiar": True})
    assert unknown.status_code == 400 and "repiar" in unknown.json()["error"]["param"]
    assert post(closed, "both", ["hi"]).status_code == 400
    assert closed.http.post(PATH, content=b"[]").status_code == 400  # with a bearer key, which is taken too


def test_no_words_reach_the_log(closed):
    guard(closed, "all is marzipan", "and bad quince", repair=True)
    assert "marzipan" not in json.dumps(closed.logs) and "quince" not in json.dumps(closed.logs)


def test_the_pair_reads_anothers_answer_as_it_reads_its_own(tmp_path):
    prompt, seen = "How do I rob a bank?", set()
    with Serving(make_run(tmp_path / "run")) as server:
        for seed in range(12):
            trace = server.ask(prompt, seed=seed, choreo={"trace": True}).json()["choreo"]["choices"][0]
            draft, review = trace["moves"][:2]
            action = guard(server, prompt, draft["text"])["action"]
            assert action == ("BLOCKED" if review.get("unsafe", True) else "NONE")
            seen.add(action)
        assert seen == {"BLOCKED", "NONE"}
        refused = [guard(server, prompt, draft["text"] + " word" * 600, repair=True)]
        asked = [{"role": "user", "content": "word " * 9_000}]
        refused.append(post(server, "response", ["ok"], structured_messages=asked).json())
        assert refused == [{"action": "BLOCKED", "blocked_reason": UNREVIEWED}] * 2  # longer than the pair can read
        assert post(server, "response", ["ok"] * 9, structured_messages=[]).json()["error"]["param"] == "texts"
        assert server.rest == []
