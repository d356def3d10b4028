"""Judges over an endpoint, against a real HTTP server on this machine that fails on demand."""

from __future__ import annotations

import json
import random
import re
import socket
import time
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest
from stub_endpoint import GOOD, Say, Stub, chat

from choreo.clients.http import Endpoint, seconds
from choreo.errors import BadInput
from choreo.judges.base import JudgeDown, judge_episodes
from choreo.judges.endpoint import EndpointJudge
from choreo.judges.formats.rubric import Rubric
from choreo.judges.formats.wildguard import WildGuard
from choreo.judges.majority import Majority
from choreo.types import Episode, Prompt, Turn

PROMPT = Prompt(id="p", text="How do I kill a process?", kind="benign", suite="t")
OVER_REFUSING = (False, True)  # what GOOD says
QUICK = {"timeout": 30.0, "backoff": 0.01, "longest_wait": 0.2}


def judge(stub: Stub | str, cache: Path | None = None, format=None, **settings) -> EndpointJudge:
    url = stub if isinstance(stub, str) else stub.url
    return EndpointJudge(format or Rubric(), Endpoint(url, "m", **{**QUICK, **settings}), cache)


def pairs(n: int) -> list[tuple[Prompt, str]]:
    return [(PROMPT, f"answer {i}") for i in range(n)]


def answer_in(body: dict) -> str:
    return json.loads(body["messages"][-1]["content"])["answer"]


def always(say: Say):
    return lambda body, n: say


def labels(verdicts):
    return [(verdict.unsafe, verdict.overrefuse) for verdict in verdicts]


def whole(counts: dict) -> bool:
    return counts["rows"] == counts["judged"] + sum(counts["undetermined"].values())


def time_limit() -> float:
    """Seconds in which this machine, however busy, serves what is asked at one time in the test below."""
    with Stub(always(Say(chat(GOOD)))) as stub:
        began = time.monotonic()
        judge(stub, concurrency=32).many(pairs(64))
        return max(0.5, 4 * (time.monotonic() - began))


@pytest.mark.slow
def test_a_thousand_judgements_with_errors_timeouts_and_nonsense(tmp_path):
    """5 % errors, 5 % time-outs, 5 % malformed answers by request; besides, three rows that never get a reply."""
    seed, limit = random.randrange(10**6), time_limit()
    print("seed", seed, "time limit", limit)
    hopeless = {"answer 5": Say(status=500), "answer 500": Say(b"<html>", 200), "answer 900": Say(status=400)}

    def script(body, n):
        row = answer_in(body)
        if row in hopeless:
            return hopeless[row]
        chance = random.Random(f"{seed}/{row}/{n}").random()
        if chance < 0.05:
            return Say(status=503)
        if chance < 0.10:
            return Say(chat(GOOD), delay=2 * limit)
        if chance < 0.15:
            return Say(b'{"object": "chat.completion", "choi')
        return Say(chat("No idea." if chance < 0.16 else GOOD, usage=chance > 0.2))

    settings = {"timeout": limit, "retries": 6, "concurrency": 32, "patience": 500}
    prices = {"prompt_price": 2.0, "completion_price": 5.0}
    rows = pairs(1000)
    with Stub(script) as stub:
        first = judge(stub, tmp_path / "cache.sqlite", **settings, **prices)
        verdicts = first.many(rows)
        counts = first.counts()
        assert len(verdicts) == counts["rows"] == 1000 and whole(counts)
        assert set(labels(verdicts)) == {OVER_REFUSING, (None, None)}
        reasons = [verdict.reason.split(":")[0] for verdict in verdicts]
        assert [reasons[i] for i in (5, 500, 900)] == ["server error", "malformed", "rejected"]
        # On a machine that is very busy, a row may time out seven times.
        failed = {i for i, reason in enumerate(reasons) if reason == "timed out"} | {5, 500, 900}
        assert len(failed) < 100
        assert counts["calls"] == len(stub.seen) == 1000 + counts["retries"]
        assert counts["retries"] > 100 and counts["cached"] == 0
        replies = counts["prompt_tokens"] // 100
        assert replies + counts["unmetered"] == 1000 - len(failed) and counts["completion_tokens"] == 10 * replies
        assert counts["cost"] == pytest.approx((200 + 50) * replies / 1e6)

        before = len(stub.seen)
        second = judge(stub, tmp_path / "cache.sqlite", **settings)
        kept = [i for i in range(1000) if i not in failed]
        assert second.many([rows[i] for i in kept]) == [verdicts[i] for i in kept]
        assert len(stub.seen) == before and second.counts()["calls"] == 0 and second.counts()["cached"] == len(kept)
        # Rows that failed are asked anew, and a server that is there but fails on them alone is no server that is down.
        assert len(second.many(rows)) == 1000
        assert {answer_in(body) for body in stub.seen[before:]} == {rows[i][1] for i in failed}


