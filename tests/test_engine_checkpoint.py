"""What is saved comes back bit for bit, or was never there."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from test_engine_gradients import make_samples, make_team
from transformers import AutoModelForCausalLM

from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.export import export
from choreo.engine.learner import Learner
from choreo.engine.losses import PolicyLoss


@pytest.mark.parametrize("train", ["lora", "full"])
def test_resumed_training_is_bit_identical(train, tiny_folder, tmp_path):
    def learner() -> Learner:
        return Learner(Team.load(tiny_folder, train=train, rank=4, seed=1), "conversation", lr=1e-2)

    batches = [make_samples(seed, groups=3) for seed in range(30, 34)]
    straight, interrupted = learner(), learner()
    metrics = [straight.update(batch, PolicyLoss()) for batch in batches]
    for batch in batches[:2]:
        interrupted.update(batch, PolicyLoss())
    checkpoint.save(tmp_path / "a" / "step-2", {"learner": interrupted.state_dict(), "step": 2})
    state = checkpoint.load(tmp_path / "a" / "step-2")
    assert state["step"] == 2
    resumed = learner()
    resumed.load_state_dict(state["learner"])
    assert [resumed.update(batch, PolicyLoss()) for batch in batches[2:]] == metrics[2:]
    assert resumed.team.version == straight.team.version == {"conversation": 4, "feedback": 0}
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters, straight.parameters, strict=True))
    fresh = learner()
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters, straight.parameters, strict=True))


def test_a_crash_while_saving_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    state = {"x": torch.tensor([1.0, float("nan"), -0.0]), "n": 3, "names": ["a"]}

    def crash(value, file):
        file.write(b"half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", crash)
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(tmp_path / "step-1", state)
    assert not (tmp_path / "step-1").exists()
    checkpoint.save(tmp_path / "step-1", state)
    found = checkpoint.load(tmp_path / "step-1")
    assert found["n"] == 3 and found["x"].numpy().tobytes() == state["x"].numpy().tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"]
    with pytest.raises(FileExistsError):
        checkpoint.save(tmp_path / "step-1", state)


def test_weights_of_another_shape_are_refused(tiny_folder):
    state = Team.load(tiny_folder, rank=4, seed=1).state_dict("feedback")
    with pytest.raises(ValueError, match="do not fit agent 'feedback'"):
        Team.load(tiny_folder, rank=8, seed=1).load_state_dict("feedback", state)


def test_initial_adapters_follow_the_seed_and_not_the_global_generator(tiny_folder):
    torch.manual_seed(1)
    first = Team.load(tiny_folder, seed=4).state_dict("feedback")["weights"]
    torch.manual_seed(2)
    again = Team.load(tiny_folder, ("feedback",), seed=4).state_dict("feedback")["weights"]
    other = Team.load(tiny_folder, seed=5).state_dict("feedback")["weights"]
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("train", ["lora", "full"])
def test_exported_agents_say_the_same_elsewhere(train, tiny_folder, tmp_path):
    team = make_team(tiny_folder, 0.1, train=train)
    export(team, "feedback", tmp_path)
    if train == "lora":
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path).eval()
    else:
        model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ids = torch.arange(2, 40)[None]
    with torch.inference_mode():
        hidden, head = team.run(team.weights("feedback"), {"input_ids": ids, "use_cache": False})
        torch.testing.assert_close(head.logits(hidden), model(ids).logits[0], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(head.logits(hidden), team.decoder.model(ids).logits[0], atol=0.1)
