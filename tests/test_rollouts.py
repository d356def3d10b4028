"""Rollouts from servers that speak vLLM's protocol: weights in sync, names, versions, replicas, faults, a training."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_engine_gradients import make_samples, make_team
from vllm_server import VllmStandIn

from choreo.algorithms.importance import mismatch, truncated
from choreo.config.rollouts import Rollouts
from choreo.engine.learner import Learner
from choreo.engine.local import LocalEngine
from choreo.engine.losses import Actions, PolicyLoss, sft_loss
from choreo.engine.requests import Request
from choreo.engine.rollouts import sampler_of
from choreo.engine.sync import compared
from choreo.engine.vllm import VllmEngine
from choreo.errors import BadInput, Unavailable
from choreo.methods.waltz.alarms import alarms
from choreo.models.resolve import base_folder
from choreo.types import AGENTS, FEEDBACK

REQUESTS = [Request((2, 7, 30, n), (n, "answer")) for n in range(24)]


def asks(*servers: VllmStandIn, **settings) -> Rollouts:
    return Rollouts(rollouts="vllm", url=tuple(server.url for server in servers), **settings)


def own(folder, **settings) -> LocalEngine:
    return LocalEngine(make_team(folder, 0.1, **settings), pad_id=0, end_id=1)


def learn(engine: LocalEngine, agent: str, lr: float = 1e-2) -> None:
    samples = [replace(sample, advantages=()) for sample in make_samples(3, agent=agent)]
    Learner(engine.team, agent, lr=lr).update(samples, sft_loss)


# ---- what is drawn ------------------------------------------------------------------------------


@pytest.mark.slow
def test_ids_come_with_the_log_probabilities_of_the_agent_that_drew_them(tiny_folder):
    engine = own(tiny_folder)
    written = [token for done in engine.sample(None, REQUESTS, max_new_tokens=9) for token in done.ids]
    engine.end_id = end = max({*written}, key=written.count)  # so that some turns end, and others do not
    with VllmStandIn(tiny_folder) as server, sampler_of(asks(server), engine) as sampler:
        assert not sampler.exact and engine.exact and sampler.positions == 512
        drawn = {agent: sampler.sample(agent, REQUESTS, max_new_tokens=9) for agent in (*AGENTS, None)}
    for agent, completions in drawn.items():
        pairs = [(request.context, done.ids) for request, done in zip(REQUESTS, completions, strict=True)]
        for done, ours in zip(completions, engine.score(agent, pairs), strict=True):
            assert done.logprobs == pytest.approx(ours, abs=1e-4)
            assert done.finished == (done.ids[-1] == end) and (done.finished or len(done.ids) == 9)
            assert end not in done.ids[:-1]
    assert len({str(completions) for completions in drawn.values()}) == 3
    assert {done.finished for completions in drawn.values() for done in completions} == {True, False}


def test_with_the_local_engine_nothing_is_new(tiny_folder):
    engine = own(tiny_folder)
    with sampler_of(Rollouts(), engine) as sampler:
        assert sampler is engine


def test_a_temperature_of_the_policies_takes_a_server_that_says_what_it_drew_by(tiny_folder):
    engine = own(tiny_folder, temperature=0.5)
    with VllmStandIn(tiny_folder, logprobs_mode="processed_logprobs") as server:
        with sampler_of(asks(server), engine) as sampler:
            drawn = sampler.sample(FEEDBACK, REQUESTS, max_new_tokens=9)
        pairs = [(request.context, done.ids) for request, done in zip(REQUESTS, drawn, strict=True)]
        ours = engine.score(FEEDBACK, pairs)
        assert [done.logprobs for done in drawn] == [pytest.approx(one, abs=1e-4) for one in ours]
    with (
        VllmStandIn(tiny_folder) as server,
        pytest.raises(BadInput, match="lacks --logprobs-mode processed_logprobs"),
        sampler_of(asks(server), engine),
    ):
        pass


# ---- versions and names -------------------------------------------------------------------------


@pytest.mark.slow
def test_a_version_is_on_every_server_before_it_is_used_and_is_unloaded_after_its_last_use(tiny_folder, tmp_path):
    engine = own(tiny_folder)
    with VllmStandIn(tiny_folder) as one, VllmStandIn(tiny_folder) as two:
        with sampler_of(asks(one, two, folder=str(tmp_path)), engine) as sampler:
            for _ in range(3):
                for agent in AGENTS:
                    drawn = sampler.sample(agent, REQUESTS, max_new_tokens=9)
                    assert {done.version for done in drawn} == {engine.team.version[agent]}
                learn(engine, FEEDBACK)
            assert len(one.loaded) == 2 and one.loaded.keys() == two.loaded.keys()
            assert {path.name for path in tmp_path.iterdir()} == one.loaded.keys()
        for server in (one, two):
            names = server.named("load")
            # The disturbed one, the feedback agent's three versions, and the conversation agent's only one.
            assert len({*names}) == len(names) == 5 and sorted(server.named("unload")) == sorted(names)
            used = server.events
            for name in names:
                places = [i for i, event in enumerate(used) if event[1] == name]
                assert [used[i][0] for i in (places[0], places[-1])] == ["load", "unload"]
            half = [name for name in server.named("complete") if name in names[1:]]
            assert len(half) == 2 * 3 * len(REQUESTS) / 2
        assert one.named("load") == two.named("load")
    assert not any(tmp_path.iterdir())


def test_an_adapter_in_use_is_unloaded_only_when_its_last_user_is_done(tiny_folder):
    engine = own(tiny_folder)
    with VllmStandIn(tiny_folder) as server, sampler_of(asks(server), engine) as sampler:
        assert isinstance(sampler, VllmEngine)
        sampler.sample(FEEDBACK, REQUESTS, max_new_tokens=9)
        first = server.named("load")[-1]
        with sampler._adapters.using(first), sampler._adapters.using(first):
            learn(engine, FEEDBACK)
            sampler.sample(FEEDBACK, REQUESTS, max_new_tokens=9)
            second = server.named("load")[-1]
            assert {first, second} == {*server.loaded} and first != second
        assert {*server.loaded} == {second}


# ---- servers that must not be learnt from -------------------------------------------------------


@pytest.mark.parametrize(
    "ails, says",
    [
        ("no lora", "cannot load adapters at run time; start it with --enable-lora, and VLLM_ALLOW_RUNTIME"),
        ("deaf", "its log-probabilities differ from ours by .* nats a token"),
        ("half", "its log-probabilities differ from ours by .* nats a token"),
        ("stops", "no completion in token ids: a turn of 2 tokens that ends with token"),
        ("text", "no completion in token ids"),
    ],
)
def test_such_a_server_is_refused_before_anything_is_sampled(ails, says, tiny_folder):
    with (
        VllmStandIn(tiny_folder) as well,
        VllmStandIn(tiny_folder, ails) as ill,
        pytest.raises(BadInput, match=f"{ill.url}: {says}") as refused,
        sampler_of(asks(well, ill), own(tiny_folder)),
    ):
        pass
    assert "\n" not in str(refused.value) and not well.loaded


def test_a_deaf_server_is_caught_within_any_tolerance(tiny_folder):
    """Both log-probabilities are within so wide a tolerance; that nothing follows the disturbed adapter is not."""
    with (
        VllmStandIn(tiny_folder, "deaf") as ill,
        pytest.raises(BadInput, match=r"changes its log-probabilities by -?[0-9]% of what it should"),
        sampler_of(asks(ill, tolerance=50.0), own(tiny_folder)),
    ):
        pass


@pytest.mark.parametrize("base", ["weights", "vocabulary"])
def test_another_base_is_refused(base, tiny_folder):
    """Of other weights; of more tokens."""
    server = VllmStandIn(base_folder("micro-llama") if base == "vocabulary" else tiny_folder)
    if base == "weights":
        torch.manual_seed(8)
        for value in server.team(1.0).decoder.parameters():
            value.data += 0.1 * torch.randn_like(value)
    says = "differ from ours by" if base == "weights" else "drew token [0-9]+, and the base has 330"
    with server, pytest.raises(BadInput, match=says), sampler_of(asks(server), own(tiny_folder)):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("sick", [0, 1])
def test_weights_of_the_version_before_are_caught_on_any_server(sick, tiny_folder):
    """One small update, far below the tolerance: half a percent of a nat a token."""
    engine = own(tiny_folder)
    servers = [VllmStandIn(tiny_folder, "stale" if i == sick else "") for i in range(2)]
    with servers[0], servers[1], sampler_of(asks(*servers, tolerance=0.05), engine) as sampler:
        drawn = sampler.sample(FEEDBACK, REQUESTS, max_new_tokens=9)
        pairs = [(request.context, done.ids) for request, done in zip(REQUESTS, drawn, strict=True)]
        before = np.concatenate(engine.score(FEEDBACK, pairs))
        learn(engine, FEEDBACK, lr=1e-4)
        change = np.abs(np.concatenate(engine.score(FEEDBACK, pairs)) - before).mean()
        assert 1e-4 < change < 0.01, change
        with pytest.raises(BadInput, match=f"{servers[sick].url}: samples of choreo-feedback-1-.* are not by the weig"):
            sampler.sample(FEEDBACK, REQUESTS, max_new_tokens=9)


def test_the_share_of_a_change_is_told_through_noise_and_is_left_open_where_it_drowns():
    seed = 4
    print("seed", seed)
    rng = np.random.default_rng(seed)
    before, change = rng.normal(-2, 1, 200), rng.normal(0, 0.05, 200)
    for noise, told in ((0.05, True), (2.0, False)):
        now, error = before + change, rng.normal(0, noise, 200)
        synced, old = compared(now + error, now, before), compared(before + error, now, before)
        assert (synced.told, synced.stale) == (told, False)
        assert (old.told, old.stale) == (False, told)
    same = compared(before, before, before)
    assert not (same.told or same.stale) and same.gap == 0


def test_a_server_that_is_not_there_is_said_in_a_line(tiny_folder):
    with VllmStandIn(tiny_folder) as server:
        pass
    with (
        pytest.raises(Unavailable, match=f"{server.url}: does not answer: "),
        sampler_of(asks(server), own(tiny_folder)),
    ):
        pass


# ---- importance weights -------------------------------------------------------------------------


def test_weights_are_truncated_ratios_and_figures_are_those_before_truncation():
    [sample, *_] = [s for s in make_samples(5) if len(s.ids) == 4]
    ratios = [1.0, 0.5, 1.5, 9.0]
    sample = replace(
        sample,
        sampler=tuple(np.asarray(sample.logprobs) - np.log(ratios)),
        advantages=(1.0, -2.0, 3.0, -4.0),
    )
    [weighted] = truncated([sample], 2.0)
    assert weighted.advantages == pytest.approx((1.0, -1.0, 4.5, -8.0))
    assert weighted.logprobs is sample.logprobs
    assert mismatch([sample], 2.0) == {
        "sampler_ratio/conversation": pytest.approx(3.0),
        "sampler_ratio_max/conversation": pytest.approx(9.0),
        "truncated/conversation": 0.25,
    }
    impossible = replace(sample, sampler=(-9999.0,) * 4)
    assert truncated([impossible], 2.0)[0].advantages == pytest.approx((2.0, -4.0, 6.0, -8.0))
    assert np.isfinite(mismatch([impossible], 2.0)["sampler_ratio/conversation"])


def test_a_weight_in_the_advantage_is_a_weight_on_the_loss():
    """w · min(ρA, clip(ρ)A), each in float64 by hand."""
    seed = 6
    print("seed", seed)
    rng = random.Random(seed)
    new, old, sampler, advantage = (torch.tensor([rng.gauss(0, 0.5) for _ in range(64)]) for _ in range(4))
    weight = (old - sampler).exp().clamp(max=1.3)
    actions = Actions(new, torch.zeros(64, dtype=torch.int64), 1, old=old, advantages=weight * advantage)
    ratio = (new.double() - old.double()).exp()
    kept = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    assert float(PolicyLoss(0.2)(actions).total) == pytest.approx(-float((weight * kept).sum()), rel=1e-5)
    assert (weight == 1.3).any()


def test_an_alarm_says_when_the_sampler_is_another_policy():
    assert alarms({"sampler_ratio/feedback": 1.01, "truncated/feedback": 0.001}) == []
    assert "the feedback agent is sampled from another policy" in alarms({"sampler_ratio/feedback": 1.2})[0]
    assert "of the conversation agent's importance weights" in alarms({"truncated/conversation": 0.1})[0]
