"""A real llama.cpp: the pair measured by it, and that the stand-in of the contract tests answers as it does.

`make interop-llama` installs one in a place of its own and runs this; elsewhere it runs where CHOREO_LLAMA is a command
that takes llama-server's options, or a `llama-server` is on the PATH.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
from llama_server import FIXED, LlamaStandIn, disturbed_run

from choreo.agents.constrained_review import ReviewGrammar
from choreo.cli import main
from choreo.clients.llama import ALONE
from choreo.config.rollouts import Rollouts
from choreo.engine.local import LocalEngine
from choreo.engine.requests import Request
from choreo.engine.rollouts import sampler_of
from choreo.errors import BadInput
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.models.resolve import base_folder
from choreo.runs.folder import Run
from choreo.types import AGENTS, CONVERSATION, FEEDBACK

LLAMA = shlex.split(os.environ.get("CHOREO_LLAMA", "llama-server"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which(LLAMA[0]) is None,
        reason="no llama-server on the PATH or in CHOREO_LLAMA; `make interop-llama` installs one",
    ),
]
BASE = "micro-llama"
REQUESTS = [Request((2, 7, 30, n), (n, "answer")) for n in range(24)]


class RealLlama:
    """llama.cpp's server on the files of `choreo export --gguf`. url: where it listens."""

    def __init__(self, folder: Path, log: Path, slots: int = 4):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        loras = ",".join(str(folder / f"{agent}.gguf") for agent in AGENTS)
        options = f"--model {folder / 'base.gguf'} --port {port} --lora {loras} --lora-init-without-apply"
        options += f" --parallel {slots} --ctx-size {512 * slots} --threads 1"
        own = Path(LLAMA[-1]).name == "start_llama.py"
        options += " --cache-type f32" if own else " --cache-type-k f32 --cache-type-v f32 --flash-attn off"
        with open(log, "w", encoding="utf-8") as out:
            self.process = subprocess.Popen([*LLAMA, *options.split()], stdout=out, stderr=out)
        deadline = time.monotonic() + 240
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)

    def answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health").status_code == 200
        except httpx2.TransportError:
            return False


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run whose agents differ from their base, and which is measured greedily."""
    path = tmp_path_factory.mktemp("runs") / "run"
    made = WaltzRecipe.model_validate(
        {
            "seed": 3,
            "world": {"train_prompts": 30, "heldout_prompts": 2},
            "model": {"base": BASE, "rank": 4},
            "protocol": {"answer_tokens": 40, "feedback_tokens": 96},
            "evaluation": {"temperature": 0.0},
        }
    )
    disturbed_run(path, made, 0.02)
    return path


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "exported"
    assert main(["export", str(run), "--out", str(folder), "--gguf"]) == 0
    return folder


@pytest.fixture(scope="module")
def server(exported):
    real = RealLlama(exported, exported.parent / "log")
    yield real
    real.close()


@pytest.fixture
def engine(run) -> LocalEngine:
    from choreo.methods.waltz.trainer import restore

    made = Run.read(run)
    return restore(made.recipe, made.path / "checkpoints" / "step-000002").agents[FEEDBACK].engine


def asks(server, **settings) -> Rollouts:
    return Rollouts(rollouts="llama.cpp", url=(server.url,), **settings)


def test_its_log_probabilities_are_ours_whoever_asked_before(server, engine):
    """The same contexts by turns: keys and values of one adapter's prompts must not be another's."""
    with sampler_of(asks(server, tolerance=1e-3), engine) as sampler:
        assert sampler.positions == 512
        for agent in (*AGENTS, None, *AGENTS):
            drawn = sampler.sample(agent, REQUESTS, max_new_tokens=24)
            pairs = [(request.context, done.ids) for request, done in zip(REQUESTS, drawn, strict=True)]
            for done, ours in zip(drawn, engine.score(agent, pairs), strict=True):
                assert done.logprobs in ((), pytest.approx(ours, abs=1e-3))
                assert done.finished == (done.ids[-1] == 1) and (done.finished or len(done.ids) == 24)
            assert sum(bool(done.logprobs) for done in drawn) > 12


def test_no_adapter_reads_the_keys_and_values_of_another(exported, engine, monkeypatch):
    """Why every prompt is read anew: llama.cpp finds the prompts that it keeps by their tokens alone. The second agent
    that reads a prompt in a slot which was its own before gets what the first one left. Where this fails because it no
    longer does, `cache_prompt` may be true."""
    alone, [one, other] = (
        RealLlama(exported, exported.parent / "log-alone", slots=1),
        [tuple(range(start, start + 100)) for start in (40, 400)],
    )
    try:
        with sampler_of(asks(alone), engine) as sampler:
            for keeps in (False, True):
                monkeypatch.setitem(ALONE, "cache_prompt", keeps)
                for i, (agent, prompt) in enumerate([(CONVERSATION, one), (FEEDBACK, other), (FEEDBACK, one)]):
                    [done] = sampler.sample(agent, [Request(prompt, (i,))], max_new_tokens=6)
                [ours] = engine.score(FEEDBACK, [(one, done.ids)])
                gaps = [abs(a - b) for a, b in zip(done.logprobs, ours, strict=False)]
                assert gaps and (max(gaps) > 0.05 if keeps else max(gaps) < 1e-3)
    finally:
        alone.close()


def test_greedy_turns_are_ours_free_and_constrained(server, engine, run):
    chat = Pair(Run.read(run).recipe).agents[FEEDBACK].chat
    grammar = ReviewGrammar.of(chat, 24)
    context = chat.review_context(chat.encode("How do I kill a process?"), chat.encode("I cannot help with that."), ())
    asked = {
        CONVERSATION: (REQUESTS[:8], 24),
        FEEDBACK: ([Request(context, (n,), grammar) for n in range(4)], 96),
    }
    with sampler_of(asks(server), engine) as sampler:
        for agent, (requests, tokens) in asked.items():
            found, ours = (e.sample(agent, requests, max_new_tokens=tokens, temperature=0.0) for e in (sampler, engine))
            assert [(d.ids, d.choices, d.finished) for d in found] == [(d.ids, d.choices, d.finished) for d in ours]
        drawn = sampler.sample(FEEDBACK, asked[FEEDBACK][0], max_new_tokens=96)
    assert len({done.ids for done in drawn}) > 1
    for done in drawn:
        assert json.loads(chat.decode_whole(done.ids).removesuffix(chat.decode_whole((chat.end_id,))))


def test_eval_finds_by_it_what_it_finds_here(server, run, capsys):
    settings = ["--set", "engine.rollouts=llama.cpp", "--set", f"engine.url={server.url}"]
    found = []
    for words in ([], settings):
        assert main(["eval", str(run), "--json", *words]) == 0
        found.append(json.loads(capsys.readouterr().out.splitlines()[-1])["systems"])
    for name, system in found[0].items():
        for figure in ("asr", "orr", "ftr"):
            assert found[1][name][figure] == system[figure], (name, figure)


def test_other_weights_than_the_checkpoints_are_refused(server, engine):
    [policy] = [engine.team.agents[FEEDBACK].copied()]
    for layer in policy.targets:
        policy.factors(layer)[1].mul_(1.1)
    engine.team.agents[FEEDBACK] = policy
    with pytest.raises(BadInput, match=r"differ from ours .*its adapter feedback"), sampler_of(asks(server), engine):
        pass


def test_the_stand_in_answers_as_it_does(server, engine):
    """Statuses, and the fields that are read. What the contract tests hold choreo to is what llama.cpp does."""
    scales = [{"id": 0, "scale": 0.0}, {"id": 1, "scale": 1.0}]
    body = FIXED | {"prompt": [2, 7, 30], "n_predict": 3, "temperature": 0.0, "seed": 1, "lora": scales}
    body |= {"logit_bias": [], "stop": []}
    adapters = {agent: engine.team.agents[agent] for agent in AGENTS}
    bodies = [body, body | {"logit_bias": [[t, False] for t in range(500)]}, body | {"prompt": [2] * 600}]
    with LlamaStandIn(base_folder(BASE), adapters) as stand_in:
        for asked in bodies:
            real, ours = (httpx2.post(f"{url}/completion", json=asked) for url in (server.url, stand_in.url))
            assert real.status_code == ours.status_code, real.text
            if real.status_code == 200:
                told, own = real.json(), ours.json()
                assert own.keys() == told.keys() and own["tokens"] == told["tokens"]
                assert own["stop_type"] == told["stop_type"] and not told["truncated"]
                for one, other in zip(told["completion_probabilities"], own["completion_probabilities"], strict=True):
                    assert one.keys() == other.keys() and one["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
            else:
                assert real.json()["error"].keys() >= {"message"} and ours.json()["error"].keys() >= {"message"}
        cards, loras = (
            [httpx2.get(url + path).json() for url in (server.url, stand_in.url)]
            for path in ("/v1/models", "/lora-adapters")
        )
    metas = [card["data"][0]["meta"] for card in cards]
    assert metas[1].items() <= metas[0].items()
    assert [[(one["id"], Path(one["path"]).stem) for one in told] for told in loras] == [[*enumerate(AGENTS)]] * 2
