"""Trainings that learn from what servers sample, and recipes that ask for what cannot work."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import warm
from test_ranks import ids, in_ranks
from test_trainer import lines
from vllm_server import VllmStandIn

from choreo import config
from choreo.cli import main
from choreo.engine.vllm import PROBES
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import train
from choreo.models.resolve import base_folder
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import AGENTS, CONVERSATION, FEEDBACK


def recipe(folder, *servers: VllmStandIn, **sections) -> WaltzRecipe:
    settings = {
        "world": {"train_prompts": 60, "heldout_prompts": 2},
        "model": {"base": str(folder), "rank": 4},
        "protocol": {"answer_tokens": 12, "feedback_tokens": 12},
        "stages": {"stage1_share": 0.5},
        "learning": {"steps": 4, "prompts": 4, "samples": 2},
        "engine": {"rollouts": "vllm", "url": tuple(server.url for server in servers)} if servers else {},
    }
    merged = {name: settings.get(name, {}) | sections.get(name, {}) for name in settings | sections}
    return WaltzRecipe.model_validate({"seed": 3, "checkpoint_every": 2, **merged})


# The shipped base, whose reviews parse: a random one earns nothing, and so learns nothing.
SPEAKS = {
    "protocol": {"answer_tokens": 24, "feedback_tokens": 64},
    "learning": {"steps": 2, "prompts": 4, "samples": 2},
}


def trained(made: WaltzRecipe, path: Path) -> list[dict]:
    with Run.create(path, made) as run, Progress() as progress:
        train(made, run, progress)
    return lines(path)


@pytest.mark.slow
def test_the_update_is_against_the_learners_own_log_probabilities(tmp_path):
    with VllmStandIn(base_folder("nano-llama")) as one, VllmStandIn(base_folder("nano-llama")) as two:
        rows = trained(recipe("nano-llama", one, two, **SPEAKS), tmp_path / "run")
        assert not one.loaded and not two.loaded
    assert [row["stage"] for row in rows] == [1, 2]
    for row in rows:
        for agent in AGENTS if row["stage"] == 2 else [FEEDBACK]:
            assert row[f"ratio/{agent}"] == pytest.approx(0, abs=1e-4) and row[f"grad_norm/{agent}"] > 1e-4
            assert row[f"sampler_ratio/{agent}"] == pytest.approx(1, abs=1e-3)
            assert 1 <= row[f"sampler_ratio_max/{agent}"] < 1.01 and row[f"truncated/{agent}"] == 0
    assert rows[0]["kl/feedback"] == pytest.approx(0, abs=1e-6) and rows[1]["kl/feedback"] > 0
    local = trained(recipe("nano-llama", **SPEAKS), tmp_path / "local")
    assert not any("sampler" in name or "truncated" in name for row in local for name in row)


@pytest.mark.slow
def test_what_a_sampler_says_is_corrected_for_and_is_not_what_the_update_is_against(tmp_path):
    """The same ids, from a server that says something else of them than it drew by."""
    found = {}
    for ails in ("", "noisy"):
        with VllmStandIn(base_folder("nano-llama"), ails) as server:
            settings = {"rollouts": "vllm", "url": (server.url,), "tolerance": 1.0}
            made = recipe("nano-llama", engine=settings, **SPEAKS | {"learning": {"steps": 1, "prompts": 4}})
            [found[ails]] = trained(made, tmp_path / f"run{ails}")
    well, noisy = found[""], found["noisy"]
    assert well["label_accuracy"] == noisy["label_accuracy"] and well["tokens"] == noisy["tokens"]
    assert well["ratio/feedback"] == noisy["ratio/feedback"] == pytest.approx(0, abs=1e-4)
    assert well["entropy/feedback"] == noisy["entropy/feedback"]  # of π_old
    assert noisy["sampler_ratio/feedback"] == pytest.approx((np.exp(0.9) - 1) / 0.9, rel=0.1)
    assert 2 < noisy["sampler_ratio_max/feedback"] < 2.5 and 0.05 < noisy["truncated/feedback"] < 0.4
    assert noisy["grad_norm/feedback"] != pytest.approx(well["grad_norm/feedback"], rel=0.05)
    assert sum("feedback agent" in alarm for alarm in noisy["alarms"]) == 2 and not well["truncated/feedback"]


@pytest.mark.slow
def test_a_server_that_dies_stops_the_run_which_goes_on_with_another(tiny_folder, tmp_path, capsys):
    with VllmStandIn(tiny_folder, lives=100) as server:
        made = tmp_path / "mine.toml"
        made.write_text(config.to_toml(recipe(tiny_folder, server)))
        path = tmp_path / "run"
        assert main(["train", str(made), "--run", str(path)]) == 1  # to try again may help
        died = len(server.named("complete")) - 100
    said = capsys.readouterr().err.strip().splitlines()[-1]
    done = len(lines(path))
    assert died and 1 <= done < 4 and f"saved at step {done}; {server.url}: does not answer: " in said
    assert max(checkpoints(path)) == done
    with VllmStandIn(tiny_folder) as other:
        text = (path / "recipe.toml").read_text()
        (path / "recipe.toml").write_text(text.replace(server.url, other.url))
        assert main(["train", "--resume", str(path)]) == 0
        names = other.named("load")
    assert [row["step"] for row in lines(path)] == [1, 2, 3, 4]
    assert not {*names} & {*server.named("load")}  # though their versions are the same


@pytest.mark.slow
@pytest.mark.parametrize("staleness", [0, 1])
def test_two_ranks_ask_once_and_learn_from_the_same_games(staleness, tmp_path):
    with VllmStandIn(base_folder("nano-llama")) as server:
        asking = {"rollouts": "vllm", "url": (server.url,), "staleness": staleness}
        learning = {"steps": 1 + staleness, "prompts": 3}
        made = recipe("nano-llama", **SPEAKS | {"learning": learning, "engine": asking})
        one = trained(made, tmp_path / "one")
        asked = len(server.named("complete"))
        (tmp_path / "mine.toml").write_text(config.to_toml(made))
        process = in_ranks(tmp_path / "mine.toml", "--run", tmp_path / "two", python=warm.command(tmp_path / "python"))
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said
        assert len(server.named("complete")) == 2 * asked + 2 * PROBES  # a command checks the server before its run
    two = lines(tmp_path / "two")
    assert ids(tmp_path / "one") == ids(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert b["grad_norm/feedback"] == pytest.approx(a["grad_norm/feedback"], rel=1e-3)


def test_the_engine_of_this_process_is_not_replaced(tiny_folder):
    pair = Pair(recipe(tiny_folder))
    with pair.rollouts() as same:
        assert same is pair and pair.exact
    with VllmStandIn(tiny_folder) as server, ExitStack() as stack:
        other = Pair(recipe(tiny_folder, server))
        rollouts = stack.enter_context(other.rollouts())
        assert other.exact and not rollouts.exact
        assert rollouts.agents[CONVERSATION] is rollouts.agents[FEEDBACK]


@pytest.mark.parametrize(
    "settings, says",
    [
        (["VLLM", "engine.command=vllm serve -q"], 'engine.command: goes with rollouts = "vllm" and no url alone'),
        (["engine.command=x"], 'engine.command: goes with rollouts = "vllm" and no url alone'),
        (["engine.rollouts=vllm", "engine.command=vllm '"], "engine.command: is no command line: No closing quotation"),
        (["engine.url=http://localhost:1"], 'engine.url: goes with rollouts = "vllm" or "llama.cpp" alone'),
        (["VLLM", "engine.url=localhost:1"], "engine.url: must look like http://localhost:8000"),
        (["VLLM", 'engine.url=["http://a", "http://a"]'], "engine.url: names a server twice"),
        (["VLLM", "model.train=full"], 'model: train = "full": a vLLM server takes adapters, not whole models'),
        (["VLLM", "model.feedback_base=nano-qwen"], "model: feedback_base: a vLLM server has one base"),
        (["VLLM", "protocol.constrained=true"], "protocol: constrained: a vLLM server does not give the log-prob"),
        (["VLLM", "learning.temperature=0.7"], "learning.temperature: must be 1 in training"),
        (["VLLM", "engine.truncate=0.5"], "engine.truncate: expected a number >= 1, got 0.5"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused_in_a_line(settings, says, capsys, tmp_path):
    vllm = ["engine.rollouts=vllm", "engine.url=http://localhost:1"]
    settings = [one for setting in settings for one in (vllm if setting == "VLLM" else [setting])]
    given = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", "waltz", "--run", str(tmp_path / "run"), *given]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert says in line and not (tmp_path / "run").exists()


def test_macpo_is_refused(capsys, tmp_path):
    given = ["--set", "engine.rollouts=vllm", "--set", "engine.url=http://localhost:1"]
    assert main(["train", "macpo", "--run", str(tmp_path / "run"), *given]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert 'engine: rollouts = "vllm" is not for method = "macpo" yet' in line
