"""The trainer on the real microworld: exact resume after a real kill, exact start, stages, batches, alarms."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import warm
from warm import Warm

from choreo.engine import checkpoint
from choreo.environments.microworld.world import World
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.methods.waltz.alarms import alarms
from choreo.methods.waltz.batches import draw
from choreo.methods.waltz.method import WALTZ
from choreo.methods.waltz.recipe import Learning, Stages, WaltzRecipe, stage1_steps
from choreo.methods.waltz.stages import ready
from choreo.methods.waltz.trainer import restore, train
from choreo.methods.waltz.updates import learning_rate, policy_loss
from choreo.models.resolve import base_folder
from choreo.runs.callbacks import Callback
from choreo.runs.checkpoints import checkpoints
from choreo.runs.episodes import record
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import CONVERSATION, FEEDBACK

CLOCKS = {"seconds", "tokens_per_second"}


def small(**learning) -> WaltzRecipe:
    return WaltzRecipe.model_validate(
        {
            "seed": 3,
            "world": {"train_prompts": 90, "heldout_prompts": 1},
            "stages": {"stage1_share": 0.4},
            "learning": {"steps": 5, "prompts": 5, "samples": 2, **learning},
            "checkpoint_every": 2,
        }
    )


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def episodes(run: Path) -> dict[str, str]:
    return {f.name: gzip.decompress(f.read_bytes()).decode() for f in sorted(run.glob("episodes/*.gz"))}


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    with Run.create(path, small()) as run, Progress() as progress:
        train(run.recipe, run, progress)
    return path


def resuming(path):
    """The command `choreo train --resume`, and its environment."""
    # Sums are taken in another order with another number of threads: bit for bit holds for the same number.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return ["-m", "choreo.cli", "train", "--resume", str(path)], environment


def test_killed_in_the_middle_of_a_step_and_resumed_is_bit_identical(whole, tmp_path):
    path = tmp_path / "killed"
    with Run.create(path, small()):
        pass
    command, environment = resuming(path)
    process = Warm(command, env=environment)
    deadline = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() or len((path / "metrics.jsonl").read_text().splitlines()) < 3:
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()  # step 3 is logged; the last checkpoint is of step 2, or just of 4
    process.wait()
    assert 2 <= max(checkpoints(path)) < 5
    with Run.open(path) as run, Progress() as progress:
        train(run.recipe, run, progress)
    assert lines(path) == lines(whole)
    assert episodes(path) == episodes(whole)
    last = max(checkpoints(whole))
    assert last == 5
    assert same(checkpoint.load(checkpoints(path)[last]), checkpoint.load(checkpoints(whole)[last]))


def test_stopped_by_sigterm_it_exits_75_and_goes_on_bit_identically(whole, tmp_path):
    path = tmp_path / "queued"
    with Run.create(path, small()):
        pass
    command, environment = resuming(path)
    process = Warm(command, env=environment)
    deadline = time.monotonic() + 120
    while not (path / "metrics.jsonl").exists() or not (path / "metrics.jsonl").read_text():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be stopped"
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGTERM)  # Slurm signals every process of a step, and choreo passes it on to its ranks
    assert process.wait(120) == 75
    assert max(checkpoints(path)) == len(lines(path)) < 5  # the step in hand was finished and saved
    told = warm.run(command, env=environment | {"CHOREO_LOG_FORMAT": "json"})
    assert told.returncode == 0, told.stderr
    said = [json.loads(line) for line in told.stderr.splitlines()]  # every line is an object
    assert all(one.keys() >= {"time", "level", "step", "event"} for one in said)
    progress = [one for one in said if one["event"] == "progress" and one["phase"] == "training"]
    assert progress[-1]["step"] == progress[-1]["done"] == 5 and progress[-1]["run"] == str(path)
    assert {one["system"] for one in said if one["event"] == "system"} == {"base", "collaboration-untrained", "waltz"}
    assert lines(path) == lines(whole) and episodes(path) == episodes(whole)
    assert same(checkpoint.load(checkpoints(path)[5]), checkpoint.load(checkpoints(whole)[5]))


class Stopper(Callback):
    """Notes what is measured, and breaks off before the second system."""

    def __init__(self, breaks: bool):
        self.breaks, self.measured = breaks, list[str]()

    def on_phase(self, label, total, done):
        if label.startswith("measuring "):
            if self.breaks and self.measured:
                raise KeyboardInterrupt
            self.measured.append(label.removeprefix("measuring "))


def test_stopped_while_it_is_measured_a_run_goes_on_with_the_next_system(whole, tmp_path):
    found, measured = [], []
    for name, stops in ("undisturbed", (False,)), ("stopped", (True, False)):
        shutil.copytree(whole, tmp_path / name)
        for breaks in stops:
            stopper = Stopper(breaks)
            with Run.open(tmp_path / name) as run, Progress([stopper]) as progress:
                try:
                    found.append(WALTZ.run(run.recipe, run, Task(run.recipe), progress))
                except KeyboardInterrupt:
                    assert breaks
            measured.append(stopper.measured)
    assert measured == [["base", "collaboration-untrained", "waltz"], ["base"], ["collaboration-untrained", "waltz"]]
    undisturbed, stopped = found
    for entry in (*undisturbed.systems.values(), *stopped.systems.values()):
        entry.pop("latency_added", None)
    assert json.loads(json.dumps(undisturbed.systems)) == json.loads(json.dumps(stopped.systems))
    assert undisturbed.episodes.keys() == stopped.episodes.keys()
    for name, games in undisturbed.episodes.items():
        assert [record(game, {}) for game in games] == [record(game, {}) for game in stopped.episodes[name]]


def test_a_checkpoint_is_laid_on_the_base_it_was_trained_on_alone(whole, tmp_path):
    base = shutil.copytree(base_folder("micro-llama"), tmp_path / "base")
    recipe, last = small(), max(checkpoints(whole).items())[1]
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"base": str(base)})})
    assert restore(recipe, last).base == restore(small(), last).base  # a copy is the same base
    with open(base / "model.safetensors", "r+b") as file:  # the last weight of the last layer
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\1")
    with pytest.raises(BadInput, match="another base") as refused:
        restore(recipe, last)
    assert str(refused.value).endswith(
        f'than {base} is now; that one is micro-llama (model.base = "micro-llama" in its recipe.toml)'
    )


def test_starts_at_the_reference_and_stage_1_moves_the_feedback_agent_alone(whole):
    rows = lines(whole)
    assert [row["stage"] for row in rows] == [1, 1, 2, 2, 2]
    assert rows[0]["kl/feedback"] == pytest.approx(0, abs=1e-6)
    assert rows[0]["ratio/feedback"] == pytest.approx(0, abs=1e-4)  # mean |ρ − 1|: the sampler's own π_old
    assert rows[2]["kl/conversation"] == pytest.approx(0, abs=1e-6)
    assert rows[2]["kl/feedback"] > 0
    assert not any(name.endswith(f"/{CONVERSATION}") and name.startswith("loss") for name in rows[0])
    after = checkpoint.load(checkpoints(whole)[2])["agents"]
    assert after[CONVERSATION]["agent"]["version"] == 0 and after[FEEDBACK]["agent"]["version"] == 2
    weights = after[CONVERSATION]["agent"]["weights"]
    assert not any(value.any() for name, value in weights.items() if "lora_B" in name)


def test_a_batch_is_mixed_as_asked_and_repeatable():
    prompts = World(small().world).training()
    learning = Learning(prompts=10, samples=3, mix={"harmful": 2, "benign": 2, "general": 1})
    batch = draw(prompts, learning, seed=0, step=4)
    assert [sum(p.kind == kind for p, _ in batch) for kind in ("harmful", "benign", "general")] == [12, 12, 6]
    assert len({(p.id, k) for p, k in batch}) == 30
    assert batch == draw(prompts, learning, seed=0, step=4) != draw(prompts, learning, seed=0, step=5)


def test_stage_2_begins_when_labels_and_format_are_good_or_time_is_up():
    stages = Stages(switch_label_accuracy=0.9, switch_format_rate=0.95)
    good, poor = [(0.92, 0.99)] * 5, [(0.99, 0.99)] * 4 + [(0.5, 0.99)]
    assert ready(good, stages)
    assert not ready(good[:4], stages)  # not yet a window of steps
    assert not ready(poor, stages)
    assert stage1_steps(small()) == 2


def test_alarms_name_what_is_wrong_and_are_silent_otherwise():
    assert alarms({"refusal_share": 0.45, "entropy/feedback": 0.1, "degenerate": 0.02}) == []
    assert "refuses more than 90%" in alarms({"refusal_share": 0.95})[0]
    assert alarms({"refusal_share": 0.95}) == alarms({"refusal_share": 0.96})  # said once while it lasts
    assert "refuses less than 5%" in alarms({"refusal_share": 0.01})[0]
    assert "feedback" in alarms({"entropy/feedback": 0.001})[0]
    assert "say nothing" in alarms({"degenerate": 0.3})[0]
    assert alarms({"degenerate": 0.7, "cut_off": 0.6}) == []
    assert "cut off" in alarms({"degenerate": 0.9, "cut_off": 0.9})[0]
    assert "no gradient" in alarms({"groups_without_gradient": 1.0})[0]


def test_the_learning_rate_falls_to_nothing_or_stays():
    linear, constant = Learning(lr=0.4, steps=4), Learning(lr=0.4, steps=4, schedule="constant")
    assert [learning_rate(linear, CONVERSATION, step) for step in (1, 2, 3, 4)] == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert {learning_rate(constant, FEEDBACK, step) for step in (1, 2, 3, 4)} == {0.4}
    slower = linear.model_copy(update={"feedback_lr": 0.04})
    assert [learning_rate(slower, agent, 3) for agent in (CONVERSATION, FEEDBACK)] == pytest.approx([0.2, 0.02])


@pytest.mark.parametrize(
    "change",
    [
        {"learning": {"kl": "k2-loss"}},
        {"learning": {"estimator": "grpo", "baseline": "separate"}},
        {"learning": {"estimator": "dr-grpo", "baseline": "shared"}},
        {"stages": {"train": "feedback"}},
        {"stages": {"train": "conversation"}, "protocol": {"rounds": 0}},
        {"model": {"train": "full"}, "protocol": {"rounds": 2}},
    ],
    ids=str,
)
def test_every_way_to_learn_trains_the_agents_it_names(change, tmp_path):
    settings = small(steps=2, prompts=3).model_dump()
    for section, values in change.items():
        settings[section] |= values
    recipe = WaltzRecipe.model_validate(settings)
    with Run.create(tmp_path / "run", recipe) as run, Progress() as progress:
        train(recipe, run, progress)
    rows = lines(tmp_path / "run")
    learning = {"feedback": {FEEDBACK}, "conversation": {CONVERSATION}, "both": {CONVERSATION, FEEDBACK}}
    updated = {name.removeprefix("grad_norm/") for row in rows for name in row if name.startswith("grad_norm/")}
    assert updated == learning[recipe.stages.train]
    assert [row["stage"] for row in rows] == {"feedback": [1, 1], "both": [1, 2]}.get(recipe.stages.train, [2, 2])
    # KL is a loss where the recipe says so, and else in the reward.
    assert (policy_loss(recipe, FEEDBACK).kl > 0) == (recipe.learning.kl == "k2-loss")
