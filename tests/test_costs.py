"""The arithmetic of `choreo plan`, against values computed by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from choreo import config
from choreo.experiment.costs import (
    Machine,
    Shape,
    all_reduce_bytes,
    cache_bytes,
    cost,
    forward,
    gradient_bytes,
    operations,
    optimiser_bytes,
    update,
)
from choreo.methods.passes import Lengths, Pass
from choreo.methods.waltz.work import waltz_passes

SHAPE = Shape(matrix=1000, head=200, stored=1300, layers=2, width=10, keys=8, size=2, learnt=50, beside=True)
SMALL = Shape(matrix=100, head=20, stored=130, layers=2, width=1, keys=8, size=2, learnt=50)
MACHINE = Machine({1: 1000.0}, 1.0, bandwidth=100.0, step=0.01, link=10.0)


def test_operations_of_a_forward_and_a_backward_pass():
    # Three tokens that see four positions, two of them actions.
    linear, attention, head, adapter = 2 * 1000 * 3, 4 * 2 * 10 * 3 * 4, 2 * 200 * 2, 2 * 50 * 3
    assert (linear, attention, head, adapter) == (6000, 960, 800, 300)
    assert forward(SHAPE, 3, 4, 2) == 8060
    assert update(SHAPE, 3, 4, 2) == 12000 + 2880 + 2400 + 900 == 18180  # 4·N·T
    assert update(replace(SHAPE, recompute=True), 3, 4, 2) == 18180 + 6000 + 960 + 300
    assert update(replace(SHAPE, beside=False), 3, 4, 2) == 18000 + 2880 + 2400  # 6·N·T: the gradient of W
    assert update(replace(SHAPE, beside=False, full=True), 3, 4, 2) == 18000 + 2880 + 3200  # and of the output layer


def test_bytes():
    assert cache_bytes(32, 2 * 8 * 128, 2) == 131072  # of a token in an 8B Llama, in bfloat16
    assert optimiser_bytes(41_943_040) == 335_544_320 and gradient_bytes(41_943_040) == 167_772_160
    assert all_reduce_bytes(100, 4) == 600 and all_reduce_bytes(100, 1) == 0


def test_a_rate_lies_between_the_measured_widths():
    machine = Machine({128: 100.0, 512: 400.0}, 0.5, bandwidth=1.0)
    assert [machine.rate(width) for width in (64, 128, 512, 2048)] == [50, 50, 200, 200]
    assert machine.rate(256) == pytest.approx(100)


def test_sampling_reads_the_weights_for_every_token():
    work = Pass("both", "sample", rows=4, context=10, new=5, times=3, distinct=2)
    # On two devices two rows each. One context is read: 2·100·10 + 4·2·1·10·5 = 2400 FLOP. Ten tokens see 12.5
    # positions on average: 2000 + 1000 + 400 = 3400 FLOP, but 5·130·2 + 10·12.5·32 = 5300 bytes, which take longer.
    found = cost(work, SMALL, MACHINE, ranks=2)
    assert found == {"sample": pytest.approx(3 * (2.4 + 53 + 5 * 2 * 0.01)), "exchange": 0}
    # With room for half of the 30 slots there are two batches, and the weights are read twice as often.
    assert cost(work, SMALL, MACHINE, ranks=2, slots=15)["sample"] == pytest.approx(3 * (2.4 + 66 + 0.2))
    fast = replace(MACHINE, bandwidth=1e9)
    assert cost(work, SMALL, fast, ranks=2)["sample"] == pytest.approx(3 * (2.4 + 3.4 + 0.1), rel=1e-4)
    # Of all rows: two contexts, and twenty tokens.
    assert operations(work, SMALL) == 3 * (2 * 2400 + 2 * 3400)


def test_an_update_is_divided_and_its_gradient_exchanged():
    work = Pass("both", "learn", rows=3, context=10, new=10, times=2, written=0.5)
    # Two rows of 15 tokens on the device with most: 18000 + 5400 + 1200 = 24600 FLOP; 28·50 bytes for the optimiser.
    found = cost(work, SMALL, MACHINE, ranks=2)
    assert found == {"learn": pytest.approx(2 * (24.6 + 14)), "exchange": pytest.approx(2 * 20)}
    assert cost(work, SMALL, replace(MACHINE, link=None), ranks=2)["exchange"] == 0


def test_what_waltz_computes_by_hand():
    found = waltz_passes(config.load("waltz"), Lengths(10, 3, 5, 2))
    feedback = [one for one in found if one.new == 96]
    assert [(one.kind, one.rows, one.context, one.times) for one in feedback] == [
        ("sample", 64, 55, 400),
        ("score", 64, 55, 400),
        ("learn", 64, 55, 400),
    ]
    # The revision comes after the prompt, the answer, the review's words and their frame; stage 1 has 80 steps.
    rest = [(one.kind, one.context, one.times, one.distinct) for one in found if one.new == 40]
    assert rest == [
        ("sample", 13, 400, 32),
        ("sample", 151, 400, None),
        ("score", 82, 320, None),
        ("learn", 82, 320, None),
    ]
    alone = waltz_passes(config.load("single-agent"), Lengths(10, 3, 5, 2))
    assert [one.kind for one in alone] == ["sample", "score", "learn"] and alone[2].times == 400
