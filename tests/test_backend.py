"""A backend of one's own: one file with a class, and nothing in choreo that knows of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_engine_gradients import make_samples
from test_trainer import lines

from choreo import config
from choreo.cli import main
from choreo.engine.losses import PolicyLoss
from choreo.engine.requests import Request
from choreo.methods.waltz.remote import RemotePair
from choreo.runs.checkpoints import checkpoints
from choreo.types import CONVERSATION, FEEDBACK

MINE = """
from choreo.clients.drawn import Drawn
from choreo.clients.training_service import Sampler, Saved, TrainedAdapter, TrainingService, Updated


class Says(Sampler):
    def __init__(self, token):
        self.token = token

    def draw(self, asked, *, tokens, temperature, end_id):
        return [[Drawn((self.token, end_id), (-1.0, -1.0))] * one.count for one in asked]


class Counter(TrainedAdapter):
    def __init__(self, steps=0):
        self.steps = steps

    def scores(self, texts):
        return [(-1.0,) * len(ids) for _, ids in texts]

    def update(self, actions, step):
        self.steps += 1
        return Updated([one.old for one in actions], None)

    def sampler(self):
        return Says(20 + self.steps)

    def save(self, name):
        return Saved(f"state {self.steps}", f"weights {self.steps}")


class Service(TrainingService):
    def __init__(self, url, model):
        self.url, self.model = url or "here", model

    @staticmethod
    def fetch(state):
        return f"fetch the {state}"

    def connect(self):
        self.positions = 300

    def base(self):
        return Says(20)

    def kept(self, weights):
        return Says(20 + int(weights.split()[1]))

    def begin(self, rank, seed):
        return Counter()

    def resume(self, state):
        return Counter(int(state.split()[1]))
"""


def settings(folder: Path) -> list[str]:
    (folder / "mine.py").write_text(MINE)
    small = ["learning.steps=2", "learning.prompts=3", "world.train_prompts=60", "world.heldout_prompts=1"]
    return [f"engine.backend={folder}/mine.py:Service", "learning.beta=0", "model.base=nano-llama", *small]


def test_each_version_is_played_by_its_own_weights_and_taken_up_where_it_was_saved(tmp_path):
    made = config.load("waltz", settings(tmp_path))
    pair = RemotePair(made)
    assert pair.engine.positions == 300 and not pair.exact
    learner = pair.learner(CONVERSATION, made.learning, 1e-3)
    samples = make_samples(3)
    for version in range(2):
        [one, *_] = pair.engine.sample(CONVERSATION, [asked(version)], max_new_tokens=4)
        assert one.ids[0] == 20 + version == 20 + pair.engine.version(CONVERSATION)
        figures = learner.update(samples, PolicyLoss())
        assert "loss_gap" not in figures and figures["ratio"] == 0 and figures["sequences"] == len(samples)
    saved = learner.state_dict()
    assert saved == {"agent": {"version": 2, "weights": "weights 2"}, "optimizer": {"state": "state 2"}}
    played, resumed = RemotePair(made), RemotePair(made)
    played.take(CONVERSATION, saved["agent"])
    resumed.learner(CONVERSATION, made.learning, 1e-3).load_state_dict(saved)
    for other in (played, resumed):
        assert other.engine.sample(CONVERSATION, [asked(9)], max_new_tokens=4)[0].ids[0] == 22
        assert other.engine.sample(FEEDBACK, [asked(9)], max_new_tokens=4)[0].ids[0] == 20
        assert other.untrained().engine.sample(CONVERSATION, [asked(9)], max_new_tokens=4)[0].ids[0] == 20
    with pytest.raises(ValueError, match="is only sampled"):
        played.engine.adapter(CONVERSATION)


def asked(number: int) -> Request:
    return Request((2, 7), ("asked", number))


def test_it_is_trained_by_the_command(tmp_path, capsys):
    both = ("checkpoint_every=1", "stages.stage1_share=0.5")  # in step 1 the feedback agent learns alone
    given = [word for one in (*settings(tmp_path), *both) for word in ("--set", one)]
    run = tmp_path / "run"
    assert main(["train", "waltz", "--run", str(run), *given]) == 0
    assert [row["step"] for row in lines(run)] == [1, 2] and [*checkpoints(run)] == [1, 2]
    capsys.readouterr()
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.endswith("none is here: fetch the state 1; fetch the state 2")
