"""A run that is measured and served by a server of llama.cpp's protocol, and written for it."""

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
from llama_server import LlamaStandIn, disturbed_run
from test_llama import BASE, adapters, asks
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split, Whitespace

from choreo.cli import main
from choreo.engine import checkpoint, served
from choreo.engine.agent import Team
from choreo.engine.local import LocalEngine
from choreo.engine.policies import LowRank
from choreo.errors import BadInput
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.models.gguf_writing import splitting
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.server import asking
from choreo.server.pair import Resident
from choreo.server.session import Down, Outcome, SessionOptions, play_session
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, Episode, Prompt


@pytest.fixture(autouse=True)
def few_probes(monkeypatch):
    """The stand-in is slow, and rounds as this process does."""
    monkeypatch.setattr(served, "PROBES", 4)


LLAMA = ["--set", "engine.rollouts=llama.cpp"]


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
    pair = disturbed_run(path, made, 0.05)
    return path, pair.agents[FEEDBACK].engine


@pytest.mark.slow
def test_eval_measures_what_the_server_answers(trained, capsys):
    path, engine = trained
    with LlamaStandIn(base_folder(BASE), adapters(engine)) as server:
        settings = ["--set", "engine.rollouts=llama.cpp", "--set", f"engine.url={server.url}"]
        found = []
        for words in ([], settings):
            assert main(["eval", str(path), "--json", *words]) == 0
            found.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
        assert len(server.asked) > 50  # 12 are of the proof
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("local", [True, False])
def test_a_pair_is_gone_when_another_has_taken_its_place(trained, local):
    path, engine = trained
    with (
        LlamaStandIn(base_folder(BASE), adapters(engine)) as server,
        closing(Resident(path, None if local else asks(server))) as resident,
    ):
        loaded = []
        for _ in range(2):
            resident.swap()
            played(resident, 1)  # the worker of this process takes a pair up with the next row
            gc.collect()
            loaded.append(sum(isinstance(one, Team) for one in gc.get_objects()))
    assert loaded[0] == loaded[-1]


@pytest.mark.slow
def test_a_server_that_stalls_holds_up_neither_turns_nor_the_end(trained, monkeypatch):
    path, engine = trained
    monkeypatch.setattr(asking, "AGAIN", 0.05)
    with LlamaStandIn(base_folder(BASE), adapters(engine)) as server:
        resident = Resident(path, asks(server), deadline=0.5)
        with server.lock, pytest.raises(Down):
            played(resident)
        assert not resident.worker.alive
        until = time.monotonic() + 100
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


def test_an_exported_adapter_is_the_agents(trained, tmp_path, capsys):
    gguf = pytest.importorskip("gguf", reason="needs choreo-rl[smollm2]")
    path, engine = trained
    assert main(["export", str(path), "--out", str(tmp_path / "out"), "--gguf"]) == 0
    assert {file.name for file in (tmp_path / "out").glob("*.gguf")} == {f"{name}.gguf" for name in ("base", *AGENTS)}
    config, base = engine.team.decoder.model.config, engine.team.decoder.model
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for agent in AGENTS:
        reader = gguf.GGUFReader(tmp_path / "out" / f"{agent}.gguf")
        held = {tensor.name: torch.tensor(tensor.data.copy()) for tensor in reader.tensors}
        alpha = reader.fields["adapter.lora.alpha"].contents()
        policy = engine.team.agents[agent]
        whole = policy.merged()
        for layer in policy.targets:
            name = names.get_name(layer.name) + ".weight"
            down, up = held.pop(f"{name}.lora_a"), held.pop(f"{name}.lora_b")
            if layer.name.endswith(("q_proj", "k_proj")):  # neighbours to halves of a head
                heads = config.num_attention_heads if layer.name.endswith("q_proj") else config.num_key_value_heads
                up = up.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
            ours = whole[layer.weight] - base.get_parameter(layer.weight)
            torch.testing.assert_close(alpha / len(down) * up @ down, ours, rtol=1e-4, atol=1e-6)
        assert not held


def test_a_way_to_split_texts_has_the_name_under_which_llama_cpp_splits_so():
    words = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    last, alone = ByteLevel(add_prefix_space=False), ByteLevel(add_prefix_space=False, use_regex=False)
    by_words = {
        digits: Sequence([Split(Regex(words.replace("DIGITS", digits)), "isolated"), alone])
        for digits in (r"\p{N}", r"\p{N}{1,3}", r"\p{N}{1,2}")
    }
    known = {
        "gpt-2": last,
        "smollm": Sequence([Digits(individual_digits=True), last]),
        "qwen2": by_words[r"\p{N}"],
        "llama-bpe": by_words[r"\p{N}{1,3}"],
    }
    tokenizer = Tokenizer(BPE())
    for name, tokenizer.pre_tokenizer in known.items():
        assert splitting(json.loads(tokenizer.to_str())["pre_tokenizer"]) == name
    for tokenizer.pre_tokenizer in (by_words[r"\p{N}{1,2}"], ByteLevel(), Sequence([Digits(), last]), Whitespace()):
        with pytest.raises(BadInput, match="how the base's tokenizer splits texts"):
            splitting(json.loads(tokenizer.to_str())["pre_tokenizer"])


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
