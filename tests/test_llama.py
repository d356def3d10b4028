"""Answers from servers that speak llama.cpp's protocol: weights in sync, constraints, eval, serve, GGUF files."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import torch
from llama_server import Allowed, LlamaStandIn
from test_engine_gradients import make_team

from choreo.agents.constrained_review import ReviewGrammar
from choreo.cli import main
from choreo.config.rollouts import Rollouts
from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.llama import LlamaEngine
from choreo.engine.local import LocalEngine
from choreo.engine.policies import LowRank
from choreo.engine.requests import Request
from choreo.engine.rollouts import sampler_of
from choreo.errors import BadInput
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.runs.folder import Run
from choreo.server import asking
from choreo.server.pair import Resident
from choreo.server.session import Down, Outcome, SessionOptions, play_session
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, Episode, Prompt

pytestmark = pytest.mark.slow

REQUESTS = [Request((2, 7, 30, n), (n, "answer")) for n in range(12)]
BASE = "nano-llama"
LLAMA = ["--set", "engine.rollouts=llama.cpp"]


def asks(*servers, **settings) -> Rollouts:
    return Rollouts(rollouts="llama.cpp", url=tuple(server.url for server in servers), **settings)


def adapters(engine: LocalEngine) -> dict:
    return {agent: engine.team.agents[agent].copied() for agent in AGENTS}


@pytest.fixture
def engine(tiny_folder) -> LocalEngine:
    return LocalEngine(make_team(tiny_folder, 0.1), pad_id=0, end_id=1)


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


# ---- eval, serve, export ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, LocalEngine]:
    """A run whose checkpoint has agents that differ from their base, greedy where it is measured."""
    path = tmp_path_factory.mktemp("runs") / "run"
    made = WaltzRecipe.model_validate(
        {
            "seed": 3,
            "world": {"train_prompts": 30, "heldout_prompts": 1},
            "model": {"base": BASE, "rank": 4},
            "protocol": {"answer_tokens": 16, "feedback_tokens": 64},
            "evaluation": {"temperature": 0.0},
            "learning": {"steps": 2, "prompts": 4, "samples": 2},
        }
    )
    with Run.create(path, made):
        pair = Pair(made)
        team = pair.team(FEEDBACK)
        for agent in AGENTS:
            team.agents[agent] = team.agents[agent].copied(disturbed=0.05, seed=len(agent))
            team.version[agent] = 2
        state = {"base": pair.base, "frames": pair.frames(), "step": 2}
        state["agents"] = {agent: {"agent": team.state_dict(agent)} for agent in AGENTS}
        checkpoint.save(path / "checkpoints" / "step-000002", state)
    return path, pair.agents[FEEDBACK].engine


def test_eval_measures_what_the_server_answers(trained, capsys):
    path, engine = trained
    with LlamaStandIn(base_folder(BASE), adapters(engine)) as server:
        settings = ["--set", "engine.rollouts=llama.cpp", "--set", f"engine.url={server.url}"]
        found = []
        for words in ([], settings):
            assert main(["eval", str(path), "--json", *words]) == 0
            found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        assert len(server.asked) > 100
    here, there = found
    assert there["engine"] == {"rollouts": "llama.cpp", "url": [server.url]}
    assert here["systems"].keys() == there["systems"].keys()
    for name, system in here["systems"].items():  # both are greedy, so the games are the same
        assert {k: there["systems"][name][k] for k in ("asr", "orr", "ftr")} == {
            k: system[k] for k in ("asr", "orr", "ftr")
        }


def played(resident: Resident, tokens: int = 16) -> Outcome:
    options = SessionOptions(tokens, 0.0, (), 0, time.monotonic() + 200)
    game = Episode(Prompt("", "How do I rob a bank?", "general", "serve"), 0, ())
    return asyncio.run(play_session(game, resident.agents, options, mode="always", rounds=1))


def test_serve_asks_the_server_and_answers_by_no_weights_that_are_not_proven(trained):
    path, engine = trained
    with LlamaStandIn(base_folder(BASE), adapters(engine)) as server, closing(Resident(path, asks(server))) as resident:
        outcome = played(resident)
        true, server.policies = server.policies, [*map(wrong, server.policies)]
        with pytest.raises(BadInput, match=r"its adapter conversation.*; nothing is answered"):
            resident.swap()
        asked = len(server.asked)
        with pytest.raises(Down):
            played(resident)
        assert not resident.worker.alive and len(server.asked) == asked
        server.policies = true
        resident.swap()
        assert resident.worker.alive
    assert outcome.failed is None and len(outcome.game.answers) == 2
    with closing(Resident(path)) as local:
        same = played(local)
    for one, other in ((same.game.answers, outcome.game.answers), (same.game.reviews, outcome.game.reviews)):
        assert [turn.ids for turn in one] == [turn.ids for turn in other]


def test_a_checkpoint_that_the_server_does_not_have_leaves_the_one_before(trained, tmp_path):
    path, engine = trained
    run = tmp_path / "run"
    shutil.copytree(path, run)
    with LlamaStandIn(base_folder(BASE), adapters(engine)) as server, closing(Resident(run, asks(server))) as resident:
        before = resident.fingerprint
        state = checkpoint.load(run / "checkpoints" / "step-000002")
        state["step"] = 4
        for name, value in state["agents"][CONVERSATION]["agent"]["weights"].items():
            if name.endswith("lora_B"):
                value.mul_(1.3)
        checkpoint.save(run / "checkpoints" / "step-000004", state)
        with pytest.raises(BadInput, match="its adapter conversation"):
            resident.swap()
        assert resident.worker.alive and resident.fingerprint == before
        server.policies[0] = wrong(server.policies[0])
        assert resident.swap() != before


@pytest.mark.parametrize("local", [True, False])
def test_a_pair_is_gone_when_another_has_taken_its_place(trained, local):
    path, engine = trained
    with (
        LlamaStandIn(base_folder(BASE), adapters(engine)) as server,
        closing(Resident(path, None if local else asks(server))) as resident,
    ):
        loaded = []
        for _ in range(3):
            resident.swap()
            played(resident, 1)  # the worker of this process takes a pair up with the next row
            gc.collect()
            loaded.append(sum(isinstance(one, Team) for one in gc.get_objects()))
    assert len({*loaded}) == 1


def test_a_server_that_stalls_holds_up_neither_turns_nor_the_end(trained, monkeypatch):
    path, engine = trained
    monkeypatch.setattr(asking, "AGAIN", 0.05)
    with LlamaStandIn(base_folder(BASE), adapters(engine)) as server:
        resident = Resident(path, asks(server), deadline=0.5)
        with server.lock, pytest.raises(Down):
            played(resident)
        assert not resident.worker.alive
        until = time.monotonic() + 30
        while not resident.worker.alive and time.monotonic() < until:
            time.sleep(0.02)
        assert resident.worker.alive
        resident.close()
        resident = Resident(path, asks(server), deadline=300)
        with server.lock, ThreadPoolExecutor() as pool:
            playing = pool.submit(played, resident)
            while not resident.worker.counts()[0]:
                time.sleep(0.02)
            time.sleep(0.1)  # it is being asked
            began = time.monotonic()
            resident.close()
            assert isinstance(playing.exception(5), Down) and time.monotonic() - began < 5


def wrong(policy: LowRank) -> LowRank:
    """The adapter at 1.3 times its scale."""
    other = policy.copied()
    for layer in other.targets:
        other.factors(layer)[1].mul_(1.3)
    return other


@pytest.mark.parametrize("base", ["nano-llama", "nano-qwen"])
def test_a_gguf_base_is_the_base_as_transformers_reads_it(base, tmp_path, monkeypatch):
    pytest.importorskip("gguf", reason="needs choreo-rl[smollm2]")
    from choreo.models.gguf_writing import write_base_gguf

    monkeypatch.setenv("CHOREO_CACHE", str(tmp_path / "cache"))
    chat, team = load_chat(base_folder(base)), Team.load(base_folder(base), ())
    write_base_gguf(team.decoder.model, chat.tokenizer, tmp_path / "base.gguf", chat.end_id)
    again = Team.load(base_folder(str(tmp_path / "base.gguf")), ())
    for name, value in team.decoder.model.state_dict().items():
        assert torch.equal(again.decoder.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["eval", "RUN", "--set", "engine.rollouts=vllm", "--set", "engine.url=http://localhost:1"], "samples what"),
        (["eval", "RUN", "--set", "engine.rollouts=llama.cpp"], 'rollouts = "llama.cpp" needs the url of a server'),
        (["eval", "RUN", "--set", "learning.steps=3"], "--set learning.steps=3: a run has its own settings"),
        (["eval", "RUN", *LLAMA, "--set", "engine.url=http://localhost:abc"],
         "--set engine.url=http://localhost:abc: engine.url: must look like"),
        (["eval", "RUN", "--set", "engine.url=http://[::1", *LLAMA],
         "--set engine.url=http://[::1: engine.url: must look like"),
        (["eval", "RUN", *LLAMA, "--set", "engine.folder=x", "--set", "engine.url=http://localhost:1"],
         "--set engine.folder=x: engine.folder: has no effect with rollouts = 'llama.cpp'"),
        (["serve", "RUN", "--set", "engine.tolerance=1"], "engine.tolerance: has no effect with rollouts = 'local'"),
        (["train", "waltz", "--set", "engine.rollouts=llama.cpp", "--set", "engine.url=http://localhost:1"],
         'rollouts = "llama.cpp" cannot be learnt from'),
        (["export", "RUN", "--out", "OUT", "--gguf", "--agent", "feedback"], "export: --gguf writes a pair"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_in_a_line(words, says, trained, capsys, tmp_path):
    path, _ = trained
    named = [{"RUN": str(path), "OUT": str(tmp_path / "out")}.get(word, word) for word in words]
    assert main(named) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert says in line
