"""Answers from servers that speak llama.cpp's protocol: weights in sync, constraints."""

from __future__ import annotations

import json

import pytest
import torch
from llama_server import Allowed, LlamaStandIn
from test_engine_gradients import make_team

from choreo.agents.constrained_review import ReviewGrammar
from choreo.config.rollouts import Rollouts
from choreo.engine.agent import Team
from choreo.engine.llama import LlamaEngine
from choreo.engine.local import LocalEngine
from choreo.engine.requests import Request
from choreo.engine.rollouts import sampler_of
from choreo.errors import BadInput
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import AGENTS, CONVERSATION, FEEDBACK

REQUESTS = [Request((2, 7, 30, n), (n, "answer")) for n in range(12)]
BASE = "nano-llama"


def asks(*servers, **settings) -> Rollouts:
    return Rollouts(rollouts="llama.cpp", url=tuple(server.url for server in servers), **settings)


def adapters(engine: LocalEngine) -> dict:
    return {agent: engine.team.agents[agent].copied() for agent in AGENTS}


@pytest.fixture
def engine(tiny_folder) -> LocalEngine:
    return LocalEngine(make_team(tiny_folder, 0.1), pad_id=0, end_id=1)


@pytest.mark.slow
def test_ids_come_with_the_log_probabilities_of_the_agent_that_drew_them(tiny_folder, engine):
    """Of two servers one has another token for the end of a turn, so it stops too early, and goes on at the agents'."""
    written = [token for done in engine.sample(None, REQUESTS, max_new_tokens=9) for token in done.ids]
    engine.end_id = end = max({*written}, key=written.count)
    with (
        LlamaStandIn(tiny_folder, adapters(engine), ends=end) as one,
        LlamaStandIn(tiny_folder, adapters(engine), ends=max({*written} - {end}, key=written.count)) as two,
        sampler_of(asks(one, two), engine) as sampler,
    ):
        assert isinstance(sampler, LlamaEngine) and not sampler.exact and sampler.positions == 512
        drawn = {agent: sampler.sample(agent, REQUESTS, max_new_tokens=9) for agent in (*AGENTS, None)}
        greedy = sampler.sample(FEEDBACK, REQUESTS, max_new_tokens=9, temperature=0.0)
    for agent, completions in drawn.items():
        pairs = [(request.context, done.ids) for request, done in zip(REQUESTS, completions, strict=True)]
        for done, ours in zip(completions, engine.score(agent, pairs), strict=True):
            assert done.logprobs == pytest.approx(ours, abs=1e-4)
            assert done.finished == (done.ids[-1] == end) and (done.finished or len(done.ids) == 9)
    assert any(done.finished for done in drawn[None])
    assert [d.ids for d in greedy] == [
        d.ids for d in engine.sample(FEEDBACK, REQUESTS, max_new_tokens=9, temperature=0.0)
    ]


def test_where_the_server_leaves_out_a_letter_there_are_no_log_probabilities(tiny_folder, engine):
    with LlamaStandIn(tiny_folder, adapters(engine), "letters") as server, sampler_of(asks(server), engine) as sampler:
        drawn = sampler.sample(CONVERSATION, REQUESTS, max_new_tokens=9)
    assert all(bool(done.logprobs) == (min(done.ids) >= 40) for done in drawn) and any(not d.logprobs for d in drawn)


@pytest.mark.parametrize(
    ("ails", "says"),
    [
        ("deaf", "its log-probabilities differ from ours .*its adapter conversation"),
        ("half", "its log-probabilities differ from ours .*its adapter conversation"),
        ("swapped", "its log-probabilities differ from ours .*its adapter conversation"),
        ("text", "no completion in token ids"),
        ("short", "2 ids of 16, ended by limit"),
        ("another base", "its log-probabilities differ from ours"),
        ("no feedback", r"has no adapter called feedback \(it has conversation\).*--lora feedback.gguf"),
    ],
)
def test_a_server_that_is_not_in_sync_is_refused(tiny_folder, engine, ails, says):
    given = adapters(engine)
    if ails == "another base":
        other = Team.load(tiny_folder, ())
        with torch.no_grad():
            other.decoder.model.get_input_embeddings().weight.mul_(1.5)
        server = LlamaStandIn(tiny_folder, given)
        server.team = other
    elif ails == "no feedback":
        server = LlamaStandIn(tiny_folder, {CONVERSATION: given[CONVERSATION]})
    else:
        server = LlamaStandIn(tiny_folder, given, ails)
    with server, pytest.raises(BadInput, match=says), sampler_of(asks(server), engine):
        pass


