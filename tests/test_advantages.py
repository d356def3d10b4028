"""Advantages against values worked out by hand, in float64; and the learnt value baselines."""

from __future__ import annotations

from dataclasses import replace
from math import nan, sqrt

import numpy as np
import pytest
import torch

from choreo.algorithms.advantages import (
    ESTIMATORS,
    dr_grpo,
    flat_groups,
    grpo,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
)
from choreo.algorithms.values import ValueBaseline
from choreo.types import CONVERSATION, FEEDBACK, Sample

pytestmark = pytest.mark.numeric

WIDTHS = {CONVERSATION: 6, FEEDBACK: 6}
EACH = pytest.mark.parametrize("estimate", ESTIMATORS.values(), ids=ESTIMATORS)


def sample(reward, k1=(0.0,), *, agent=CONVERSATION, group="g"):
    """A sample whose tokens have these log π_old − log π_ref."""
    old = tuple(-1.0 - i for i in range(len(k1)))
    reference = tuple(o - k for o, k in zip(old, k1, strict=True))
    return Sample(agent, (1,), tuple(range(len(k1))), old, group, reward, {}, reference)


def of(samples):
    return [s.advantages for s in samples]


def close(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def test_reinforce_pp_by_hand():
    # β = ½: G = (1.2 − 0.1, 1 + 0.2) and (−0.3); μ = 2/3; σ² = 211/450.
    samples = [sample(1.0, (0.2, -0.4)), sample(0.0, (0.6,))]
    sigma = sqrt(211 / 450)
    close(of(reinforce_pp(samples, beta=0.5)), [(13 / 30 / sigma, 8 / 15 / sigma), (-29 / 30 / sigma,)])


def test_group_scores_by_hand():
    samples = [sample(r, group=g) for r, g in [(1, "a"), (0, "a"), (0, "a"), (1, "b"), (1, "b"), (1, "alone")]]
    flat = [(0,)] * 3
    close(of(grpo(samples)), [(sqrt(2),), (-1 / sqrt(2),), (-1 / sqrt(2),), *flat])
    close(of(rloo(samples)), [(1,), (-1 / 2,), (-1 / 2,), *flat])
    close(of(dr_grpo(samples)), [(2 / 3,), (-1 / 3,), (-1 / 3,), *flat])


def test_group_baseline_is_normalised_over_all_tokens():
    # Scores ½, −½, 0, 0 on 1, 1, 1, 2 tokens: μ = 0, σ² = (¼ + ¼)/5.
    samples = [sample(1, group="a"), sample(0, group="a"), sample(1, group="b"), sample(1, (0, 0), group="b")]
    close(of(reinforce_pp_baseline(samples)), [(0.5 / sqrt(0.1),), (-0.5 / sqrt(0.1),), (0,), (0, 0)])


@pytest.mark.parametrize("estimate", [grpo, rloo, dr_grpo])
def test_kl_in_the_reward_is_a_return_to_go(estimate):
    close(of(estimate([sample(1, (0.3, -0.2, 0.5))], beta=0.1)), [(-0.06, -0.03, -0.05)])


def test_whitened_per_agent_over_tokens_never_pooled():
    seed = 20
    print("seed", seed)
    rng = np.random.default_rng(seed)

    def draw(agent, scale):
        return [
            sample(scale * rng.normal(), rng.normal(size=rng.integers(1, 9)), agent=agent, group=f"{i % 3}")
            for i in range(12)
        ]

    talk, review = draw(CONVERSATION, 1.0), draw(FEEDBACK, 100.0)
    mixed = [s for pair in zip(talk, review, strict=True) for s in pair]
    for estimate in ESTIMATORS.values():
        together = estimate(mixed, beta=0.1)
        assert of(together)[::2] == of(estimate(talk, beta=0.1))  # bitwise: the other agent is not there
        assert of(together)[1::2] == of(estimate(review, beta=0.1))
    for estimate in (reinforce_pp, reinforce_pp_baseline):
        for agent in (CONVERSATION, FEEDBACK):
            tokens = np.concatenate([s.advantages for s in estimate(mixed, beta=0.1) if s.agent == agent])
            np.testing.assert_allclose([tokens.mean(), tokens.var()], [0, 1], atol=1e-12)


@EACH
def test_nothing_but_advantages_changes_and_order_does_not_matter(estimate):
    samples = [sample(r, (0.1 * r, 0.2), group=str(r % 2)) for r in range(6)]
    done = estimate(samples, beta=0.3)
    assert [replace(s, advantages=()) for s in done] == samples
    close(of(estimate(samples[::-1], beta=0.3))[::-1], of(done))


@EACH
def test_zero_variance_an_absent_agent_and_no_samples(estimate):
    assert estimate([]) == []
    for reward in (0.0, 0.1, 1.0):
        close(of(estimate([sample(reward, (0.0, 0.0)) for _ in range(7)], beta=0.01)), [(0, 0)] * 7)
    assert of(estimate([sample(1, ())], beta=0.1)) == [()]


@EACH
def test_a_reference_that_is_not_finite_is_refused_where_it_counts_and_ignored_where_not(estimate):
    good = [sample(1, (0.1, 0.2)), sample(0, (0.3,))]
    poisoned = [replace(good[0], reference=(nan, -1.0)), replace(good[1], reference=())]
    close(of(estimate(poisoned)), of(estimate(good)))
    for bad in ((nan, -1.0), (-1.0, -np.inf)):
        with pytest.raises(ValueError, match="not finite"):
            estimate([replace(good[0], reference=bad), good[1]], beta=0.1)
    with pytest.raises(ValueError, match="1 ids, 1 log-probabilities and 0 of the reference"):
        estimate([good[0], poisoned[1]], beta=0.1)


def test_float64_inside():
    close(of(grpo([sample(2.0**24), sample(2.0**24 + 1)])), [(-1,), (1,)])  # float32 sees two equal rewards


@EACH
def test_a_learnt_baseline_comes_off_first(estimate):
    samples = [sample(1, group="a"), sample(0, group="a"), sample(3, group="b"), sample(5, group="b")]
    values = [0.25, 0.5, 1.0, 1.0]
    lowered = [replace(s, reward=s.reward - v) for s, v in zip(samples, values, strict=True)]
    assert of(estimate(samples, values=values)) == of(estimate(lowered))
    with pytest.raises(ValueError, match="2 values for 4 samples"):
        estimate(samples, values=[0.0, 0.0])


def test_groups_without_gradient_are_counted_per_agent():
    samples = [
        *(sample(r, group="mixed") for r in (1, 0)),
        *(sample(0.1, group="flat") for _ in range(3)),
        sample(1, group="alone"),
        sample(0, group="mixed", agent=FEEDBACK),
    ]
    assert flat_groups(samples) == {CONVERSATION: (1, 2)}  # alone in its group is no group
    assert flat_groups([]) == {}


def _states(seed, n=64, d=6):
    print("seed", seed)
    features = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    agents = [CONVERSATION if i % 2 else FEEDBACK for i in range(n)]
    return agents, features, (features[:, 0] > 0).float().tolist()


def test_value_baseline_starts_at_zero_and_learns():
    agents, features, rewards = _states(3)
    for kind in ("separate", "shared"):
        baseline = ValueBaseline(kind, WIDTHS, seed=0)
        assert baseline.predict(agents, features) == [0.0] * 64
        first = baseline.fit(agents, features, rewards)
        for _ in range(40):
            last = baseline.fit(agents, features, rewards)
        assert first.keys() == set(("shared",) if kind == "shared" else (CONVERSATION, FEEDBACK))
        assert all(last[name] < 0.2 * first[name] for name in first)


def test_shared_values_are_shared_and_separate_ones_are_not():
    _, features, rewards = _states(4)
    for kind, moves in {"separate": False, "shared": True}.items():
        baseline = ValueBaseline(kind, WIDTHS, seed=0)
        baseline.fit([CONVERSATION] * 64, features, rewards)
        assert any(baseline.predict([FEEDBACK] * 64, features)) == moves
        assert any(baseline.predict([CONVERSATION] * 64, features))


def test_value_baseline_resumes_bit_for_bit():
    agents, features, rewards = _states(5)
    through, stopped = (ValueBaseline("separate", WIDTHS, seed=seed) for seed in (1, 2))
    through.fit(agents, features, rewards)
    stopped.load_state_dict(through.state_dict())
    for baseline in (through, stopped):
        baseline.fit(agents, features, rewards)
    assert stopped.predict(agents, features) == through.predict(agents, features)
