"""Tinker's API as a backend: its real client against a server of ours on this machine, which computes with choreo's
engine. The updates are our learner's, a run goes on when the server has died, and nothing else is asked."""

from __future__ import annotations

import dataclasses
import gc
import sys
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from test_engine_gradients import make_samples
from test_trainer import lines

from choreo import config
from choreo.cli import main
from choreo.config.parts import BACKENDS
from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.learner import Learner
from choreo.engine.local import LocalEngine
from choreo.engine.losses import PolicyLoss
from choreo.engine.remote import RemoteEngine, RemoteLearner
from choreo.engine.requests import Request
from choreo.errors import BadInput, Unavailable
from choreo.files.json_file import read_object
from choreo.methods.waltz.alarms import alarms
from choreo.methods.waltz.remote import RemotePair
from choreo.models.resolve import base_folder
from choreo.runs.checkpoints import checkpoints
from choreo.types import AGENTS, CONVERSATION, FEEDBACK

pytest.importorskip("tinker", reason="needs choreo-rl[tinker]")

from tinker.lib.retryable_exception import RetryableException
from tinker_server import KEY, MODEL, TinkerStandIn

from choreo.clients import tinker as client

BASE = "micro-llama"
SMALL = {
    "model.base": BASE,
    "model.rank": 4,
    "learning.beta": 0,
    "learning.prompts": 4,
    "world.train_prompts": 60,
    "world.heldout_prompts": 1,
    "protocol.answer_tokens": 24,
    "protocol.feedback_tokens": 64,
}
TOUCHED: list[str] = []  # addresses that this process looked up or connected to, while it is watched
WATCHED: list[str] = []


def _audit(event: str, arguments: tuple) -> None:
    if WATCHED and event in ("socket.connect", "socket.getaddrinfo"):
        address = arguments[1] if event == "socket.connect" else arguments
        TOUCHED.append(str(address[0] if isinstance(address, tuple) else address))


sys.addaudithook(_audit)


@pytest.fixture(autouse=True, scope="module")
def impatient():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINKER_API_KEY", KEY)
        patch.setenv("TINKER_TELEMETRY", "1")
        patch.delenv("TINKER_BASE_URL", raising=False)
        patch.setattr(client, "PULSE", 0.2)
        patch.setattr(client, "PATIENCE", 2.0)
        yield
        gc.collect()  # the sessions of what is left end while their servers are forgotten


def settings(url: str, **more: object) -> list[str]:
    given = {"engine.backend": "tinker", "engine.url": url, "engine.model": MODEL} | SMALL | more
    return [word for name, value in given.items() for word in ("--set", f"{name}={value}")]


# ---- engine and learner -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server():
    with TinkerStandIn(base_folder(BASE)) as one:
        yield one


def engine_of(server: TinkerStandIn) -> RemoteEngine:
    service = client.TinkerService(server.url, MODEL)
    service.connect()
    return RemoteEngine(service, pad_id=0, end_id=1, positions=service.positions, vocabulary=4096, rank=4, seed=3)


def twin(server: TinkerStandIn, engine: RemoteEngine, agent: str) -> Team:
    """Our own team, whose agent has the very weights that the server began with."""
    engine.adapter(agent)
    team = Team.load(base_folder(BASE), [agent], rank=4, alpha=32.0, seed=9)
    theirs = [*server.trained.values()][-1].policy.parameters
    for name, value in team.agents[agent].parameters.items():
        value.data.copy_(theirs[name].data)
    return team


