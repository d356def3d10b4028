"""What a server counts, logs and lets pass, with agents that say what is written here for them."""

from __future__ import annotations

import asyncio
import json
import time

import httpx2
import pytest
from serving import make_run

from choreo.errors import BadInput
from choreo.server import run
from choreo.server.api_error import ApiError
from choreo.server.app import application
from choreo.server.chat import ChatCall
from choreo.server.keys import own_key
from choreo.server.openai_requests import ChatWriter, read_chat
from choreo.server.session import Down, SampledTurn, SessionOptions, play_session
from choreo.server.state import Server, Settings
from choreo.text.feedback import render_feedback
from choreo.types import CONVERSATION, FEEDBACK, Episode, Feedback, Limits, Prompt, Turn

FINE, BAD = Feedback("ok", False, False, ""), Feedback("bad", True, False, "Refuse.")


class Scripted:
    """Says what `says(game)` returns: a text, or an exception to raise. A draft is heard word by word; "…" is where it
    waits for ever."""

    trained = True

    def __init__(self, agent, says):
        self.agent, self.says = agent, says

    def room(self, game, options, rounds):
        pass

    async def next_turn(self, game, options, on_token=None):
        text = self.says(game)
        if isinstance(text, Exception):
            await asyncio.sleep(0.05)
            raise text
        words, said = text.split(" "), ""
        for word in words:
            if word == "…":
                await asyncio.sleep(60)
            said = f"{said} {word}".strip()
            if on_token is not None:
                on_token(Turn(self.agent, len(game.reviews), (), (), (), 0, said, False))
            await asyncio.sleep(0)
        return SampledTurn(Turn(self.agent, len(game.reviews), (), (), (), 0, said, True), len(words), 1)


def agents(answers, reviews=lambda game: render_feedback(FINE)):
    return {CONVERSATION: Scripted(CONVERSATION, answers), FEEDBACK: Scripted(FEEDBACK, reviews)}


def serving(pair, **more):
    settings = {"mode": "adaptive", "limits": Limits(1, 9, 9), "temperature": 0.6, "deadline": 5.0, **more}
    return Server(Settings("run", **settings), pair, [own_key("k")])


def call(server, **more):
    body = {"model": "run", "messages": [{"role": "user", "content": "hi"}], **more}
    asked = read_chat(json.dumps(body).encode())
    return ChatCall(server, server.keys[0], asked, ChatWriter(asked, "0", 0, ""), time.monotonic())


def count(server, name, **labels):
    found = [m for family in server.figures.registry.collect() for m in family.samples if m.name == f"choreo:{name}"]
    return sum(m.value for m in found if labels.items() <= m.labels.items())


def logged(capsys):
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def settled(server):
    while server.shadows:
        await asyncio.wait(server.shadows)


UNCHECKED = {"stream": True, "choreo": {"stream": "unchecked"}}


@pytest.mark.parametrize("ending", ["hangs up", "is late", "fails"])
def test_what_left_unchecked_is_reviewed_and_recorded_however_its_stream_ends(ending, capsys):
    async def leave():
        server = serving(agents(lambda game: "how to … rob", lambda game: render_feedback(BAD)), deadline=0.3)
        if ending == "fails":

            class Failing(Scripted):
                async def next_turn(self, game, options, on_token=None):
                    on_token(Turn(CONVERSATION, 0, (), (), (), 0, "how to", False))
                    raise Down("gone")

            server.agents = {**server.agents, CONVERSATION: Failing(CONVERSATION, None)}
        pushed = []
        task = asyncio.create_task(call(server, **UNCHECKED).stream(pushed.extend))
        if ending == "hangs up":
            while len(pushed) < 2:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with pytest.raises(ApiError):
                await task
        await asyncio.sleep(0)
        await settled(server)
        return server

    server = asyncio.run(leave())
    assert count(server, "unchecked_total") == 1 and count(server, "triggered_total", mode="shadow") == 1
    [left] = [line for line in logged(capsys) if line["event"] == "left"]
    assert left["triggered"] and left["unsafe"] and server.running == 0


def test_a_whole_unchecked_stream_is_reviewed_and_counted_once(capsys):
    async def whole():
        server = serving(agents(lambda game: "how to rob", lambda game: render_feedback(BAD)))
        pushed = []
        await call(server, **UNCHECKED).stream(pushed.extend)
        await settled(server)
        return server, pushed

    server, pushed = asyncio.run(whole())
    said = [event["choices"][0]["delta"].get("content", "") for event in pushed]
    assert "".join(said) == "how to rob"
    assert count(server, "unchecked_total") == 1 and count(server, "triggered_total", mode="shadow") == 1
    assert [line["event"] for line in logged(capsys)] == ["answer"]


