"""Games that are played one step ahead (`engine.staleness`): by which weights, resumed to the bit, and refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

import psutil
import pytest
from test_rollouts_train import trained
from test_trainer import episodes, lines, resuming, same, small
from warm import Warm

from choreo.cli import main
from choreo.engine import checkpoint
from choreo.environments.task import Task
from choreo.game.play import play
from choreo.methods.waltz.batches import draw, training_prompts
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import restore, train
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import AGENTS

pytestmark = pytest.mark.slow


def ahead(**learning) -> WaltzRecipe:
    made = small(**learning).model_dump()
    made["stages"]["stage1_share"] = 0.0
    return WaltzRecipe.model_validate(made | {"engine": {"staleness": 1}, "checkpoint_every": 1})


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    trained(ahead(), path)
    return path


def test_a_step_plays_with_the_weights_of_one_update_before_and_learns_against_those_of_now(whole):
    recipe = ahead()
    task = Task(recipe, whole)
    for step in (2, 3):
        pair = restore(recipe, checkpoints(whole).get(step - 2))
        batch = draw(training_prompts(pair, task, recipe.learning), recipe.learning, recipe.seed, step, task.weights)
        played = play(pair.agents, batch, recipe.protocol.limits, key=(recipe.seed, step))
        logged = [json.loads(line) for line in episodes(whole)[f"step-{step:06d}.jsonl.gz"].splitlines()]
        assert [e.answers[0].ids for e in played] == [tuple(row["answers"][0]["ids"]) for row in logged]
    rows = lines(whole)
    for agent in AGENTS:
        assert rows[0][f"sampler_ratio_max/{agent}"] == pytest.approx(1, abs=1e-3)  # nothing had been learnt yet
        assert max(row[f"sampler_ratio_max/{agent}"] for row in rows) > 1.01
        assert all(row[f"ratio/{agent}"] == pytest.approx(0, abs=1e-4) for row in rows)  # π_old is that of now


def test_killed_in_either_process_and_resumed_it_is_bit_identical(whole, tmp_path):
    path = tmp_path / "killed"
    with Run.create(path, ahead()):
        pass

    def until(steps: int) -> tuple[Warm, psutil.Process]:
        """The run once it has so many steps, and the process that plays for it."""
        command, environment = resuming(path)
        process, metrics = Warm(command, env=environment), path / "metrics.jsonl"
        deadline = time.monotonic() + 200
        while not metrics.exists() or len(metrics.read_text().splitlines()) < steps:
            assert process.poll() is None and time.monotonic() < deadline, "it ended before it could be killed"
            time.sleep(0.01)
        children = psutil.Process(process.pid).children(recursive=True)
        return process, next(child for child in children if "spawn_main" in str(child.cmdline()))

    process, player = until(1)
    player.kill()
    assert process.wait(120) == 1  # to try again may help
    saved = max(checkpoints(path))
    assert saved == len(lines(path)) < 4
    process, player = until(saved + 1)
    process.kill()
    process.wait()
    player.wait(60)  # it hears that nobody is there any more
    with Run.open(path) as run, Progress() as progress:
        train(run.recipe, run, progress)
    assert lines(path) == lines(whole) and episodes(path) == episodes(whole)
    assert same(checkpoint.load(checkpoints(path)[5]), checkpoint.load(checkpoints(whole)[5]))


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("macpo", ["engine.staleness=1"], 'staleness = 1 is not for method = "macpo" yet'),
        ("waltz", ["engine.staleness=2"], "engine.staleness"),
        ("waltz", ["engine.staleness=1", "attack.share=0.5"], "engine.staleness = 1 against the one before"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(recipe, settings, said, tmp_path, capsys):
    words = [word for setting in settings for word in ("--set", setting)]
    assert main(["train", recipe, *words, "--run", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "run").exists()
