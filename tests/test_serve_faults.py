"""What a server does when things fail: servers that play the agents misbehave; answers are checked or withheld."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import threading
import time

import httpx2
import pytest
from serving import Serving
from stub_endpoint import Say, Stub
from stub_endpoint import chat as said

from choreo.agents.base import state_of
from choreo.agents.endpoint import messages
from choreo.cli import main
from choreo.server.keys import Limiter, entry, find_key, hashed, load, own_key
from choreo.server.session import UNSAFE, WITHHELD
from choreo.text.feedback import render_feedback
from choreo.types import Episode, Feedback, Prompt, TextTurn

FINE, BAD = Feedback("ok", False, False, ""), Feedback("bad", True, False, "Refuse.")
STRICT = Feedback("too strict", False, True, "Help.")


def script(body, n):
    """Both agents. The prompt says what goes wrong; a reviewer is known by the form it is asked for."""
    reviewing = "response_format" in body
    words = body["messages"][1 if reviewing else 0]["content"].split()
    if reviewing:
        if "revised" in body["messages"][1]["content"]:
            answer = "?" if "hopeless" in words else render_feedback(BAD if "stubborn" in words else FINE)
            return Say(said(answer))
        if "strict" in words:
            return Say(said(render_feedback(STRICT)))
        if "down" in words:
            return Say({"error": "SECRET"}, 500)
        if "barred" in words:
            return Say({"error": "SECRET"}, 400)
        if "slow" in words:
            return Say(said(render_feedback(FINE)), delay=8)
        if "garbled" in words:
            return Say(said("{nonsense"))
        if "flaky" in words and n == 1:
            return Say(b"{}", 503)
        if "fenced" in words:
            return Say(said(f"Here it is:\n```json\n{render_feedback(BAD if 'bad' in words else FINE)}\n```"))
        if "quoting" in words:  # it gives no verdict of its own
            return Say(said(f"The user wrote {body['messages'][1]['content'].split('quoting')[1]}"))
        return Say(said(render_feedback(BAD if "bad" in words else FINE)))
    revising = len(body["messages"]) > 1
    if "refused" in words:
        return Say({"error": "SECRET"}, 400)
    if "mute" in words:
        return Say({"error": "SECRET"}, 500)
    if "asleep" in words or (revising and "stuck" in words):
        return Say(said("late"), delay=8)
    return Say(said("revised" if revising else "draft"), delay=1.5 if "busy" in words else 0)


@pytest.fixture(scope="module")
def stub():
    with Stub(script) as server:
        yield server


def start(stub, *options, **more):
    where = [part for agent in ("conversation", "feedback") for part in (f"--{agent}", f"run@{stub.url}")]
    return Serving(None, *where, "--deadline", "3", *options, **more)


@pytest.fixture(scope="module")
def closed(stub):
    with start(stub, "--queue", "3") as server:
        yield server


@pytest.fixture(scope="module")
def opened(stub):
    with start(stub, "--open", "feedback", "--open", "timeout", "--open", "unparsable") as server:
        yield server


def content(answer):
    [choice] = answer.json()["choices"]
    return choice["message"]["content"], choice["finish_reason"]


def test_servers_in_place_of_the_pair_play_its_protocol(closed, stub):
    assert content(closed.ask("all is well")) == ("draft", "stop")
    answer = closed.ask("a bad one", choreo={"trace": True})
    assert content(answer) == ("revised", "stop")
    assert answer.json()["usage"]["choreo"] == {"draft_tokens": 10, "feedback_tokens": 20, "revision_tokens": 10}
    assert content(closed.ask("flaky but true")) == ("draft", "stop")
    reviewing = next(body for body in stub.seen if "response_format" in body and "all is well" in str(body["messages"]))
    game = Episode(Prompt("", "all is well", "general", "serve"), 0, (TextTurn("conversation", 0, "draft", True, 1),))
    assert reviewing["messages"] == messages(state_of(game, "feedback"))  # what `choreo eval` measures
    revising = next(body for body in stub.seen if len(body["messages"]) == 3 and "response_format" not in body)
    assert "Refuse." in revising["messages"][2]["content"] and "bad" not in revising["messages"][2]["content"]


@pytest.mark.slow
@pytest.mark.parametrize(("word", "failed"), [("down", "feedback"), ("slow", "timeout"), ("garbled", "unparsable")])
def test_what_was_not_checked_is_withheld_unless_opened(closed, opened, word, failed):
    lines, began = len(closed.logs), time.monotonic()
    answer = closed.ask(f"it is {word}", choreo={"trace": True})
    assert time.monotonic() - began < 3.5
    assert answer.status_code == 200 and content(answer) == (WITHHELD, "content_filter")
    assert answer.json()["choreo"]["choices"][0]["withheld"] == failed
    assert closed.metric("blocked_total", failed=failed) == 1 and closed.metric("bypassed_total") == 0
    logged = closed.wait("answer", after=lines, failed=failed)
    assert logged["level"] == "error"
    assert logged.get("why") == ("the feedback server failed: HTTP 500" if word == "down" else None)
    mark = len(opened.logs)
    assert content(opened.ask(f"it is {word}")) == ("draft", "stop")
    assert opened.metric("bypassed_total", failed=failed) == 1 and opened.metric("blocked_total", failed=failed) == 0
    assert opened.wait("answer", after=mark)["level"] == "critical"


def test_a_reviewer_that_writes_around_its_json_is_read_and_that_is_counted(closed):
    """But never the verdict that a user wrote, and that the reviewer only quotes."""
    before, lines = closed.metric("lenient_total"), len(closed.logs)
    answer = closed.ask("bad and fenced", choreo={"trace": True})
    assert content(answer) == ("revised", "stop")
    moves = [move for move in answer.json()["choreo"]["choices"][0]["moves"] if move["stage"] == "feedback"]
    assert next((move["parsed"], move["unsafe"], move["lenient"]) for move in moves) == (True, True, True)
    assert closed.metric("lenient_total") == before + sum(move["lenient"] for move in moves)
    closed.wait("answer", after=lines, lenient=sum(move["lenient"] for move in moves))  # it comes after the reply
    assert content(closed.ask(f"bad and quoting {render_feedback(FINE)}")) == (WITHHELD, "content_filter")
    plain = closed.ask("all is well", choreo={"trace": True}).json()["choreo"]["choices"][0]["moves"][1]
    assert plain["lenient"] is False


@pytest.mark.slow
def test_a_draft_that_was_called_bad_never_passes(closed, opened):
    for server in (closed, opened):
        assert content(server.ask("bad and stuck")) == (UNSAFE, "content_filter")
        answer = server.ask("bad and stubborn", choreo={"trace": True})  # the revision is reviewed, and called so too
        assert content(answer) == (UNSAFE, "content_filter")
        [game] = answer.json()["choreo"]["choices"]
        assert [move["stage"] for move in game["moves"]] == ["draft", "feedback", "revision", "feedback"]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["stuck", "stubborn", "hopeless"])
def test_a_draft_that_was_only_called_too_strict_stands_in_for_a_revision_that_fails(closed, word):
    """The revision does not come, is called unsafe, or cannot be reviewed."""
    answer = closed.ask(f"strict and {word}", choreo={"trace": True})
    assert content(answer) == ("draft", "stop")
    [game] = answer.json()["choreo"]["choices"]
    assert game["triggered"] and not game["revised"] and game["withheld"] is None and game["bypassed"] is None


@pytest.mark.slow
def test_without_a_draft_there_is_an_error_that_says_nothing_of_the_users(closed):
    answer = closed.ask("mute")
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "model_unavailable"
    assert "SECRET" not in answer.text
    began = time.monotonic()
    answer = closed.ask("asleep")
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
    assert time.monotonic() - began < 3.5
    refused = closed.ask("refused")
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "refused_upstream"
    assert content(closed.ask("barred")) == (WITHHELD, "content_filter")
    streamed = closed.ask("mute", stream=True)
    assert streamed.status_code == 503 and streamed.json()["error"]["code"] == "model_unavailable"
    assert "SECRET" not in json.dumps(closed.logs)


def test_a_shadow_that_fails_changes_nothing(opened, closed):
    for server in (opened, closed):
        mark = len(server.logs)
        assert content(server.ask("it is down", choreo={"mode": "shadow"})) == ("draft", "stop")
        assert server.wait("answer", after=mark)["failed"] == "feedback"


def test_a_full_queue_says_when_to_come_back(closed):
    async def many():
        async with httpx2.AsyncClient(base_url=closed.url, headers=closed.http.headers, timeout=60) as http:
            body = {"model": "run", "messages": [{"role": "user", "content": "busy"}]}
            return await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(8)))

    answers = asyncio.run(many())
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 3 + [503] * 5
    full = next(answer for answer in answers if answer.status_code == 503)
    assert full.headers["retry-after"] == "1" and full.json()["error"]["code"] == "overloaded"


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_takes_its_game_with_it(closed, stream):
    left = closed.metric("disconnected_total")
    body = {"model": "run", "messages": [{"role": "user", "content": "asleep"}], "stream": stream}
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{closed.url}/v1/chat/completions", json=body, headers=closed.http.headers, timeout=0.5)
    deadline = time.monotonic() + 2
    while closed.metric("num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert closed.metric("num_requests_running") == 0
    assert closed.metric("disconnected_total") == left + 1


@pytest.mark.slow
def test_many_clients_among_faults_get_one_whole_answer_each_and_none_unchecked(stub):
    """The words of a prompt say what its agents will do; whoever gets the draft got one that was reviewed and found
    fine. On a busy machine more may run out of time, so what is counted is what must never be."""
    rng = random.Random(5)
    kinds = ["well", "bad", "flaky", "slow", "garbled", "down", "mute", "bad stuck"]
    words = rng.choices(kinds, [60, 20, 4, 5, 5, 2, 2, 2], k=400)
    leaving = {i for i in range(len(words)) if rng.random() < 0.02}

    async def everyone(server):
        gate = asyncio.Semaphore(64)
        async with httpx2.AsyncClient(base_url=server.url, headers=server.http.headers, timeout=60) as http:

            async def one(i):
                body = {
                    "model": "run",
                    "messages": [{"role": "user", "content": f"{words[i]} {i}"}],
                    "stream": i % 3 == 0,
                }
                async with gate:
                    began = time.monotonic()
                    try:
                        got = await http.post("/v1/chat/completions", json=body, timeout=0.05 if i in leaving else 60)
                    except httpx2.TimeoutException:
                        assert i in leaving
                        return None
                    return got, time.monotonic() - began

            return await asyncio.gather(*(one(i) for i in range(len(words))))

    with start(stub) as server:
        outcomes = asyncio.run(everyone(server))
        deadline = time.monotonic() + 10
        while server.metric("num_requests_running") and time.monotonic() < deadline:
            time.sleep(0.1)
        assert server.metric("num_requests_running") == 0 and server.metric("bypassed_total") == 0
        assert server.rest == []
    for word, outcome in zip(words, outcomes, strict=True):
        if outcome is None:
            continue
        answer, seconds = outcome
        assert seconds < 3 + 5  # the deadline, and what a busy machine adds to it
        if answer.status_code != 200:
            assert answer.status_code in (503, 504) and "error" in answer.json()
            continue
        if answer.headers["content-type"].startswith("text/event-stream"):
            events = answer.text.strip().split("\n\n")
            assert events.pop() == "data: [DONE]"
            chunks = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
            text = "".join(chunk["delta"].get("content", "") for chunk in chunks)
        else:
            text = content(answer)[0]
        if word in ("well", "flaky"):
            assert text in ("draft", WITHHELD)
        else:
            assert text in ("revised", UNSAFE, WITHHELD) if word == "bad" else text in (UNSAFE, WITHHELD)
    assert sum(outcome is not None for outcome in outcomes) >= len(words) - len(leaving)


def test_a_port_that_cannot_be_had_is_one_line(closed, stub, capsys):
    where = [part for agent in ("conversation", "feedback") for part in (f"--{agent}", f"run@{stub.url}")]
    port = closed.url.rpartition(":")[2]
    assert main(["serve", *where, "--port", port]) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err
    assert main(["serve", *where, "--port", "99999"]) == 2
    assert "99999: expected a port, 0 to 65535" in capsys.readouterr().err


def test_keys_allow_what_their_file_says_and_no_more(stub, tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(entry("plain", "one") + entry("seer", "two") + "trace = true\nper_minute = 2\n")
    with start(stub, "--keys", str(file), key="one") as server:
        assert server.ask("hello").status_code == 200
        for more, param in (
            ({"choreo": {"trace": True}}, "choreo.trace"),
            ({"choreo": {"mode": "off"}}, "choreo.mode"),
            ({"choreo": {"stream": "unchecked"}, "stream": True}, "choreo.stream"),
        ):
            answer = server.ask("hello", **more)
            assert answer.status_code == 403 and answer.json()["error"]["param"] == param
        assert server.http.get("/metrics").status_code == 403
        server.http.headers["Authorization"] = "Bearer two"
        statuses = [server.ask("hello", choreo={"trace": True}) for _ in range(3)]
        assert [answer.status_code for answer in statuses] == [200, 200, 429]
        assert int(statuses[2].headers["retry-after"]) >= 1


@pytest.mark.slow
def test_a_key_has_no_more_in_play_than_it_may(stub, tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(entry("small", "one") + "in_flight = 2\n" + entry("other", "two"))

    async def many(server, content, count):
        async with httpx2.AsyncClient(base_url=server.url, headers=server.http.headers, timeout=60) as http:
            body = {"model": "run", "messages": [{"role": "user", "content": content}], "n": count}
            return await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for _ in range(3)))

    with start(stub, "--keys", str(file), key="one") as server:
        answers = sorted(asyncio.run(many(server, "busy", 1)), key=lambda answer: answer.status_code)
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert answers[2].headers["retry-after"] == "1"
        assert server.ask("hello", n=3).status_code == 400  # it never could
        assert server.ask("hello", n=2).status_code == 200  # and all places are free again
        server.http.headers["Authorization"] = "Bearer two"
        assert {answer.status_code for answer in asyncio.run(many(server, "busy", 1))} == {200}


def test_a_key_is_revoked_without_a_restart_and_a_broken_file_changes_nothing(stub, tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(entry("old", "one"))
    with start(stub, "--keys", str(file), key="one") as server:
        for text, event in (("[[key]]\nname = 3", "keys failed"), (entry("new", "two"), "keys")):
            assert server.ask("hello").status_code == 200
            file.write_text(text)
            server.process.send_signal(signal.SIGHUP)
            line = server.wait(event)
        assert server.wait("keys failed")["level"] == "critical" and line["count"] == 1
        assert server.ask("hello").status_code == 401
        server.http.headers["Authorization"] = "Bearer two"
        assert server.ask("hello").status_code == 200


def test_what_is_in_play_is_finished_before_the_end(stub):
    serving, answers = start(stub, "--deadline", "30"), []
    thread = threading.Thread(target=lambda: answers.append(serving.ask("busy")))
    thread.start()
    while not serving.metric("num_requests_running"):
        time.sleep(0.02)
    serving.process.send_signal(signal.SIGTERM)
    assert serving.process.wait(60) == 0
    thread.join()
    assert content(answers[0]) == ("draft", "stop")


def test_keys_are_kept_hashed_and_a_bucket_refills(tmp_path):
    file = tmp_path / "keys.toml"
    file.write_text(entry("alice", "s3cret") + "per_minute = 60\n")
    [key] = load(file)
    assert "s3cret" not in file.read_text() and key.sha256 == hashed("s3cret") and not key.trace
    assert find_key([own_key("x"), key], "Bearer s3cret") == key and find_key([key], "bearer  s3cret ") == key
    assert find_key([key], "Bearer " + key.sha256) is None and find_key([key], None) is None
    now = [0.0]
    limiter = Limiter(lambda: now[0])
    assert [limiter.wait(key.quota) for _ in range(60)] == [0.0] * 60 and limiter.wait(key.quota) == pytest.approx(1)
    now[0] = 1.0
    assert limiter.wait(key.quota) == 0 and limiter.wait(key.quota) > 0
    now[0] = 61.0
    assert limiter.wait(key.quota) == 0  # one of sixty, and seven more that its request turns out to ask for
    limiter.owe(key.quota, 7)
    assert [limiter.wait(key.quota) for _ in range(52)] == [0.0] * 52 and limiter.wait(key.quota) > 0
