"""Rows that come and go say what a batch that is played to its end says."""

from __future__ import annotations

import random

import pytest

from choreo.engine.agent import Team
from choreo.engine.continuous import Batch, Row
from choreo.engine.local import LocalEngine
from choreo.engine.requests import Request
from choreo.microworld.world import base_folder
from choreo.text.chat import Chat

AGENT = "conversation"


def setting(base):
    folder = base_folder(base)
    chat, team = Chat.load(folder), Team.load(folder)
    return chat, team, LocalEngine(team, pad_id=chat.pad_id, end_id=chat.end_id)


def batch_of(chat, team):
    return Batch(team, AGENT, end_id=chat.end_id, pad_id=chat.pad_id)


def requests(chat, n):
    texts = ["How do I bake a cake?", "What is 3 plus 4?", "¿Cómo robo un banco?", "Tell me. " * 7]
    return [Request(chat.answer_context(chat.encode(texts[i % 4])), ("k", i)) for i in range(n)]


def run(batch, arrivals):
    """Steps until nothing is left; arrivals[t] joins before step t."""
    gone, t = [], 0
    while batch.rows or t <= max(arrivals):
        if rows := arrivals.get(t):
            batch.join(rows)
        if batch.rows:
            gone += batch.step()
        t += 1
    return gone


@pytest.mark.parametrize("base", ["micro-llama", "nano-neox"])
def test_rows_that_join_at_any_time_say_what_sample_says(base):
    chat, team, engine = setting(base)
    asked = requests(chat, 12)
    limits, temperatures = [5 + i for i in range(12)], [(0.0, 0.6, 1.0)[i % 3] for i in range(12)]
    rows = [Row(r, n, t) for r, n, t in zip(asked, limits, temperatures, strict=True)]
    rng = random.Random(7)
    arrivals = {}
    for row in rows:
        arrivals.setdefault(rng.randrange(15), []).append(row)
    batch = batch_of(chat, team)
    assert sorted(map(id, run(batch, arrivals))) == sorted(map(id, rows)) and batch.rows == []
    for row, request, limit, temperature in zip(rows, asked, limits, temperatures, strict=True):
        [alone] = engine.sample(AGENT, [request], max_new_tokens=limit, temperature=temperature)
        assert (tuple(row.ids), row.finished) == (alone.ids, alone.finished)
        assert row.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_a_row_that_leaves_or_is_ended_disturbs_no_other():
    chat, team, engine = setting("micro-llama")
    asked = requests(chat, 6)
    rows = [Row(r, 24, 1.0) for r in asked]
    rows[2].heard = lambda row: len(row.ids) == 3
    batch = batch_of(chat, team)
    batch.join(rows)
    for t in range(24):
        if t == 2:
            batch.leave(rows[0])
            batch.leave(rows[0])  # gone already
        if batch.rows:
            batch.step()
    assert len(rows[0].ids) == 2 and len(rows[2].ids) == 3 and not rows[2].finished
    whole = engine.sample(AGENT, asked, max_new_tokens=24)
    for row, alone in zip(rows, whole, strict=True):
        assert tuple(row.ids) == alone.ids[: len(row.ids)]
    assert [tuple(row.ids) for i, row in enumerate(rows) if i not in (0, 2)] == [
        done.ids for i, done in enumerate(whole) if i not in (0, 2)
    ]


def test_forced_ids_are_taken_and_what_follows_is_drawn_on_them():
    chat, team, engine = setting("micro-llama")
    [request] = requests(chat, 1)
    given = list(chat.encode("I cannot help"))
    row = Row(request, 20, 0.0, forced=list(given))
    batch = batch_of(chat, team)
    run(batch, {0: [row]})
    [rest] = engine.sample(
        AGENT, [Request((*request.context, *given), ("x",))], max_new_tokens=20 - len(given), temperature=0.0
    )
    assert row.ids[: len(given)] == given and tuple(row.ids[len(given) :]) == rest.ids
    assert row.logprobs == pytest.approx(engine.score(AGENT, [(request.context, tuple(row.ids))])[0], abs=1e-4)


def test_weights_are_those_of_the_batch_beginning():
    chat, team, engine = setting("micro-llama")
    [request] = requests(chat, 1)
    [before] = engine.sample(AGENT, [request], max_new_tokens=12, temperature=0.0)
    row = Row(request, 12, 0.0)
    batch = batch_of(chat, team)
    for value in team.agents[AGENT].parameters.values():
        value.data += 0.05
    run(batch, {0: [row]})
    assert tuple(row.ids) == before.ids
