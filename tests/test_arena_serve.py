"""Ten raters at once against a real server, and a real kill -9 among them: nothing that was acknowledged is lost."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from arena import Rater, make_arena
from serving import Started

from choreo.arena.results import results
from choreo.arena.store import Arena

RATERS = [f"rater-{i}" for i in range(10)]


def serving(folder):
    return Started("arena", "serve", str(folder), "--port", "0", environment={})


def keys_of(folder, names):
    with Arena(folder) as arena:
        return {name: arena.add_rater(name) for name in names}


def test_ten_raters_at_once_rate_blind_and_apart(tmp_path):
    """Every rater prefers "ours" by its text, on whichever side it stands: the figures say whether sides are kept."""
    attention = [{"prompt": "2 + 2?", "a": "ours on 4", "b": "5", "expected": "a"}]
    folder = make_arena(tmp_path, "pairs", ("ours", "base"), 12, attention)
    secrets = keys_of(folder, RATERS)
    orders, sides = {}, {}

    def work(name):
        rater = Rater(server.url, secrets[name])
        state, seen, left = rater.next(), [], []
        while item := state["item"]:
            assert set(item) == {"id", "earlier", "prompt", "answers"}
            assert (state["done"], state["total"]) == (len(seen), 13)
            side = "left" if item["answers"][0].startswith("ours") else "right"
            seen.append(item["prompt"])
            left.append(side)
            state = rater.rate(item["id"], side)
            if len(seen) == 5:  # a change of mind: the same item comes again
                state = rater.undo(item["id"])
                assert state["item"] == item and state["done"] == 4
                state = rater.rate(item["id"], side)
        orders[name], sides[name] = seen, left

    with serving(folder) as server, ThreadPoolExecutor(len(RATERS)) as pool:
        list(pool.map(work, RATERS))
    assert all(len(set(seen)) == 13 for seen in orders.values())
    assert len({tuple(seen) for seen in orders.values()}) == len(RATERS)
    assert {side for left in sides.values() for side in left} == {"left", "right"}
    with Arena(folder) as arena:
        found = results(arena)
        assert found["pairs"][0]["win"] == found["n"] == 120
        assert {of["attention"]["failed"] for of in found["raters"].values()} == {0}
        assert 0.3 < found["left"]["value"] < 0.7


@pytest.mark.slow
def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path):
    folder = make_arena(tmp_path, "labels", ("ours", "base"), 60)
    secrets = keys_of(folder, RATERS)
    enough = threading.Event()
    acknowledged = {}

    def work(name, url, stop):
        """Rates until the server is gone; of a rating that got no answer nobody knows."""
        rater, dice = Rater(url, secrets[name]), random.Random(name)
        said = acknowledged.setdefault(name, {})
        try:
            state = rater.next()
            assert state["done"] >= len(said)
            while item := state["item"]:
                choice, degenerate = dice.choice(("unsafe", "over-refusal", "fine")), dice.random() < 0.3
                state = rater.rate(item["id"], choice, degenerate)
                said[item["id"]] = (choice, degenerate)
                if stop and sum(map(len, acknowledged.values())) >= 300:
                    enough.set()
        except httpx2.TransportError:
            assert stop

    server = serving(folder)
    with ThreadPoolExecutor(len(RATERS)) as pool:
        working = [pool.submit(work, name, server.url, True) for name in RATERS]
        assert enough.wait(120)
        server.process.kill()
        for one in working:
            one.result()
    assert server.process.wait(10) == -9
    stood = sum(map(len, acknowledged.values()))
    assert 300 <= stood < 1200, "the kill came in the middle"
    check(folder, acknowledged)
    with serving(folder) as again, ThreadPoolExecutor(len(RATERS)) as pool:
        list(pool.map(lambda name: work(name, again.url, False), RATERS))
    check(folder, acknowledged)
    with Arena(folder) as arena:
        assert len(arena.ratings()) == 1200  # everybody went on to the end, and rated nothing twice


def check(folder, acknowledged):
    with Arena(folder) as arena:
        kept = {(one.rater, one.item): (one.choice, one.degenerate) for one in arena.ratings()}
        for name, said in acknowledged.items():
            order = arena.order(name)  # the page knows an item by its place in it
            for place, what in said.items():
                assert kept[name, order[place - 1]] == what


def test_what_a_rater_may_not_do(tmp_path):
    folder = make_arena(tmp_path, "pairs", ("ours", "base"), 2)
    secrets = keys_of(folder, ["alice", "bob"])
    with serving(folder) as server:
        for key in ("", "Bearer sk-choreo-guess"):
            answer = httpx2.get(f"{server.url}/next", headers={"Authorization": key} if key else {})
            assert answer.status_code == 401 and "no valid API key" in answer.json()["error"]["message"]
        alice, bob = (Rater(server.url, secrets[name]) for name in ("alice", "bob"))
        item = alice.next()["item"]["id"]
        alice.rate(item, "left")
        alice.rate(item, "left")  # a client that heard no answer asks again
        assert alice.next()["done"] == 1 and bob.next()["done"] == 0 and bob.undo(item)["last"] is None
        for said, status in (
            ({"item": item, "choice": "right"}, 409),
            ({"item": 99, "choice": "left"}, 404),
            ({"item": item, "choice": "a"}, 400),
            ({"item": item, "choice": "fine"}, 400),
            ({"item": item, "choice": "left", "degenerate": True}, 400),
            ({"item": "1", "choice": "left"}, 400),
            ({"item": item, "choice": "left", "rater": "bob"}, 400),
            ({"item": item, "choice": "left" * 2000}, 413),
        ):
            answer = alice.http.post("/rate", json=said)
            assert (answer.status_code, "message" in answer.json()["error"]) == (status, True), said
        assert alice.http.post("/rate", content=b"{").status_code == 400
        with Arena(folder) as arena:  # while the server runs
            renewed = arena.add_rater("alice", renew=True)
        assert alice.http.get("/next").status_code == 401
        assert Rater(server.url, renewed).next()["done"] == 1
        for path in ("/", "/page.js", "/page.css"):
            page = httpx2.get(server.url + path)
            assert "default-src 'none'" in page.headers["content-security-policy"] and "http" not in page.text