def test_a_bypass_is_counted_whatever_becomes_of_the_other_answers(capsys):
    async def both():
        def answers(game):
            return "draft" if game.sample == 0 else Down("gone")

        server = serving(agents(answers, lambda game: "{nonsense"), opened=frozenset({"unparsable"}))
        pushed = []
        with pytest.raises(ApiError):
            await call(server, n=2, stream=True).stream(pushed.extend)
        return server, pushed

    server, pushed = asyncio.run(both())
    assert pushed[0]["choices"][0]["delta"]["content"] == "draft"
    assert count(server, "bypassed_total", failed="unparsable") == 1
    assert "critical" in [line["level"] for line in logged(capsys)]


def played(answers, reviews, mode="adaptive", rounds=1, stop=()):
    game = Episode(Prompt("", "hi", "general", "serve"), 0, ())
    options = SessionOptions(9, 0.6, stop, 0, time.monotonic() + 60)
    return asyncio.run(play_session(game, agents(answers, reviews), options, mode=mode, rounds=rounds))


@pytest.mark.parametrize(("revision", "stop"), [("rob it", ()), (" rob  it ", ()), ("rob it. Then", (".",))])
def test_a_revision_that_repeats_a_flagged_answer_is_withheld(revision, stop):
    def answers(game):
        return revision if game.answers else "rob it." if stop else "rob it"

    outcome = played(answers, lambda game: render_feedback(BAD), stop=stop)
    assert outcome.failed == "revision" and outcome.withheld and not outcome.revised
    refused = Feedback("refuses", False, True, "Help.")  # only what was called unsafe must not come again
    assert not played(answers, lambda game: render_feedback(refused), stop=stop).withheld


def test_a_later_revision_may_not_go_back_to_an_earlier_flagged_answer():
    turns = ["rob it", "steal it", "rob it"]
    outcome = played(lambda game: turns[len(game.answers)], lambda game: render_feedback(BAD), rounds=2)
    assert outcome.failed == "revision"


def test_a_shadow_that_fails_blocks_nothing_and_adds_no_time():
    async def shadowed(mode):
        server = serving(agents(lambda game: "draft", lambda game: Down("gone")))
        await call(server, choreo={"mode": mode}).whole()
        await settled(server)
        return server

    server = asyncio.run(shadowed("shadow"))
    assert count(server, "blocked_total") == 0 and count(server, "failed_total", stage="feedback") == 1
    assert count(server, "added_latency_seconds_count") == 0
    assert count(asyncio.run(shadowed("off")), "added_latency_seconds_count") == 0
    assert count(asyncio.run(shadowed("adaptive")), "added_latency_seconds_count") == 1


def http(server, content=None, **more):
    """One request over HTTP, in this process."""

    async def ask():
        transport = httpx2.ASGITransport(application(server))
        headers = {"Authorization": "Bearer k"}
        body = {"model": "run", "messages": [{"role": "user", "content": "hi"}], **more}
        async with httpx2.AsyncClient(transport=transport, base_url="http://here", headers=headers) as client:
            sent = {"json": body} if content is None else {"content": content()}
            return await client.post("/v1/chat/completions", **sent)

    return asyncio.run(ask())


def error(answer):
    return answer.status_code, answer.json()["error"]["code"], answer.json()["error"]["param"]


@pytest.mark.parametrize("mode", ["adaptive", "always", "shadow"])
def test_a_pair_trained_without_feedback_is_not_served_as_if_it_had_been_reviewed(tmp_path, mode, monkeypatch):
    monkeypatch.setenv("CHOREO_API_KEY", "k")
    path = make_run(tmp_path / "run", protocol={"rounds": 0}, stages={"train": "conversation"})
    with pytest.raises(BadInput, match="--mode off"):
        run.serve(run.Options(path, port=0, mode=mode))
    server = serving(agents(lambda game: "draft"), mode="off", limits=Limits(0, 9, 9))
    assert http(server).json()["choices"][0]["message"]["content"] == "draft"
    assert error(http(server, choreo={"mode": mode})) == (400, "unsupported_value", "choreo.mode")
    assert error(http(server, **UNCHECKED)) == (400, "unsupported_value", "choreo.stream")


def test_the_queue_is_asked_before_the_messages_are_read_and_for_every_answer():
    server = serving(agents(lambda game: "draft"), queue=3)
    server.agents[CONVERSATION].room = lambda *asked: pytest.fail("read")
    server.running = 2
    assert error(http(server, n=2)) == (503, "overloaded", None)
    assert error(http(server, n=4)) == (400, "invalid_value", "n")
    assert server.running == 2


def test_what_a_template_refuses_is_the_callers_to_change():
    def alternate(*asked):
        raise BadInput("its chat template cannot be used: roles must alternate")

    server = serving(agents(lambda game: "draft"))
    server.agents[CONVERSATION].room = alternate
    assert error(http(server)) == (400, "invalid_value", "messages") and server.running == 0


def test_a_body_that_does_not_come_is_not_waited_for():
    async def trickle():
        yield b"{"
        await asyncio.sleep(30)

    began = time.monotonic()
    assert error(http(serving(agents(lambda game: "draft"), deadline=0.3), trickle)) == (408, "request_timeout", None)
    assert time.monotonic() - began < 10