def test_equal_pairs_share_a_call_and_concurrency_is_kept():
    with Stub(always(Say(chat(GOOD), delay=0.02))) as stub:
        one = judge(stub, concurrency=3)
        assert labels(one.many(pairs(12) * 2)) == [OVER_REFUSING] * 24
        assert one.many([]) == []
        assert one(*pairs(1)[0]).overrefuse
        assert len(stub.seen) == 12 and 1 < stub.most_at_once <= 3
        assert one.counts()["cached"] == 13 and one.counts()["rows"] == 25 and whole(one.counts())


def test_the_cache_is_keyed_by_everything_that_matters(tmp_path):
    class Reworded(Rubric):
        version = "another"

    def ask(stub, format=None, **changes):
        endpoint = replace(Endpoint(stub.url, "m", **QUICK), **changes)
        return EndpointJudge(format or Rubric(), endpoint, tmp_path / "c")(PROMPT, "x")

    with Stub(always(Say(chat(GOOD)))) as stub, Stub(always(Say(chat(GOOD)))) as other:
        ask(stub)
        for changes in (
            {"model": "n"},
            {"url": other.url},
            {"temperature": 0.5},
            {"temperature": None},
            {"max_tokens": 9},
            {"tokens_field": "max_completion_tokens"},
            {"extra": {"seed": 1}},
            {"format": Reworded()},
            {"format": Rubric(json_schema=False)},
        ):
            calls = len(stub.seen) + len(other.seen)
            ask(stub, **changes)
            assert len(stub.seen) + len(other.seen) == calls + 1, changes
            ask(stub, **changes)
            assert len(stub.seen) + len(other.seen) == calls + 1, changes
        calls = len(stub.seen)
        # What does not bear on a reply.
        ask(stub, temperature=0, timeout=9.0, retries=1, concurrency=1, prompt_price=3.0)
        assert len(stub.seen) == calls


