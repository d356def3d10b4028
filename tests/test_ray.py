"""`choreo train --cluster` on a local Ray cluster of several nodes: as one process, though ranks and nodes die."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_ranks import ids, until_step
from test_trainer import small

from choreo import config
from choreo.cli import main
from choreo.cli.cluster import Share
from choreo.files import durable
from choreo.methods.waltz.trainer import train
from choreo.runs.folder import Run, is_finished
from choreo.runs.progress import Progress

STEPS = 8


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of three nodes with one core each. The first one is its head, and no rank's."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests a nicer rank would hardly run
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.slow
def test_a_rank_and_a_machine_are_lost_and_the_games_are_those_of_one_process(cluster, tmp_path):
    recipe, whole, run = small(steps=STEPS), tmp_path / "whole", tmp_path / "run"
    recipe = recipe.model_copy(update={"checkpoint_every": 1})
    with Run.create(whole, recipe) as one, Progress() as progress:
        train(recipe, one, progress)
    durable.write_text(tmp_path / "recipe.toml", config.to_toml(recipe))
    words = ["train", str(tmp_path / "recipe.toml"), "--run", str(run), "--cluster", cluster.address, "--json"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-m", "choreo", *words], text=True, **pipes)

    seed = random.SystemRandom().randrange(1000)
    print(f"seed {seed}")
    rng = random.Random(seed)
    until_step(run, rng.randint(1, 3), process)
    ranks = [one for one in _ranks(run) if one != process.pid]
    os.kill(rng.choice(ranks), signal.SIGKILL)
    until_step(run, rng.randint(5, 6), process)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    out, said = process.communicate(timeout=300)

    assert process.returncode == 0, said
    assert said.count("one of 2 ranks is lost (on ") == 2 and "); going on from step" in said
    assert json.loads(out.strip().splitlines()[-1])["systems"].keys() == {"base", "collaboration-untrained", "waltz"}
    assert is_finished(run) and ids(run) == ids(whole)


def _ranks(run: Path) -> list[int]:
    """The processes that train `run`, by what was typed for them."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        typed = file.read_bytes().split(b"\0")
        if str(run).encode() in typed and b"--cluster" not in typed:
            found.append(int(file.parent.name))
    return found


def test_shares_fit_on_the_machines():
    small, large = {"CPU": 4.0}, {"CPU": 10.0}
    assert Share.of([small, large], 0) == Share(2, 5, 0)  # as many ranks as machines, with the most cores that fit
    assert Share.of([small, large], 3) == Share(3, 4, 0)
    assert Share.of([small, large], 4) == Share(4, 3, 0)
    assert Share.of([small], 9) == Share(4, 1, 0)  # as many as fit
    cards = {"CPU": 64.0, "GPU": 8.0}
    assert Share.of([cards, cards, {"CPU": 8.0}], 0) == Share(16, 8, 1)
    assert Share.of([cards], 3) == Share(3, 8, 1)
    assert Share.of([cards, {"GPU": 1.0}], 0) == Share(8, 8, 1)  # a head without cores is no rank's
    assert Share.of([{"memory": 1.0}], 0) == Share.of([], 2) == Share(0, 0, 0)  # none, yet


def test_a_cluster_that_does_not_answer_is_said_in_one_line(tmp_path, capsys):
    pytest.importorskip("ray")
    assert main(["train", "waltz", "--cluster", "127.0.0.1:1", "--run", str(tmp_path / "run")]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("choreo: --cluster 127.0.0.1:1: no cluster answers: ") and not (tmp_path / "run").exists()
    for address in ("here", "ray://127.0.0.1:10001"):
        assert main(["train", "waltz", "--cluster", address, "--run", str(tmp_path / "run")]) == 2
        assert f"--cluster {address}: expected auto or host:port" in capsys.readouterr().err
    wrong = ["--set", "learning.steps=0", "--run", str(tmp_path / "run")]
    assert main(["train", "waltz", "--cluster", "127.0.0.1:1", *wrong]) == 2  # what is wrong here is said first
    assert "learning.steps" in capsys.readouterr().err
