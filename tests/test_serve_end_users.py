"""Limits of each end user behind one key: in every API, and behind LiteLLM's guardrail."""

from __future__ import annotations

import asyncio
import json

import anthropic
import httpx2
import openai
import pytest
from serving import Serving
from stub_endpoint import Say, Stub
from stub_endpoint import chat as said

from choreo.server.guardrail import PATH
from choreo.server.keys import Key, Limiter, entry
from choreo.text.feedback import render_feedback
from choreo.types import Feedback

TURNS = [{"role": "user", "content": "hello"}]


def script(body, n):
    if "response_format" in body:
        return Say(said(render_feedback(Feedback("", False, False, ""))), delay=4 if "ponder" in str(body) else 0)
    return Say(said("an answer"), delay=1.5 if "busy" in str(body) else 0)


@pytest.fixture(scope="module")
def stub():
    with Stub(script) as server:
        yield server


def start(stub, tmp_path, limits, *options):
    file = tmp_path / "keys.toml"
    file.write_text(entry("proxy", "one") + limits + entry("other", "two"))
    where = [part for agent in ("conversation", "feedback") for part in (f"--{agent}", f"run@{stub.url}")]
    return Serving(None, *where, "--keys", str(file), *options, key="one")


def test_an_end_user_has_one_limit_whatever_the_api_and_takes_nothing_from_others(stub, tmp_path):
    with start(stub, tmp_path, "per_minute = 16\nend_user_per_minute = 4\n") as server:
        ours = openai.OpenAI(base_url=f"{server.url}/v1", api_key="one", max_retries=0)
        theirs = anthropic.Anthropic(base_url=server.url, api_key="one", max_retries=0)

        def guard(user):
            body = {"input_type": "response", "texts": ["hi"], "structured_messages": TURNS}
            return server.http.post(PATH, json=body | {"request_data": {"user_api_key_end_user_id": user}})

        def chat(**who):
            return ours.chat.completions.create(model="run", messages=TURNS, **who)

        assert chat(user="ann").choices and guard("ann").json() == {"action": "NONE"}
        assert ours.responses.create(model="run", input="hello", user="someone", safety_identifier="ann").output_text
        message = {"model": "run", "max_tokens": 9, "messages": TURNS, "metadata": {"user_id": "ann"}}
        assert theirs.messages.create(**message).content
        for _ in range(13):  # with the four before, more than the key has: these are not taken from it
            with pytest.raises(openai.RateLimitError, match="this end user may ask 4 times a minute") as refused:
                chat(safety_identifier="ann", user="bob")
            assert 1 <= int(refused.value.response.headers["retry-after"]) <= 15
        with pytest.raises(anthropic.RateLimitError):
            theirs.messages.create(**message)
        assert guard("ann").status_code == 429
        assert chat(user="bob", n=4).choices  # with Ann's four, eight of sixteen
        with pytest.raises(openai.RateLimitError):
            chat(user="bob")
        assert [server.ask("hello").status_code for _ in range(5)] == [200] * 4 + [429]  # who names nobody
        assert chat(user="cay", n=3).choices  # with this, all but one of the key's sixteen
        server.http.headers["Authorization"] = "Bearer two"
        assert [server.ask("hello", user="ann").status_code for _ in range(6)] == [200] * 6
        assert "ann" not in json.dumps(server.logs) and server.rest == []


def test_an_end_user_has_no_more_in_play_than_they_may(stub, tmp_path):
    async def many(server, users):
        async with httpx2.AsyncClient(base_url=server.url, headers=server.http.headers, timeout=60) as http:
            bodies = [
                {"model": "run", "messages": [{"role": "user", "content": "busy"}], "user": user} for user in users
            ]
            return await asyncio.gather(*(http.post("/v1/chat/completions", json=body) for body in bodies))

    with start(stub, tmp_path, "in_flight = 6\nend_user_in_flight = 2\n") as server:
        answers = asyncio.run(many(server, ["ann"] * 4 + ["bob"] * 2))
        statuses = [answer.status_code for answer in answers]
        assert sorted(statuses[:4]) == [200, 200, 429, 429] and statuses[4:] == [200, 200]
        late = next(answer for answer in answers if answer.status_code == 429)
        assert late.headers["retry-after"] == "1" and "this end user" in late.json()["error"]["message"]
        assert server.ask("hello", n=3, user="ann").status_code == 400  # it never could
        assert server.ask("hello", n=2, user="ann").status_code == 200  # and all places are free again


@pytest.mark.slow
def test_reviews_in_the_shadow_and_requests_that_are_refused_count_for_the_end_user(stub, tmp_path):
    limits = "per_minute = 16\nend_user_per_minute = 4\nend_user_in_flight = 1\n"
    with start(stub, tmp_path, limits, "--mode", "shadow") as server:
        assert server.ask("ponder", user="ann").status_code == 200
        assert server.ask("hello", user="ann").status_code == 429  # the review of the first is still in play
        assert server.ask("hello", user="bob").status_code == 200
        wrong = [server.ask("hello", user="cay", model="other").status_code for _ in range(20)]
        assert wrong == [404] * 4 + [429] * 16
        assert server.ask("hello", user="dan").status_code == 200  # the key has answers left


def test_what_is_full_again_is_forgotten():
    now = [0.0]
    limiter, key = Limiter(lambda: now[0]), Key(name="k", sha256="0" * 64, end_user_per_minute=2)
    for i in range(1000):
        assert limiter.wait(key.end_user(f"{i}")) == 0
    limiter.wait(key.end_user("0"))
    limiter.owe(key.end_user("0"), 8)  # minutes to wait
    now[0] = 61.0
    assert limiter.wait(key.end_user("0")) > 60 and len(limiter._buckets) == 1
    assert limiter.wait(key.end_user("1")) == 0
