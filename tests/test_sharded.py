"""Whole models that are sharded over ranks by FSDP2: the same step, the same episodes, checkpoints for any number."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
import warm
from test_engine_parallel import call, make_samples
from test_ranks import ids, in_ranks
from test_trainer import small
from torch import nn

from choreo import parallel
from choreo.cli import main
from choreo.config.common import Weights
from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.learner import Learner
from choreo.engine.losses import PolicyLoss
from choreo.engine.sharded import Sharded, check_shardable
from choreo.errors import BadInput, Interrupted, Unsupported
from choreo.experiment import sizing
from choreo.methods.waltz.trainer import train
from choreo.models.resolve import base_folder
from choreo.runs.callbacks import Callback
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run, is_finished
from choreo.runs.progress import Progress

STEPS = 3
AGENT = "conversation"
LOSS = PolicyLoss(clip=0.99, kl=0.1)
HALF = {"dtype": "bfloat16", "recompute": True}


def make_learner(folder: str, shard: bool, **how: Any) -> Learner:
    team = Team.load(folder, train="full", shard=shard, seed=1, **how)
    return Learner(team, AGENT, lr=1e-2, micro_tokens=16)


def updated(learner: Learner) -> dict:
    """Two updates, in the second of which the second rank has no sample."""
    gradient = learner.gradient(make_samples(), LOSS)
    metrics = [learner.update(make_samples(), LOSS), learner.update(make_samples()[:1], LOSS)]
    return {"gradient": gradient, "metrics": metrics, "weights": weights_of(learner.team)}


def weights_of(team: Team) -> dict[str, torch.Tensor]:
    with team.whole(AGENT):
        return {name: value.detach().clone() for name, value in team.weights(AGENT).items()}


def work(rank: int, folder: str, place: str) -> None:
    torch.set_num_threads(1)
    meeting, wait = f"file://{place}/meeting", timedelta(seconds=300)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=wait)
    try:
        told: dict[str, Any] = {
            f"{name} {shard}": updated(make_learner(folder, shard, **how))
            for name, how in (("whole", {}), ("half", HALF))
            for shard in (False, True)
        }
        learner = make_learner(folder, True)
        assert isinstance(learner.team.agents[AGENT], Sharded)
        kept = sum(value.to_local().numel() for value in learner.team.agents[AGENT].parameters.values())
        told["bytes"] = 4 * kept
        learner.load_state_dict(checkpoint.load(f"{place}/one")["learner"])  # of one process
        told["from one"] = updated(learner)
        checkpoint.save(f"{place}/two", {"learner": learner.state_dict(), "step": 5})
        resumed = make_learner(folder, True)
        resumed.load_state_dict(checkpoint.load(f"{place}/two")["learner"])
        told["more"], told["resumed"] = updated(learner), updated(resumed)
        with torch.no_grad():
            _, head = learner.team.run(
                learner.team.learning(AGENT), {"input_ids": torch.zeros((1, 4), dtype=torch.long)}
            )
        told["hooks"] = len(head.weight._backward_hooks or ())
        with pytest.raises(RuntimeError, match="by all of them"):
            parallel.spread([0, 1], lambda own: [weights_of(learner.team) for _ in own])
        torch.save(told, f"{place}/out.{rank}")
    finally:
        dist.destroy_process_group()


def same(one: Mapping[str, Any], other: Mapping[str, Any], margin: float) -> None:
    """Gradients and weights are equal to the bit, or to `margin`, relative to the largest."""
    pairs = [*zip(one["gradient"], other["gradient"], strict=True)]
    pairs += [(one["weights"][name], value) for name, value in other["weights"].items()]
    for a, b in pairs:
        assert (a - b).abs().max() <= margin * b.abs().max()
    for ours, theirs in zip(one["metrics"], other["metrics"], strict=True):
        assert ours.keys() == theirs.keys()
        assert all(abs(ours[name] - theirs[name]) <= 1e-4 * (1 + abs(ours[name])) for name in ours)


@pytest.mark.slow
def test_sharded_ranks_step_as_whole_ones_do_and_their_checkpoints_fit_any_number(tiny_folder, tmp_path):
    one = make_learner(str(tiny_folder), True)  # alone it is whole
    one.update(make_samples(), LOSS)
    checkpoint.save(tmp_path / "one", {"learner": one.state_dict()})
    two = [call("test_sharded", "work", rank, str(tiny_folder), str(tmp_path)) for rank in (0, 1)]
    for process in two:
        assert process.wait(600) == 0
    ranks = [torch.load(tmp_path / f"out.{rank}") for rank in (0, 1)]
    how = Weights(train="full", shard=True)
    planned = sizing.standing(sizing.Model.read(str(tiny_folder), how), how, policies=1, optimisers=1, ranks=2)
    assert planned["optimisers"] == 2 * planned["agents"] and 2 * planned["agents"] == planned["base"]
    for told in ranks:
        assert told["hooks"] == 0  # none stays behind a micro-batch
        assert told["bytes"] == pytest.approx(planned["agents"], rel=0.01)
        for name in ("whole", "half"):
            assert max(float(g.abs().max()) for g in told[f"{name} True"]["gradient"]) > 1e-3
            same(told[f"{name} True"], told[f"{name} False"], 1e-6)
        same(told["resumed"], told["more"], 0.0)
        assert all(
            torch.equal(a, b) for a, b in zip(told["more"]["gradient"], ranks[0]["more"]["gradient"], strict=True)
        )
    same(ranks[0]["from one"], updated(one), 1e-3)

    saved = checkpoint.load(tmp_path / "two")  # by one process: whole
    assert saved["step"] == 5
    alone = make_learner(str(tiny_folder), True)
    alone.load_state_dict(saved["learner"])
    for name, value in weights_of(alone.team).items():
        assert torch.equal(value, ranks[0]["from one"]["weights"][name]), name
    same(updated(alone), ranks[0]["more"], 1e-3)

    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, ("true",)

    (tmp_path / "two" / "shards" / ".metadata").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(BadInput, match=r"shards: no checkpoint can be read from it: it names .*system"):
        checkpoint.load(tmp_path / "two")


class StopsAt(Callback):
    """Asks the run to stop after a step."""

    def __init__(self, step: int):
        self.step, self.done = step, 0

    def on_metrics(self, step, metrics):
        self.done = step

    def wants_stop(self):
        return self.done >= self.step


@pytest.mark.slow
def test_ranks_that_share_the_agents_of_a_run_finish_what_one_process_began(tmp_path):
    recipe, whole, run = small(steps=STEPS, prompts=3), tmp_path / "whole", tmp_path / "run"
    model = recipe.model.model_copy(update={"base": "nano-llama", "train": "full", "shard": True})
    recipe = recipe.model_copy(update={"model": model, "checkpoint_every": 1})
    with Run.create(whole, recipe) as one, Progress() as progress:
        train(recipe, one, progress)

    with Run.create(run, recipe) as one, Progress([StopsAt(1)]) as progress, pytest.raises(Interrupted):
        one.callbacks = progress.callbacks
        train(one.recipe, one, progress)
    assert {path.name for path in checkpoints(run)[1].iterdir()} == {"state.pt"}

    process = in_ranks("--resume", run, "--json", python=warm.command(tmp_path / "python"))
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert is_finished(run)
    assert {path.name for path in checkpoints(run)[STEPS].iterdir()} == {"state.pt", "shards"}

    assert ids(run) == ids(whole)
    base = dict(Team.load(base_folder("nano-llama")).decoder.model.named_parameters())
    ours, theirs = (checkpoint.load(checkpoints(path)[STEPS])["agents"] for path in (run, whole))
    for agent in theirs:
        pairs = [
            (ours[agent]["agent"]["weights"][name], value, base[name])
            for name, value in theirs[agent]["agent"]["weights"].items()
        ]
        apart, moved = (
            torch.cat([one.flatten() for one in side])
            for side in zip(*((a - b, b - c) for a, b, c in pairs), strict=True)
        )
        assert moved.norm() > 0 and apart.norm() < 1e-3 * moved.norm()


def test_a_model_that_fsdp2_cannot_take_is_refused(tiny_folder):
    model = Team.load(tiny_folder).decoder.model
    check_shardable(model)
    model.register_parameter("alone", nn.Parameter(torch.ones(())))
    with pytest.raises(Unsupported, match="a weight without rows"):
        check_shardable(model)
    model.register_parameter("alone", nn.Parameter(torch.ones(1, dtype=torch.bfloat16)))
    with pytest.raises(Unsupported, match="several precisions"):
        check_shardable(model)


def test_adapters_are_not_sharded(tmp_path, capsys):
    assert main(["train", "waltz", "--run", str(tmp_path / "run"), "--set", "model.shard=true"]) == 2
    assert "--set model.shard=true: " in (said := capsys.readouterr().err) and 'train = "full" alone' in said


def test_a_plan_counts_a_ranks_share(capsys):
    command = ["plan", "waltz", "--memory", "8", "--set", "model.train=full", "--set", "model.shard=true"]

    def planned(gpus: int) -> dict:
        assert main([*command, "--gpus", str(gpus), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    one, four = planned(1), planned(4)
    [alone], [shared] = one["models"], four["models"]
    assert (one["shares"], four["shares"]) == (1, 4)
    assert alone["memory"]["base"] == shared["memory"]["base"] == 4 * alone["parameters"]
    for name in ("agents", "optimisers"):
        assert alone["memory"][name] == 4 * shared["memory"][name]
    assert shared["sampling"] - alone["sampling"] == 4 * alone["parameters"]  # an agent, gathered whole
    # 80 updates of the feedback agent alone, and 320 of both, each of one micro-batch: the weights twice, a gradient.
    each = 3 / 4 * 4 * alone["parameters"]
    learnt = four["cost"]["traffic"]["gradients"] / (3 * each)
    assert learnt == pytest.approx(round(learnt)) and round(learnt) >= 720
    assert four["cost"]["traffic"]["weights"] == pytest.approx(3 * 400 * each)
    assert main([*command, "--gpus", "4"]) == 0
    assert "one of 4 ranks" in (said := capsys.readouterr().out) and "a share of every agent" in said