@pytest.mark.parametrize("divide", ["tokens", "sequences", 24])
def test_the_updates_of_the_service_are_those_of_our_learner(divide, server):
    """Of a loss that the clip cuts, three steps of Adam, the gradient clipped."""
    engine, loss = engine_of(server), PolicyLoss(0.2, 0.3, divide=divide)
    team = twin(server, engine, CONVERSATION)
    theirs = [*server.trained.values()][-1]
    remote = RemoteLearner(engine, CONVERSATION, lr=1e-3, max_grad_norm=0.02)
    ours = Learner(team, CONVERSATION, lr=1e-3, max_grad_norm=0.02)
    began = [value.detach().clone() for value in ours.parameters]
    for step, seed in enumerate((3, 4, 5)):
        samples = make_samples(seed)
        gradient = torch.cat([one.flatten() for one in ours.gradient(samples, loss)])
        lr = 1e-3 / (step + 1)
        wanted, found = ours.update(samples, loss, lr=lr), remote.update(samples, loss, lr=lr)
        told = torch.cat([one.flatten() for one in theirs.gradients[-1]])
        assert float((told - gradient).norm() / gradient.norm()) < 1e-4
        assert found.pop("loss_gap") < 1e-5
        assert found == {name: pytest.approx(wanted[name], rel=1e-3, abs=1e-5) for name in found}
        assert (
            {*wanted} - {*found} == {"grad_norm", "kl"} and found["clip_fraction"] > 0.1 and wanted["grad_norm"] > 0.02
        )
    moved, apart = (
        torch.cat([(a.detach() - b.detach()).flatten() for a, b in zip(ours.parameters, others, strict=True)])
        for others in (began, theirs.parameters)
    )
    assert float(moved.abs().max()) > 1e-3 and float(apart.norm() / moved.norm()) < 2e-3
    assert engine.version(CONVERSATION) == 3 == team.version[CONVERSATION]