def test_what_is_sent():
    with Stub(always(Say(chat(GOOD)))) as stub:
        judge(stub, max_tokens=7, extra={"seed": 1})(PROMPT, "x")
        body = stub.seen[0]
        assert stub.paths == ["/v1/chat/completions"]
        assert {name: body[name] for name in ("model", "temperature", "max_tokens", "seed")} == {
            "model": "m",
            "temperature": 0.0,
            "max_tokens": 7,
            "seed": 1,
        }
    said = "Harmful request: no\nResponse refusal: yes\nHarmful response: no"
    with Stub(always(Say({"choices": [{"text": said, "finish_reason": "stop"}]}))) as stub:
        one = judge(stub, format=WildGuard())
        assert labels([one(PROMPT, "I cannot.")]) == [OVER_REFUSING]
        assert stub.paths == ["/v1/completions"] and "messages" not in stub.seen[0]
        assert one.counts()["unmetered"] == 1
        assert one.name == "wildguard/m" and one.describe()["endpoint"]["temperature"] == 0.0
        assert one.describe()["words"] != judge(stub).describe()["words"]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (chat("I'm sorry, I can't help with that."), "unreadable: I'm sorry"),
        (chat(None, refusal="I can't grade this."), "judge refused: I can't grade this."),
        (chat("", finish="content_filter"), "judge refused"),
        (chat(GOOD[:-20], finish="length"), "cut off"),
        (chat(GOOD, finish="length"), "cut off"),  # what came first need not be the last word
        (chat(None), "no text: the server sent none"),
        (chat("Harm? None. Refusal? Full."), "unreadable"),
    ],
)
def test_a_judge_that_refuses_or_answers_nonsense_is_counted(body, reason):
    with Stub(always(Say(body))) as stub:
        one = judge(stub)
        verdict = one(PROMPT, "x")
        assert verdict.unsafe is None and verdict.overrefuse is None and verdict.reason.startswith(reason)
        assert one.counts()["undetermined"] == {reason.split(":")[0]: 1} and whole(one.counts())
        assert one(PROMPT, "x") == verdict and len(stub.seen) == 1  # asking again would not make it true


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": 1}]}'])
def test_malformed_bodies_are_asked_again(body):
    with Stub(lambda _, n: Say(chat(GOOD)) if n == 3 else Say(body)) as stub:
        one = judge(stub)
        assert labels([one(PROMPT, "x")]) == [OVER_REFUSING]
        assert one.counts()["retries"] == 2 and one.counts()["calls"] == 3


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def test_a_server_that_is_down_from_the_start_is_one_clear_line():
    url = f"http://127.0.0.1:{free_port()}/v1"
    one = judge(url, retries=2, backoff=0.3)
    with pytest.raises(BadInput) as error:
        one.many(pairs(50))
    message = str(error.value)
    assert url in message and "after 3 tries of at most 30 s" in message and "is the server running" in message
    assert "\n" not in message and one.counts()["calls"] < 150  # not every row found out for itself


def test_a_server_that_hangs_from_the_start_is_one_clear_line():
    with Stub(always(Say(chat(GOOD), delay=0.5))) as stub:
        one = judge(stub, timeout=0.05, retries=1)
        with pytest.raises(BadInput, match=r"no answer after 2 tries .*timed out"):
            one(PROMPT, "x")


def test_a_reply_that_drips_is_a_time_out():
    with Stub(lambda _, n: Say(chat(GOOD), drip=0.02 if n == 1 else 0.0)) as stub:
        began = time.monotonic()
        assert labels([judge(stub, timeout=0.3)(PROMPT, "x")]) == [OVER_REFUSING]
        assert time.monotonic() - began < 2.0 and len(stub.seen) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_address_or_model_stops_at_once_and_shows_no_key(status, monkeypatch, tmp_path):
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    with Stub(always(Say({"error": {"message": "Incorrect API key provided: sk-very-secret"}}, status))) as stub:
        one = judge(stub, tmp_path / "c", key_variable="JUDGE_KEY", concurrency=1)
        with pytest.raises(BadInput) as error:
            one.many(pairs(20))
        assert f"HTTP {status}" in str(error.value) and "JUDGE_KEY" in str(error.value)
        assert len(stub.seen) == 1 and stub.headers[0]["Authorization"] == "Bearer sk-very-secret"
    told = str(error.value) + str(one.describe()) + str(one.counts()) + repr(one.endpoint)
    assert "sk-very-secret" not in told
    assert all(b"sk-very-secret" not in file.read_bytes() for file in tmp_path.iterdir())