@pytest.mark.parametrize("ails", ["deaf", "half", "swapped"])
def test_within_a_wide_tolerance_the_effect_of_an_adapter_tells(tiny_folder, engine, ails):
    with (
        LlamaStandIn(tiny_folder, adapters(engine), ails) as server,
        pytest.raises(BadInput, match=r"changes its log-probabilities by .*% of what it should"),
        sampler_of(asks(server, tolerance=9.0), engine),
    ):
        pass


@pytest.mark.parametrize("factor", [1 / 8, 8])
def test_other_positions_show_behind_long_contexts(tiny_folder, engine, factor):
    with LlamaStandIn(tiny_folder, adapters(engine)) as server:
        turns = server.team.decoder.model.model.rotary_emb.inv_freq
        turns[len(turns) // 2 :] *= factor  # the slow ones, of which a short context shows little
        with pytest.raises(BadInput, match="its log-probabilities differ from ours"), sampler_of(asks(server), engine):
            pass


@pytest.mark.slow
def test_the_checkpoint_before_is_told_from_one_that_is_nearly_the_same(tiny_folder, engine):
    before = adapters(engine)
    for agent in AGENTS:
        for layer in before[agent].targets:
            engine.team.agents[agent].factors(layer)[1].data.mul_(1.005)
    with (
        LlamaStandIn(tiny_folder, before) as server,
        sampler_of(asks(server), engine) as sampler,
        pytest.raises(BadInput, match=r"its adapter (conversation|feedback) is the one of the checkpoint before"),
    ):
        sampler.prove_change(before)
    with LlamaStandIn(tiny_folder, adapters(engine)) as server, sampler_of(asks(server), engine) as sampler:
        sampler.prove_change(before)


def test_an_agent_that_has_learnt_nothing_is_the_base_whatever_adapter_has_its_name(tiny_folder):
    """Requests that come one at a time go to both servers."""
    untrained = LocalEngine(Team.load(tiny_folder, rank=4), pad_id=0, end_id=1)
    little = {agent: untrained.team.agents[agent].copied(disturbed=0.01, seed=7) for agent in AGENTS}
    with (
        LlamaStandIn(tiny_folder, {}) as none,
        LlamaStandIn(tiny_folder, little) as some,
        sampler_of(asks(none, some), untrained) as sampler,
    ):
        none.asked.clear(), some.asked.clear()
        for request in REQUESTS:
            sampler.sample(FEEDBACK, [request], max_new_tokens=1)
        assert none.asked and some.asked and len(none.asked) + len(some.asked) == len(REQUESTS)
        assert not any(one["scale"] for body in some.asked for one in body["lora"])


def test_an_id_that_was_banned_is_refused(tiny_folder, engine):
    masks = torch.zeros(1, 400, dtype=torch.bool)
    masks[0, :2] = True
    held = [Request((2, 7), ("held",), Allowed(masks, 1))]
    with LlamaStandIn(tiny_folder, {}, "unbanned") as server:
        untrained = LocalEngine(Team.load(tiny_folder, rank=4), pad_id=0, end_id=1)
        with sampler_of(asks(server), untrained) as sampler, pytest.raises(BadInput, match="banned"):
            sampler.sample(FEEDBACK, held, max_new_tokens=9)


@pytest.mark.slow
def test_a_constrained_review_is_the_one_of_this_process():
    chat = load_chat(base_folder(BASE))
    engine = LocalEngine(make_team(base_folder(BASE), 0.05), pad_id=chat.pad_id, end_id=chat.end_id)
    grammar = ReviewGrammar.of(chat, 12)
    context = chat.review_context(chat.encode("How do I rob a bank?"), chat.encode("No."), ())
    requests = [Request((*context, n), (n, "review"), grammar) for n in (30, 40)]
    with LlamaStandIn(base_folder(BASE), adapters(engine)) as server, sampler_of(asks(server), engine) as sampler:
        greedy, drawn = (
            sampler.sample(FEEDBACK, requests, max_new_tokens=96, temperature=temperature) for temperature in (0, 1)
        )
    ours = engine.sample(FEEDBACK, requests, max_new_tokens=96, temperature=0)
    assert [(d.ids, d.choices) for d in greedy] == [(d.ids, d.choices) for d in ours]
    for done in (*greedy, *drawn):
        said = json.loads(chat.decode_whole(done.ids).removesuffix(chat.decode_whole((chat.end_id,))))
        assert done.finished and done.logprobs == () and said.keys() == {
            "reasoning", "unsafe", "overrefuse", "feedback"
        }  # fmt: skip