def test_what_is_drawn_and_scored_is_by_the_weights_of_now(server):
    engine = engine_of(server)
    team = twin(server, engine, FEEDBACK)
    local = LocalEngine(team, pad_id=0, end_id=1)
    remote, ours = RemoteLearner(engine, FEEDBACK, lr=1e-2), Learner(team, FEEDBACK, lr=1e-2)
    requests = [Request((2, 7, 30, n // 2), (n, "feedback")) for n in range(10)] + [Request((2, 9), ("alone",))]
    names = []
    for version in range(3):
        before = len(server.of("asample"))
        drawn = engine.sample(FEEDBACK, requests, max_new_tokens=7)
        pairs = [(request.context, done.ids) for request, done in zip(requests, drawn, strict=True)]
        scores = local.score(FEEDBACK, pairs)
        for done, old, own in zip(drawn, engine.score(FEEDBACK, pairs), scores, strict=True):
            assert done.logprobs == pytest.approx(own, abs=1e-4) and old == pytest.approx(own, abs=1e-4)
            assert done.version == version and done.finished == (done.ids[-1] == 1)
            assert done.finished or len(done.ids) == 7
        asked = server.of("asample")[before:]
        assert sorted(one["num_samples"] for one in asked) == [1, 2, 2, 2, 2, 2]
        assert all(("seed" in one["sampling_params"]) == (one["num_samples"] == 1) for one in asked)
        names.append({one["sampling_session_id"] for one in asked})
        samples = [
            dataclasses.replace(
                sample, logprobs=own, ids=ids, context=context, advantages=(1.0,) * len(ids), reference=()
            )
            for sample, own, (context, ids) in zip(make_samples(3, agent=FEEDBACK), scores, pairs, strict=False)
        ]
        assert remote.update(samples, PolicyLoss())["ratio"] < 1e-4
        ours.update(samples, PolicyLoss())
    assert not engine.exact and [len(one) for one in names] == [1, 1, 1] and len(set().union(*names)) == 3
    base = [done.ids for done in engine.sample(None, requests, max_new_tokens=7)]
    assert base and engine.sample(CONVERSATION, requests[:1], max_new_tokens=7)[0].version == 0
    untrained = engine.untrained()
    once, again = (one.sample(FEEDBACK, requests, max_new_tokens=7) for one in (untrained, engine.untrained()))
    assert once == again and {done.version for done in once} == {0}


def _says_in_a_kind_of_its_own() -> None:
    """As the client does where a result has expired."""
    raise RetryableException("what its client says in a kind of its own")


def test_what_the_service_refuses_is_said_in_a_line(server, monkeypatch):
    service = engine_of(server).service
    with pytest.raises(BadInput, match=f"{server.url}: Request failed: no weights tinker://nowhere") as refused:
        service.resume("tinker://nowhere")
    assert not isinstance(refused.value, Unavailable) and "\n" not in str(refused.value)
    with pytest.raises(BadInput, match=f"{server.url}: has no model 'lab/None' .*; it has {MODEL}, lab/"):
        client.TinkerService(server.url, "lab/None").connect()
    for key, says in (
        ("tml-of-somebody", "Error code: 401"),
        ("mine", "give the key of"),
        ("tml-\u00e9", "give the key of"),
    ):
        monkeypatch.setenv("TINKER_API_KEY", key)
        with pytest.raises(BadInput, match=says) as refused:
            client.TinkerService(server.url, MODEL).connect()
        assert not isinstance(refused.value, Unavailable) and key not in str(refused.value)
    monkeypatch.setenv("TINKER_API_KEY", f" {KEY}\n")  # as a file with an end of line gives it
    client.TinkerService(server.url, MODEL).connect()
    with pytest.raises(BadInput, match="what its client says in a kind of its own"):
        service.ask(_says_in_a_kind_of_its_own)
    with pytest.raises(ValueError, match="scores what an adapter in training wrote"):
        engine_of(server).score(None, [((2,), (3,))])


def test_an_alarm_says_when_the_services_loss_is_another():
    assert alarms({"loss_gap/feedback": 1e-4}) == []
    assert alarms({"loss_gap/feedback": 0.2}) == ["the service's policy loss of the feedback agent is not ours"]


# ---- a training ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two steps whose first server dies in the second, and goes on with another one that has what was saved:
    (run, what was said when it died, both servers)."""
    path = tmp_path_factory.mktemp("tinker") / "run"
    recipe = {"learning.steps": 2, "stages.stage1_share": 0.5, "checkpoint_every": 1}
    WATCHED.append("all")
    with TinkerStandIn(base_folder(BASE), lives=30, plain=True) as first:
        assert main(["train", "waltz", "--run", str(path), *settings(first.url, **recipe)]) == 1
    died = [row["step"] for row in lines(path)], max(checkpoints(path))
    with TinkerStandIn(base_folder(BASE), plain=True, after=first) as second:
        text = (path / "recipe.toml").read_text()
        (path / "recipe.toml").write_text(text.replace(first.url, second.url))
        assert main(["train", "--resume", str(path)]) == 0
        WATCHED.clear()
        yield path, died, first, second


@pytest.mark.slow
def test_a_run_whose_server_dies_goes_on_from_its_last_checkpoint(trained):
    path, died, first, second = trained
    assert died == ([1], 1)
    rows = lines(path)
    assert [(row["step"], row["stage"]) for row in rows] == [(1, 1), (2, 2)]
    for row in rows:
        for agent in AGENTS if row["stage"] == 2 else [FEEDBACK]:
            assert row[f"ratio/{agent}"] == pytest.approx(0, abs=1e-4)
            assert row[f"sampler_ratio/{agent}"] == pytest.approx(1, abs=1e-3) and not row[f"truncated/{agent}"]
            assert row[f"loss_gap/{agent}"] < 1e-4 and row[f"tokens/{agent}"] > 0 and row[f"entropy/{agent}"] > 0
    # The feedback agent went on with the state of its optimiser; the conversation agent had not begun.
    one, two = (checkpoint.load(folder)["agents"] for folder in checkpoints(path).values())
    assert one[CONVERSATION] == {"agent": {"version": 0, "weights": ""}, "optimizer": {"state": ""}}
    assert [body["path"] for body in second.of("load_weights")] == [one[FEEDBACK]["optimizer"]["state"]]
    assert {agent: two[agent]["agent"]["version"] for agent in AGENTS} == {CONVERSATION: 1, FEEDBACK: 2}
    moments = second.saved[two[FEEDBACK]["optimizer"]["state"]][2]["state"]
    assert {int(one["step"]) for one in moments.values()} == {2}
    names = [body["path"] for server in (first, second) for body in server.of("save_weights")]
    assert len(names) == len({*names}) == 3
    for step in chain(first.of("optim_step"), second.of("optim_step")):
        wanted = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "grad_clip_norm": 1.0}
        assert {name: step["adam_params"][name] for name in wanted} == wanted
    assert [step["adam_params"]["learning_rate"] for step in second.of("optim_step")] == [5e-4, 5e-4]


def test_a_version_is_sampled_by_weights_of_its_own(trained):
    *_, second = trained
    order = [path for path in second.asked if path in ("optim_step", "save_weights_for_sampler", "asample")]
    assert all(after != "asample" for before, after in pairwise(order) if before == "optim_step")


@pytest.mark.slow
def test_the_run_is_measured_by_its_saved_weights(trained, capsys):
    path, _, _, second = trained
    before = len(second.of("create_sampling_session"))
    assert {*read_object(path / "summary.json")["systems"]} == {"base", "collaboration-untrained", "waltz"}
    assert main(["eval", str(path), "--json"]) == 0
    saved = checkpoint.load(max(checkpoints(path).values()))["agents"]
    asked = [body.get("model_path") for body in second.of("create_sampling_session")[before:]]
    assert {*asked} == {None, *(saved[agent]["agent"]["weights"] for agent in AGENTS)}
    assert len(second.of("create_model")) == 1  # the conversation agent's, in step 2: nothing is trained to be measured
    assert f'"engine": {{"backend": "tinker", "url": ["{second.url}"]}}' in capsys.readouterr().out


def test_nothing_else_is_asked_and_no_telemetry_is_sent(trained):
    _, _, first, second = trained
    assert TOUCHED and {*TOUCHED} <= {"127.0.0.1", "localhost"}
    assert "telemetry" not in first.asked + second.asked
    seen = {*first.asked, *second.asked}
    assert {"create_model", "load_weights", "forward_backward", "asample", "save_weights"} < seen


@pytest.mark.parametrize(
    "command, says",
    [
        (["export", "RUN", "--out", "OUT"], "none is here: tinker checkpoint download tinker://session-"),
        (["export", "RUN", "--out", "OUT", "--gguf"], "none is here: tinker checkpoint download tinker://session-"),
        (["serve", "RUN"], "its weights are on tinker; serve takes a pair that is loaded here"),
        (["plan", "RUN/recipe.toml"], 'plan: with backend = "tinker" the service has the model'),
        (["eval", "RUN", "--set", "engine.backend=tinker"], "a run's weights stay where they were trained"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_takes_weights_is_refused(command, says, trained, tmp_path, capsys):
    asked = len(trained[3].asked)
    words = [word.replace("RUN", str(trained[0])).replace("OUT", str(tmp_path / "out")) for word in command]
    assert main(words) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert says in line and not (tmp_path / "out").exists()
    assert len(trained[3].asked) == asked or command[0] == "eval"


def test_a_dead_server_is_said_in_a_line(tmp_path, capsys):
    with TinkerStandIn(base_folder(BASE)) as gone:
        capsys.readouterr()
    assert main(["train", "waltz", "--run", str(tmp_path / "run"), *settings(gone.url)]) == 1
    [line] = capsys.readouterr().err.strip().splitlines()
    assert f"{gone.url}: does not answer: " in line and not (tmp_path / "run").exists()


# ---- what is refused before anything is asked ---------------------------------------------------


@pytest.mark.parametrize(
    "given, says",
    [
        ({"learning.beta": 0.01}, "learning: beta = 0.01: the service's policy loss has no KL; it has to be 0.0"),
        ({"learning.baseline": "separate"}, "learning: baseline = 'separate': the service gives no hidden states"),
        ({"learning.micro_tokens": 64}, "learning: micro_tokens = 64: the service has no such setting"),
        ({"model.train": "full"}, "model: train = 'full': the service trains adapters, not whole models"),
        ({"model.feedback_base": "nano-qwen"}, "model: feedback_base = 'nano-qwen': the service has one base"),
        ({"model.alpha": 8.0}, "model: alpha = 8.0: the service has no such setting"),
        ({"model.dtype": "bfloat16"}, "model: dtype = 'bfloat16': the service has no such setting"),
        ({"model.temperature": 0.5}, "model: temperature = 0.5: the service learns at temperature 1"),
        ({"protocol.constrained": "true"}, "protocol: constrained = true: the service gives no log-probabilities"),
        ({"warmup.own": 8}, "warmup: own = 8: a warm start is not built for a service"),
        ({"attack.intents": 2}, "attack: an attacker beside the pair is not built for a service"),
        ({"engine.staleness": 1}, "engine.staleness: has no effect with backend = 'tinker'"),
        ({"engine.rollouts": "vllm"}, "engine.rollouts: has no effect with backend = 'tinker'"),
        ({"engine.url": '["http://a", "http://b"]'}, "engine.url: names several addresses, and a backend has one"),
        ({"engine.backend": "local", "engine.url": ""}, "engine.model: has no effect with backend = 'local'"),
        ({"method": "macpo"}, ""),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_by_name(given, says, tmp_path, capsys):
    run, words = ["--run", str(tmp_path / "run")], settings("http://127.0.0.1:1", **given)
    if "method" in given:
        words, says = ["--set", "engine.backend=tinker"], 'engine: backend = "tinker" is not for method = "macpo" yet'
    assert main(["train", str(given.get("method", "waltz")), *run, *words]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert says in line and not (tmp_path / "run").exists()


def test_a_missing_address_key_or_client_is_said(server, monkeypatch):
    made = config.load("waltz", settings(server.url)[1::2])
    with (
        pytest.raises(BadInput, match="with --processes or --cluster every process would ask"),
        monkeypatch.context() as m,
    ):
        m.setenv("WORLD_SIZE", "2")
        RemotePair(made)

    def asked() -> list[str]:
        """But for what sessions of other tests send by themselves."""
        return [path for path in server.asked if not path.endswith(("heartbeat", "retrieve", "/finish"))]

    before = asked()
    with (
        monkeypatch.context() as m,
        pytest.raises(BadInput, match="the server's address as engine"),
    ):
        RemotePair(made.model_copy(update={"engine": made.engine.model_copy(update={"url": ()})}))
    with monkeypatch.context() as m:
        m.delenv("TINKER_API_KEY")
        with pytest.raises(BadInput, match=f"give the key of {server.url}, tml-…, in TINKER_API_KEY"):
            RemotePair(made)
    needed = r'^backend = "tinker" needs .*pip install "choreo-rl\[tinker\]"$'
    with monkeypatch.context() as m, pytest.raises(BadInput, match=needed):
        m.setitem(sys.modules, "tinker", None)
        m.delitem(sys.modules, "choreo.clients.tinker")
        BACKENDS.get("tinker")
    assert asked() == before
    monkeypatch.setenv("TINKER_BASE_URL", server.url)
    pair = RemotePair(made.model_copy(update={"engine": made.engine.model_copy(update={"url": ()})}))
    assert pair.device == f"tinker at {server.url}" and pair.engine.positions == 512


def test_no_weights_are_needed_here(server, tmp_path):
    """A folder with a configuration and a tokenizer is the same base as one with weights beside them."""
    for file in base_folder(BASE).iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    whole, bare = (
        RemotePair(config.load("waltz", settings(server.url, **{"model.base": base})[1::2]))
        for base in (BASE, str(tmp_path))
    )
    assert whole.base == bare.base
    assert np.isfinite(bare.engine.sample(None, [Request((2, 7), ("a",))], max_new_tokens=3)[0].logprobs).all()
