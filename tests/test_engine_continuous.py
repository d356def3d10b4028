"""Rows that come and go say what a batch that is played to its end says."""

from __future__ import annotations

import random
from itertools import compress

import pytest
import torch
from rounding import all_same, same

from choreo.engine.agent import Team
from choreo.engine.cache import BLOCK, Pool, Prefixes, Slots
from choreo.engine.continuous import Batch, Row
from choreo.engine.local import LocalEngine
from choreo.engine.ngram_speculation import AHEAD, NgramTable
from choreo.engine.requests import Request
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder

pytestmark = pytest.mark.numeric

AGENT = "conversation"


def setting(base):
    folder = base_folder(base)
    chat, team = load_chat(folder), Team.load(folder)
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
    alone = [
        engine.sample(AGENT, [request], max_new_tokens=limit, temperature=temperature)[0]
        for request, limit, temperature in zip(asked, limits, temperatures, strict=True)
    ]
    equal = all_same(engine, AGENT, asked, [tuple(row.ids) for row in rows], [one.ids for one in alone], temperatures)
    assert all(row.finished == one.finished for row, one in compress(zip(rows, alone, strict=True), equal))


@pytest.mark.parametrize("base", ["micro-llama", "nano-neox"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_guess_saves_steps_and_changes_no_more_than_a_batch_does(base, temperature):
    """Guesses that are right for a while, of any length, past the end and past the limit; some are forced besides."""
    chat, team, engine = setting(base)
    asked = requests(chat, 8)
    whole = engine.sample(AGENT, asked, max_new_tokens=16, temperature=temperature)
    rng = random.Random(11)

    def guesser(truth, share):
        def guess(ids):
            n = rng.randrange(12)
            told = [token if rng.random() < share else rng.randrange(9, 300) for token in truth[len(ids) :][:n]]
            return [*told, *rng.choices(range(9, 300), k=n - len(told))]

        return guess

    steps = {}  # of the rows that say what `sample` says: where one parts from it, what follows is another text
    for share in (0.0, 0.8, 1.0):
        rows = [Row(r, 16, temperature, guess=guesser(w.ids, share)) for r, w in zip(asked, whole, strict=True)]
        rows[1].forced = list(whole[1].ids[:5])
        batch = batch_of(chat, team)
        batch.join(rows)
        ends, step = {}, 0
        while batch.rows:
            step += 1
            ends |= {id(row): step for row in batch.step()}
        equal = all_same(engine, AGENT, asked, [tuple(row.ids) for row in rows], [w.ids for w in whole], temperature)
        assert all(row.finished == w.finished for row, w in compress(zip(rows, whole, strict=True), equal))
        steps[share] = [ends[id(row)] if agrees else None for row, agrees in zip(rows, equal, strict=True)]
    alike = [None not in ends for ends in zip(*steps.values(), strict=True)]
    steps = {share: max(compress(ends, alike)) for share, ends in steps.items()}
    assert steps[1.0] < steps[0.8] < steps[0.0] <= 17  # texts come twice, and the second waits for the first


def test_what_was_read_is_not_read_again():
    """One context of several rows, a context that goes on from a row that has ended, and one that only begins alike."""
    chat, team, engine = setting("micro-llama")
    [request] = requests(chat, 1)
    batch = batch_of(chat, team)
    alike = [Row(Request(request.context, ("n", i)), 12, 1.0) for i in range(3)]
    fed = []
    feed = batch._feed

    def watched(*parts):
        fed.append(sum(part.token.numel() for part in parts))
        return feed(*parts)

    batch._feed = watched
    batch.join(alike)
    batch.step()
    assert fed == [len(request.context)]  # the others wait for it
    batch.step()
    assert fed[1] <= 1 + 2 * BLOCK and all(row.ids for row in alike)
    run(batch, {0: []})
    said = next(row for row in alike if len(row.ids) > BLOCK)
    longer = (*said.request.context, *said.ids, *chat.encode("And then?"))
    other = (*request.context[: BLOCK + 1], *chat.encode("Quite another thing."))
    rows = [Row(Request(longer, ("l",)), 12, 1.0), Row(Request(other, ("o",)), 12, 1.0)]
    batch.join(rows)
    batch.step()
    assert rows[0].cached == len(longer)
    assert fed[-1] <= 2 * max(len(chat.encode("And then?")) + BLOCK, len(other) - BLOCK)
    run(batch, {0: []})
    for row in [*alike, *rows]:
        [alone] = engine.sample(AGENT, [row.request], max_new_tokens=12, temperature=1.0)
        same(engine, AGENT, row.request, tuple(row.ids), alone.ids, 1.0)


def test_a_long_context_is_padding_to_nobody():
    chat, team, engine = setting("micro-llama")
    asked = requests(chat, 4)
    long = Request(chat.answer_context(chat.encode("Tell me. " * 90)), ("long",))
    rows = [Row(r, 6, 1.0) for r in (*asked, long)]
    batch, fed = batch_of(chat, team), []
    feed = batch._feed
    batch._feed = lambda *parts: (fed.append([part.token.shape for part in parts]), feed(*parts))[1]
    batch.join(rows)
    run(batch, {0: []})
    assert sum(rows * width for rows, width in fed[0]) < 1.5 * len(long.context)
    for row in rows:
        [alone] = engine.sample(AGENT, [row.request], max_new_tokens=6, temperature=1.0)
        same(engine, AGENT, row.request, tuple(row.ids), alone.ids, 1.0)


@pytest.mark.parametrize("base", ["micro-llama", "nano-neox"])
def test_a_long_context_is_read_in_chunks_beside_rows_that_go_on(base, monkeypatch):
    """Whatever joins and leaves meanwhile: contexts of any length, alike or not, with forced and guessed ids. No step
    feeds a context more than a chunk, and no step leaves a row that has begun without a token."""
    chat, team, engine = setting(base)
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    chunk = rng.choice([3, 8, 21])
    monkeypatch.setattr("choreo.engine.continuous.CHUNK", chunk)
    texts = ["Tell me. " * rng.randrange(30) + rng.choice(["How do I bake a cake?", "?"]) for _ in range(9)]
    asked = [Request(chat.answer_context(chat.encode(rng.choice(texts))), ("k", i)) for i in range(18)]
    temperatures = [rng.choice([0.0, 1.0]) for _ in asked]
    whole = [
        engine.sample(AGENT, [request], max_new_tokens=12, temperature=temperature)[0]
        for request, temperature in zip(asked, temperatures, strict=True)
    ]
    rows = [Row(r, 12, t, guess=lambda ids: [9, 9]) for r, t in zip(asked, temperatures, strict=True)]
    rows[3].forced = list(whole[3].ids[:4])
    gone = {4: rows[5], 9: rows[6]}  # by the step before which they leave
    joins = [rng.randrange(12) for _ in rows]
    batch, fed = batch_of(chat, team), []
    feed = batch._feed
    batch._feed = lambda *parts: (fed.append(max(part.token.shape[1] for part in parts)), feed(*parts))[1]
    left, read_in = set(), {}
    for t in range(400):
        batch.join([row for row, when in zip(rows, joins, strict=True) if when == t])
        if t in gone and gone[t] in batch.rows:
            left.add(id(gone[t]))
            batch.leave(gone[t])
        begun = [(row, len(row.ids)) for row in batch.rows if row.ids]
        if batch.rows:
            batch.step()
        assert all(len(row.ids) > before for row, before in begun)
        for row in batch.rows:
            if not row.ids and row.cached:
                read_in[id(row)] = read_in.get(id(row), 0) + 1
    assert batch.rows == [] and max(fed) <= chunk + 16 and max(read_in.values()) > 1
    kept = [i for i, row in enumerate(rows) if id(row) not in left]
    all_same(
        engine,
        AGENT,
        [asked[i] for i in kept],
        [tuple(rows[i].ids) for i in kept],
        [whole[i].ids for i in kept],
        [temperatures[i] for i in kept],
    )


def test_a_context_that_is_still_read_spares_another_its_beginning(monkeypatch):
    monkeypatch.setattr("choreo.engine.continuous.CHUNK", 2 * BLOCK)
    chat, team, _ = setting("micro-llama")
    context = chat.answer_context(chat.encode("Tell me. " * 30))
    first, second = Row(Request(context, ("k", 0)), 4, 0.0), Row(Request((*context[:50], 5, 6), ("k", 1)), 4, 0.0)
    batch = batch_of(chat, team)
    batch.join([first])
    batch.step()
    batch.step()
    assert first.cached == 4 * BLOCK and not first.ids
    batch.join([second])
    batch.step()
    assert second.cached == first.cached == 6 * BLOCK


def test_prefixes_give_back_what_was_kept_and_hold_no_more_than_they_may():
    """Against the longest common prefix by hand; every slot holds a number that names its layer, place and tokens."""
    rng = random.Random(5)
    layers = [Slots(1), Slots(1)]
    for layer in layers:
        layer.update(torch.zeros(1, 2, 1, 3), torch.zeros(1, 2, 1, 5))
    pool = Pool(layers)
    prefixes = Prefixes(pool, 10 * BLOCK)
    pool.fit(2, 40, 40)
    marks = {}

    def mark(ids, i):
        return float(marks.setdefault(ids[: i + 1], len(marks) + 1))

    kept = []
    for _ in range(200):
        ids = tuple(rng.randrange(2) for _ in range(rng.randrange(1, 40)))
        pool.keys.fill_(float("nan"))
        n = prefixes.load(1, ids)
        longest = max((BLOCK * (common(ids, other) // BLOCK) for other in kept), default=0)
        assert n % BLOCK == 0 and n <= longest
        for i in range(n):
            assert (pool.keys[:, 1, :, i] == mark(ids, i)).all() and (pool.values[:, 1, :, i] == -mark(ids, i)).all()
        for i in range(len(ids)):
            pool.keys[:, 0, :, i], pool.values[:, 0, :, i] = mark(ids, i), -mark(ids, i)
        prefixes.keep(0, ids)
        kept.append(ids)
        assert len(prefixes._blocks) <= 10
        numbers = {0, *(number for number, _ in prefixes._blocks.values())}
        assert {before for before, _ in prefixes._blocks} <= numbers  # none outlives the one before it
        assert prefixes.load(1, ids) == len(ids) // BLOCK * BLOCK  # nothing is so new as what was kept just now


def common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def test_recall_goes_on_as_it_was_and_is_silent_where_it_contradicts_itself(monkeypatch):
    recall = NgramTable()
    assert recall.guesser((1, 2))([7]) == []
    recall.learn((1, 2, 3, 4, 5))
    recall.learn((9, 2, 3, 6))
    guess = recall.guesser((8, 8))
    assert guess([1, 2]) == [3, 4, 5]  # three tokens tell which of both it is
    assert guess([0, 2]) == [3] and guess([0, 9, 2]) == [3, 6]
    assert recall.guesser((2, 7, 7, 7))([2]) == [7] * AHEAD  # what the context says comes first
    monkeypatch.setattr("choreo.engine.ngram_speculation.SIZE", 100)
    for i in range(200):
        recall.learn((i, i + 1, i + 2, i + 3))
    assert len(recall._next) <= 106


def test_a_row_that_leaves_or_is_ended_disturbs_no_other():
    chat, team, engine = setting("micro-llama")
    asked = requests(chat, 6)
    rows = [Row(r, 24, 1.0) for r in asked]
    rows[2].on_token = lambda row: len(row.ids) == 3
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
    told = [
        alone.ids[: len(row.ids)] if i in (0, 2) else alone.ids
        for i, (row, alone) in enumerate(zip(rows, whole, strict=True))
    ]
    all_same(engine, AGENT, asked, [tuple(row.ids) for row in rows], told)


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
    assert row.ids[: len(given)] == given
    after = Request((*request.context, *given), ("x",))
    same(engine, AGENT, after, tuple(row.ids[len(given) :]), rest.ids, 0.0)


def test_weights_are_those_of_the_batch_beginning():
    chat, team, _ = setting("micro-llama")
    [request] = requests(chat, 1)
    row, before = Row(request, 12, 0.0), Row(request, 12, 0.0)
    run(batch_of(chat, team), {0: [before]})
    batch = batch_of(chat, team)
    for value in team.agents[AGENT].parameters.values():
        value.data += 0.05
    run(batch, {0: [row]})
    assert row.ids == before.ids
