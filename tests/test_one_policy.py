"""One policy for both roles (`model.one_policy`): what either role learns is learnt by both; all else is a pair's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_trainer import episodes, lines, same

from choreo import config
from choreo.engine import checkpoint
from choreo.errors import BadInput
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import restore, train
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import AGENTS, CONVERSATION, FEEDBACK

SET = [
    f"{key}={value}"
    for key, value in {
        "seed": 3,
        "world.train_prompts": 30,
        "world.heldout_prompts": 1,
        "model.base": "nano-llama",
        "stages.stage1_share": 0.34,
        "learning.steps": 3,
        "learning.prompts": 3,
        "learning.lr": 0.01,
        "checkpoint_every": 1,
    }.items()
]


def trained(made: WaltzRecipe, path: Path) -> Pair:
    with Run.open(path) if path.exists() else Run.create(path, made) as run, Progress() as progress:
        return train(made, run, progress)


@pytest.mark.parametrize("how", ["lora", "full"])
def test_each_role_moves_the_other_and_a_run_goes_on_where_it_was(how, tmp_path, monkeypatch):
    made = config.load("waltz-one-policy", [*SET, f"model.train={how}"])
    pair = trained(made, tmp_path / "whole")
    team = pair.team(CONVERSATION)
    assert team.agents[FEEDBACK] is team.agents[CONVERSATION]
    rows = lines(tmp_path / "whole")
    assert [row["stage"] for row in rows] == [1, 2, 2]
    # Stage 1 learns from reviews alone, and the answers of step 2 are those of other weights than the reference's.
    assert "loss/conversation" not in rows[0] and abs(rows[0]["kl/feedback"]) < 1e-6 < rows[1]["kl/conversation"]
    # Answers are learnt from first; reviews then find weights that have moved since they were drawn.
    assert rows[1]["ratio/conversation"] < 1e-4 < rows[1]["ratio/feedback"]
    assert {agent: team.version[agent] for agent in AGENTS} == dict.fromkeys(AGENTS, 1 + 2 + 2)
    saved = checkpoint.load(checkpoints(tmp_path / "whole")[3])["agents"]
    assert same(saved[CONVERSATION]["agent"], saved[FEEDBACK]["agent"])
    again = restore(made, checkpoints(tmp_path / "whole")[3]).team(FEEDBACK)
    assert all(torch.equal(value, again.agents[CONVERSATION].parameters[name]) for name, value in parameters(team))

    def kill(run, step, *_):
        if step == 3:
            raise KeyboardInterrupt
        plain(run, step, *_)

    plain = Run.save_episodes
    monkeypatch.setattr(Run, "save_episodes", kill)
    with pytest.raises(KeyboardInterrupt):
        trained(made, tmp_path / "killed")
    monkeypatch.undo()
    trained(made, tmp_path / "killed")
    assert lines(tmp_path / "killed") == rows
    assert episodes(tmp_path / "killed") == episodes(tmp_path / "whole")
    assert same(*(checkpoint.load(checkpoints(tmp_path / name)[3]) for name in ("whole", "killed")))


def parameters(team):
    return team.agents[CONVERSATION].parameters.items()


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("model.feedback_base=nano-qwen", "one policy has one base"),
        ("stages.train=feedback", 'train = "feedback" trains one agent alone'),
        ("warmup.own=5", "trains the feedback agent alone"),
        ("engine.backend=tinker", "the service has an adapter for each agent"),
    ],
)
def test_what_takes_two_policies_is_refused(setting, why):
    with pytest.raises(BadInput, match=why):
        config.load("waltz-one-policy", [setting])
