"""Two processes and one take the same step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from warm import Warm

from choreo import parallel
from choreo.engine.agent import Team
from choreo.engine.learner import Learner
from choreo.engine.losses import PolicyLoss
from choreo.judges.base import judge_all
from choreo.judges.majority import Majority
from choreo.types import Prompt, Sample, Verdict


def make_samples() -> list[Sample]:
    """Five samples of very different lengths: a mean of two ranks' means would be another number."""
    samples = []
    for i in range(5):
        ids = tuple((37 * i + 11 * j) % 290 + 5 for j in range(1 + 4 * i))
        advantages = tuple((-1.0) ** i * (1 + 0.1 * j) for j in range(len(ids)))
        old = (-4.0,) * len(ids)
        samples.append(Sample("conversation", (9, 8, 7 + i), ids, old, "", 0.0, {}, old, advantages))
    return samples


def train(folder: str) -> dict:
    torch.set_num_threads(1)
    learner = Learner(Team.load(folder, rank=4, seed=1), "conversation", lr=1e-2, micro_tokens=16)
    loss = PolicyLoss(clip=0.99, kl=0.1)
    gradient = learner.gradient(make_samples(), loss)
    metrics = [
        learner.update(make_samples(), loss),
        learner.update(make_samples()[:1], loss),  # the second rank has nothing to do
    ]
    here = parallel.rank()
    told = {
        "order": parallel.gather(parallel.shard(range(5))),
        "spread": parallel.spread(range(5), lambda own: [10 * one for one in own]),
        "spread nothing": parallel.spread([], list),
        "spread twice": parallel.spread(range(3), lambda own: parallel.spread(own, lambda one: [10 * x for x in one])),
        "majority": [v.unsafe for v in judge_all(Majority([Bad(), Bad()]), PAIRS)],
        "first": parallel.first(lambda: (here, parallel.first(lambda: parallel.gather([here])))),
        "agreed": [parallel.agreed(here == parallel.ranks() - 1), parallel.agreed(False)],
        "raised": [
            error_of(lambda: parallel.spread(range(5), broken)),
            error_of(lambda: parallel.first(lambda: 1 / 0)),
        ],
    }
    return {"gradient": gradient, "metrics": metrics, **told}


class Bad:
    """Finds what is called bad."""

    name = "bad"

    def __call__(self, prompt: Prompt, answer: str) -> Verdict:
        return Verdict(answer == "bad", False)


PAIRS = [(Prompt("p", "How?", "harmful", "s"), answer) for answer in ("bad", "ok", "bad", "ok", "ok")]


def broken(items: Sequence[int]) -> Sequence[int]:
    if 4 in items:
        raise ValueError("there is a four")
    return items


def error_of(work: Callable[[], object]) -> str:
    try:
        return f"nothing but {work()}"
    except (ValueError, ZeroDivisionError) as error:
        return str(error)


def work(rank: int, folder: str, meeting: str, out: str) -> None:
    wait = timedelta(seconds=90)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=wait)
    try:
        torch.save(train(folder), f"{out}.{rank}")
    finally:
        dist.destroy_process_group()


def call(module: str, function: str, *arguments: object) -> Warm:
    """A function of a file of tests, in a process of its own."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import {module} as m; m.{function}(*{arguments!r})"
    return Warm(["-c", code], streams=(None, None, 2))


def test_two_ranks_are_one(tiny_folder, tmp_path):
    places = (str(tiny_folder), str(tmp_path / "meeting"), str(tmp_path / "out"))
    other = call("test_engine_parallel", "work", 1, *places)
    one = train(str(tiny_folder))  # before this process joins the group: the answer to compare with
    work(0, *places)
    assert other.wait(90) == 0
    ranks = [torch.load(tmp_path / f"out.{rank}") for rank in range(2)]
    assert max(float(g.abs().max()) for g in one["gradient"]) > 1e-3
    for two in ranks:
        assert two["order"] == list(range(5))
        for name in (
            "order",
            "spread",
            "spread nothing",
            "spread twice",
            "majority",
            "first",
            "agreed",
            "raised",
        ):  # the same on both, as alone
            assert two[name] == one[name], name
        for ours, theirs in zip(one["gradient"], two["gradient"], strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-6)
        for ours, theirs in zip(one["metrics"], two["metrics"], strict=True):
            assert ours.keys() == theirs.keys()
            assert all(abs(ours[name] - theirs[name]) < 1e-4 * (1 + abs(ours[name])) for name in ours)
    assert all(torch.equal(a, b) for a, b in zip(ranks[0]["gradient"], ranks[1]["gradient"], strict=True))
