"""What each part of the engine saves changes no result: benchmarks/engine.py has their switches."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from choreo.engine.losses import PolicyLoss
from choreo.engine.requests import Completion

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SIZE = (3, 3, 24)


@pytest.fixture(scope="module")
def gains() -> ModuleType:
    """The benchmark."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("engine_gains", BENCHMARKS / "engine.py")
        assert spec is not None and spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return found


def test_with_a_part_and_without_it_the_results_are_equal(gains):
    batch = gains.Batch("micro-llama", *SIZE)
    assert len({len(ids) for _, ids in batch.pairs}) > 1  # else no row would leave before the others

    def result(work):
        if work == batch.update:
            return torch.cat([one.flatten() for one in batch.learner.gradient(batch.samples, PolicyLoss(0.2))])
        return work()

    parts = gains.parts(batch)
    assert {what for _, what, _, _ in parts} == {"rollout", "update", "score"}
    for part, _, off, work in parts:
        kept = result(work)
        with off():
            other = result(work)
        if isinstance(kept, torch.Tensor):
            assert (kept - other).norm() <= 1e-5 * kept.norm() and kept.norm() > 0, part
            continue
        for one, two in zip(kept, other, strict=True):
            if isinstance(one, Completion):
                assert one.ids == two.ids, part
                one, two = one.logprobs, two.logprobs
            assert one == pytest.approx(two, abs=1e-5), part


def test_a_part_is_off_when_it_is_said_to_be(gains, monkeypatch):
    batch = gains.Batch("micro-llama", *SIZE)
    fed: list[int] = []
    run = batch.team.run

    def counted(weights, inputs, where=None):
        fed.append(inputs["input_ids"].numel())
        return run(weights, inputs, where)

    monkeypatch.setattr(batch.team, "run", counted)
    for part, _, off, work in gains.parts(batch):
        tokens = []
        for switch in (None, off):
            fed.clear()
            if switch is None:
                work()
            else:
                with switch():
                    work()
            tokens.append(sum(fed))
        # Rows that stay are fed by the step of our own, which this does not count; transformers' step it does.
        assert tokens[1] > tokens[0] or part == "finished rows leave the batch", part


def test_gains_and_rates_are_told(gains):
    batch = gains.Batch("micro-llama", *SIZE)
    [(_, _, off, work), *_] = gains.parts(batch)
    found = gains.by_turns(work, off, 2)
    assert 0 < found["low"] <= found["gain"] <= found["high"] and found["seconds"] > 0
    limit = gains.rate(batch, 1)
    assert limit["share"] == pytest.approx(limit["model_gflops"] / limit["matmul_gflops"])
