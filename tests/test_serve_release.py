"""A checked stream that leaves by segments: nothing unchecked leaves, and nothing waits for the whole draft."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import anthropic
import openai
import pytest
from serving import KEY, Serving, listening, make_run
from stub_endpoint import Say, Stub
from stub_endpoint import chat as said

from choreo.server.app import application
from choreo.server.keys import own_key
from choreo.server.release import SEGMENT
from choreo.server.session import UNSAFE, WITHHELD, Down, SampledTurn
from choreo.server.state import Server, Settings
from choreo.text.feedback import render_feedback
from choreo.types import CONVERSATION, FEEDBACK, Feedback, Limits, Turn


class Writes:
    """Writes the words of the request, a token each; a word GO waits until `go` is set; REVISED the second time."""

    trained, takes_forms = True, False

    def __init__(self):
        self.go, self.cancelled = threading.Event(), 0

    def room(self, game, options, rounds):
        pass

    async def next_turn(self, game, options, on_token=None):
        if game.answers:
            return SampledTurn(Turn(CONVERSATION, 1, (), (1,), (), 0, "Revised.", True), 1, 1)
        written, ids = "", ()
        try:
            for word in game.prompt.text.split(" "):
                if word == "GO":
                    while not self.go.is_set():
                        await asyncio.sleep(0.01)
                    continue
                if word == "DOWN":
                    raise Down("it is gone")
                written, ids = f"{written} {word}".lstrip(), (*ids, 1)
                if on_token is not None:
                    on_token(Turn(CONVERSATION, 0, (1,), ids, (), 0, written, False))
                await asyncio.sleep(0.002)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return SampledTurn(Turn(CONVERSATION, 0, (1,), ids, (), 0, written, True), len(ids), 1)


class Reads:
    """Calls unsafe what says "bad", over-refusing what says "sorry"; fails where it reads "fog". Keeps what it read."""

    trained = True

    def __init__(self):
        self.read = []

    async def next_turn(self, game, options, on_token=None):
        text = game.answers[-1].text
        await asyncio.sleep(0.02)
        self.read.append(text)
        if "fog" in text:
            raise Down("it is gone")
        said = render_feedback(Feedback("", "bad" in text, "sorry" in text, "Again."))
        return SampledTurn(Turn(FEEDBACK, 0, (), (1, 2), (), 0, said, True), 2, 1)


@pytest.fixture
def served():
    writes, reads = Writes(), Reads()
    settings = Settings("run", "adaptive", Limits(1, 99, 99), 0.6, release="segment", deadline=10)
    server = Server(settings, {CONVERSATION: writes, FEEDBACK: reads}, [own_key(KEY)])
    with listening(application(server)) as http:
        url = str(http.base_url)
        ours = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0)
        yield ours, anthropic.Anthropic(base_url=url, api_key=KEY, max_retries=0), writes, reads


def stream(ours, text, on_piece=lambda so_far: None, **more):
    """(pieces, finish_reason) of a streamed answer; on_piece is called with the text so far."""
    pieces, finish = [], None
    asked = {"model": "run", "messages": [{"role": "user", "content": text}], "stream": True}
    for chunk in ours.chat.completions.create(**asked, **more):
        for choice in chunk.choices:
            finish = choice.finish_reason or finish
            if choice.delta.content:
                pieces.append(choice.delta.content)
                on_piece("".join(pieces))
    return pieces, finish


def test_a_segment_leaves_once_all_so_far_is_checked_and_before_the_rest_is_written(served):
    ours, _, writes, reads = served

    def checked(so_far):
        assert any(text.startswith(so_far) and "bad" not in text for text in reads.read)
        writes.go.set()  # the rest is not written before something has come

    text = "One is first. GO Two is second. Three is third."
    pieces, finish = stream(ours, text, checked)
    assert "".join(pieces) == text.replace("GO ", "") and finish == "stop"
    assert pieces[0] == "One is first." and reads.read[-1] == "".join(pieces)
    writes.go.clear()
    pieces, finish = stream(ours, "word " * SEGMENT + "GO and no sentence ends", checked)  # so many tokens do as well
    assert pieces[0].split() == ["word"] * SEGMENT and finish == "stop"


def test_what_comes_to_be_unsafe_is_withheld_from_there_on(served):
    ours, theirs, writes, _ = served
    text = "One is first. GO Then it is bad. " + "More of it. " * 99
    told = {"model": "run", "messages": [{"role": "user", "content": text}]}
    pieces, finish = stream(ours, text, lambda so_far: writes.go.set(), extra_body={"choreo": {"trace": True}})
    assert pieces == ["One is first."] and finish == "content_filter" and writes.cancelled == 1
    with theirs.messages.stream(**told, max_tokens=99) as events:
        message = events.get_final_message()
    assert message.stop_reason == "refusal" and message.stop_details.explanation == UNSAFE
    assert message.content[0].text == "One is first."
    with ours.responses.stream(model="run", input=text) as events:
        last = list(events)[-1]
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "content_filter"
    assert last.response.output_text == "One is first."
    # The last words too, although all others have left.
    pieces, finish = stream(ours, "One is first. GO Bits, and bad")
    assert pieces == ["One is first."] and finish == "content_filter"


def test_while_nothing_has_left_an_answer_is_repaired(served):
    ours, _, writes, _ = served
    writes.go.set()
    assert stream(ours, "This is bad. And so on.") == (["Revised."], "stop")
    assert stream(ours, "I am sorry. I can not.") == (["Revised."], "stop")
    # Later it is too late, and over-refusing harms nobody.
    writes.go.clear()
    pieces, finish = stream(ours, "One is first. GO I am sorry.", lambda so_far: writes.go.set())
    assert "".join(pieces) == "One is first. I am sorry." and finish == "stop"
    reply = ours.chat.completions.create(model="run", messages=[{"role": "user", "content": "This is bad. GO"}])
    assert reply.choices[0].message.content == "Revised."  # no stream: as ever


def test_what_nobody_reviewed_does_not_leave(served):
    ours, _, writes, reads = served
    pieces, finish = stream(ours, "One is first. GO Then fog. And more.", lambda so_far: writes.go.set())
    assert pieces == ["One is first."] and finish == "content_filter"
    writes.go.clear()
    with pytest.raises(openai.APIError, match="it is gone"):
        stream(ours, "One is first. GO DOWN", lambda so_far: writes.go.set())
    writes.go.clear()
    pieces, finish = stream(
        ours, "One. GO Two STOP three. Four.", lambda so_far: writes.go.set(), stop=["STOP", "our."]
    )
    assert pieces == ["One.", " Two "] and finish == "stop" and reads.read[-1] == "One. Two STOP three. Four."


@pytest.mark.parametrize("ending", ["hangs up", "fails"])
def test_what_has_left_is_recorded_however_its_stream_ends(served, capsys, ending):
    ours, _, writes, _ = served
    with pytest.raises(openai.APIError if ending == "fails" else EOFError):
        text = "One is first. GO " + ("DOWN" if ending == "fails" else "Two.")
        asked = {"model": "run", "messages": [{"role": "user", "content": text}]}
        with ours.chat.completions.create(**asked, stream=True) as chunks:
            for chunk in chunks:
                if ending == "hangs up" and chunk.choices[0].delta.content:
                    raise EOFError  # the connection is closed
                writes.go.set() if ending == "fails" else None
    logs = []
    for _ in range(200):
        logs += [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        if left := [line for line in logs if line["event"] == "left"]:
            break
        time.sleep(0.01)
    [left] = left
    assert left["mode"] == "adaptive" and not left["unsafe"] and left["failed"] is None
    assert left["draft_tokens"] == 3 and left["feedback_tokens"] == 2 and left["feedback_ms"] >= 20
    assert not [line for line in logs if line["event"] == "answer" and line["level"] != "error"]  # it is counted once


def test_what_reviews_of_segments_took_is_counted_and_none_is_made_twice(served, capsys):
    ours, _, writes, reads = served

    def feedback_tokens(text):
        reads.read.clear()
        writes.go.clear()
        asked = {"model": "run", "messages": [{"role": "user", "content": text}], "stream": True}
        for chunk in ours.chat.completions.create(**asked, stream_options={"include_usage": True}):
            if chunk.choices and chunk.choices[0].delta.content:
                writes.go.set()
        return chunk.usage.choreo["feedback_tokens"]

    assert feedback_tokens("One is first. GO") == 2 and reads.read == ["One is first."]
    assert feedback_tokens("One is first. - . … GO and so on") == 4  # there is nothing to read in the second segment
    assert reads.read == ["One is first.", "One is first. - . … and so on"]
    assert feedback_tokens("One is first. GO Then fog") == 2 and len(reads.read) == 2  # the last review fails
    logs = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    spent = [(line["feedback_tokens"], line["feedback_ms"] >= 20) for line in logs if line["event"] == "answer"]
    assert spent == [(2, True), (4, True), (2, True)]
    writes.go.set()
    assert stream(ours, "I am sorry. GO") == (["Revised."], "stop")


def events(*pieces):
    """A streamed reply in the bytes of its events."""
    chunks = [{"choices": [{"delta": {"content": piece}, "finish_reason": None}]} for piece in pieces]
    chunks += [
        {"choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"choices": [], "usage": {"completion_tokens": 7}},
    ]
    return "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks).encode() + b"data: [DONE]\n\n"


@pytest.mark.slow
def test_a_draft_of_another_server_is_released_while_it_comes():
    def script(body, n):
        if "response_format" in body:
            unsafe = "bad" in body["messages"][1]["content"].split("answer:")[1]
            return Say(said(render_feedback(Feedback("", unsafe, False, "Again."))))
        if not body.get("stream"):
            return Say(said("Revised."))
        words = body["messages"][-1]["content"].split("|")
        if "plain" in words:  # this server streams nothing
            return Say(said("Plain it is."))
        if "nulls" in words:  # as some servers write what there is none of
            usage = b'data: {"choices": null, "error": null, "usage": {"completion_tokens": 7}}\n\n'
            return Say(events(*words[:-1]).replace(b'"choices": [{', b'"error": null, "choices": [{') + usage)
        if "deep" in words:
            return Say(b"data: " + b"[" * 50_000 + b"\n\n")
        cut = events(*words).partition(b'data: {"choices": [{"delta": {}')[0]
        return Say(cut if "cut" in words else events(*words), drip=0.002)

    with Stub(script) as stub:
        where = [part for agent in ("conversation", "feedback") for part in (f"--{agent}", f"run@{stub.url}")]
        with Serving(None, *where, "--release", "segment") as server:
            ours = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
            drafts = []  # how many drafts had come whole when a piece left
            more = [f" More {i}." for i in range(9)]

            def count(so_far):
                drafts.append(sum(n for row, n in stub.served.items() if '"stream":true' in row.replace(" ", "")))

            pieces, finish = stream(ours, "|".join(["One.", *more]), count)
            assert "".join(pieces) == "One." + "".join(more) and finish == "stop" and len(pieces) > 1 and drafts[0] == 0
            pieces, finish = stream(ours, "|".join(["One.", *more, " bad.", *more]))
            assert pieces and ("One." + "".join(more)).startswith("".join(pieces)) and finish == "content_filter"
            assert stream(ours, "bad.|More.") == (["Revised."], "stop")
            pieces, finish = stream(ours, "<thi|nk>bad|</think>|One.| Two.")
            assert "".join(pieces) == "One. Two." and finish == "stop"
            assert stream(ours, "plain") == (["Plain it is."], "stop")
            for text in ("|".join(["One.", *more, "cut"]), "|".join(["Let me think.", *more, "</think>", "One."])):
                with pytest.raises(openai.APIError, match="gave no turn"):
                    stream(ours, text)
            pieces, finish = stream(ours, "One.| Two.|nulls")
            assert "".join(pieces) == "One. Two." and finish == "stop"
            with pytest.raises(openai.InternalServerError, match="malformed"):
                stream(ours, "deep")
            unchecked = {"extra_body": {"choreo": {"stream": "unchecked"}}}
            pieces, finish = stream(ours, "One.|Two.|Three.", **unchecked)
            assert pieces == ["One.", "Two.", "Three."] and finish == "stop"


@pytest.mark.slow
def test_a_pair_streams_by_segments_what_it_says_whole(tmp_path):
    with Serving(make_run(tmp_path / "run"), "--release", "segment") as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
        finishes, read, wholly_read = set(), 0, 0
        for seed in range(8):
            for text in ("How do I rob a bank?", "I tried and failed. How do I wreck the rag?"):
                turns, traced = [{"role": "user", "content": text}], {"choreo": {"trace": True}}
                whole = client.chat.completions.create(model="run", messages=turns, seed=seed, extra_body=traced)
                said = [move["text"] for move in whole.choreo["choices"][0]["moves"] if "text" in move]
                used = {"stream_options": {"include_usage": True}}
                chunks = [*client.chat.completions.create(model="run", messages=turns, seed=seed, stream=True, **used)]
                choices = [choice for chunk in chunks for choice in chunk.choices]
                finishes.add(finish := choices[-1].finish_reason)
                given = "".join(choice.delta.content or "" for choice in choices)
                if finish == "content_filter":  # what has left is what the same draft begins with
                    assert given in (UNSAFE, WITHHELD) or said[0].startswith(given), (seed, text)
                else:
                    assert given in said, (seed, text)
                read += chunks[-1].usage.choreo["feedback_tokens"]
                wholly_read += whole.usage.choreo["feedback_tokens"]
        assert "stop" in finishes and read > 1.2 * wholly_read  # each segment was reviewed
        assert server.rest == []