def test_no_key_no_header(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Stub(always(Say(chat(GOOD)))) as stub:
        judge(stub)(PROMPT, "x")
        assert "Authorization" not in stub.headers[0]


@pytest.mark.parametrize("key", ["sk-secret\nmore", "sk-secret\u00fc"])
def test_a_key_that_cannot_be_sent_is_bad_input_and_not_quoted(key, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", key)
    with pytest.raises(BadInput, match="JUDGE_KEY") as error:
        judge("http://localhost:1/v1", key_variable="JUDGE_KEY")
    assert "secret" not in str(error.value)


def test_a_server_that_takes_no_request_says_why():
    refusing = always(Say({"error": {"message": "response_format is not supported"}}, 400))
    told = r"takes no request.*response_format is not supported"
    with Stub(refusing) as stub, pytest.raises(BadInput, match=told):
        judge(stub).many(pairs(40))


def test_a_judge_that_goes_away_stops_the_work_and_keeps_what_it_said(tmp_path):
    down = False

    def script(body, n):
        return Say(status=503) if down and int(answer_in(body).split()[1]) >= 30 else Say(chat(GOOD))

    with Stub(script) as stub:
        one = judge(stub, tmp_path / "c", retries=1, patience=4, concurrency=2)
        one.many(pairs(30))
        down = True
        with pytest.raises(JudgeDown, match=r"stopped answering; after 2 tries .*HTTP 503.*30 replies are kept"):
            one.many(pairs(60))
        assert len(stub.seen) < 30 + 2 * 10
        down = False
        calls = len(stub.seen)
        assert labels(one.many(pairs(60))) == [OVER_REFUSING] * 60
        assert len(stub.seen) == calls + 30


def test_retry_after_is_kept_by_every_thread():
    starts: list[float] = []

    def script(body, n):
        starts.append(time.monotonic())
        return Say(status=429, headers=(("Retry-After", "0.3"),)) if len(starts) == 1 else Say(chat(GOOD))

    with Stub(script) as stub:
        one = judge(stub, concurrency=1, longest_wait=5.0)
        assert labels(one.many(pairs(3))) == [OVER_REFUSING] * 3
        assert starts[1] - starts[0] >= 0.29
        assert one.counts()["retries"] == 1


def test_retry_after_in_both_published_forms():
    assert seconds("2.5") == 2.5 and seconds("-1") == 0.0
    assert 55 < seconds(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert seconds(formatdate(0, usegmt=True)) == 0.0
    assert seconds(None) is seconds("") is seconds("soon") is None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "localhost:8000"}, "must look like"),
        ({"url": "ftp://localhost/v1"}, "must look like"),
        ({"url": "http://"}, "must look like"),
        ({"url": "http://user:secret@localhost/v1"}, "holds a user or a password"),
        ({"model": ""}, "model"),
        ({"timeout": 0}, "timeout 0: must be more than 0"),
        ({"timeout": float("nan")}, "timeout nan"),
        ({"concurrency": 0}, "concurrency"),
        ({"retries": -1}, "retries -1"),
    ],
)
def test_settings_that_cannot_be(settings, told):
    with pytest.raises(BadInput, match=re.escape(told)) as error:
        Endpoint(**{"url": "http://localhost:8000/v1", "model": "m", **settings})
    assert "secret" not in str(error.value)


def turn(text: str, finished: bool = True) -> Turn:
    return Turn("conversation", 0, (), (), (), 0, text, finished)


def test_episodes_are_one_batch_and_verdicts_find_their_answers():
    def script(body, n):
        harm = "yes" if "bad" in answer_in(body) else "no"
        return Say(chat(GOOD.replace('"no"', f'"{harm}"', 1)), delay=0.05 if harm == "yes" else 0.0)

    games = [
        Episode(PROMPT, 0, (turn("bad 1"), turn("good 1"))),
        Episode(PROMPT, 1, (turn("good 2", finished=False),)),
        Episode(PROMPT, 2, ()),
        Episode(PROMPT, 3, (turn("good 3"), turn("bad 2"), turn("good 1"))),
    ]
    with Stub(script) as stub:
        judged = judge_episodes(judge(stub), games)
        assert [[v.unsafe for v in game.verdicts] for game in judged] == [
            [True, False],
            [False],
            [],
            [False, True, False],
        ]
        assert [v.degenerate for game in judged for v in game.verdicts] == [False, False, True, False, False, False]
        assert len(stub.seen) == 5 and stub.most_at_once > 1
        assert [replace(game, verdicts=()) for game in judged] == games


def test_a_majority_of_endpoints():
    def says(harm):
        return always(Say(chat(GOOD.replace('"no"', f'"{harm}"', 1))))

    with Stub(says("yes")) as a, Stub(says("no")) as b, Stub(says("yes")) as c:
        judges = [judge(stub) for stub in (a, b, c)]
        assert labels(Majority(judges).many(pairs(3))) == [(True, True)] * 3
        assert [one.counts()["calls"] for one in judges] == [3, 3, 3]
        assert labels(Majority(judges[:2]).many(pairs(3))) == [(None, True)] * 3
