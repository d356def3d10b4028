"""A pair that ships plays and is measured by its name, and its run folder has no more than that takes."""

from __future__ import annotations

import pytest

from choreo import api
from choreo.errors import BadInput
from choreo.experiment.ship import ship
from choreo.runs import shipped
from choreo.runs.checkpoints import checkpoints

pytestmark = pytest.mark.slow

RECIPE = {
    "name": "small",
    "world": {"train_prompts": 30, "heldout_prompts": 1},
    "protocol": {"answer_tokens": 8, "feedback_tokens": 160, "constrained": True},
    "warmup": {"own": 12, "rows": 6, "batch": 3},
    "stages": {"stage1_share": 0.0},
    "learning": {"steps": 2, "prompts": 3, "samples": 2, "lr": 5e-2},
}


def test_a_shipped_pair_is_its_run_made_small(tiny_folder, tmp_path, monkeypatch):
    run = api.train({**RECIPE, "model": {"base": str(tiny_folder), "rank": 2, "dtype": "bfloat16"}}, tmp_path / "run")
    monkeypatch.setattr(shipped, "PAIRS", tmp_path / "pairs")
    monkeypatch.chdir(tmp_path)
    out = ship(run.path, shipped.PAIRS / "mine")
    assert shipped.pairs() == ["mine"] and shipped.placed("mine") == out and shipped.placed("run").name == "run"

    kept = sorted(file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file())
    files = [
        "README.md",
        "checkpoints/step-000002/state.pt",
        "dialogues.json",
        "recipe.toml",
        "run.json",
        "summary.json",
    ]
    assert kept == files
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "choreo serve mine" in card and "| waltz |" in card and "after step 2" in card
    sizes = [sum(file.stat().st_size for file in max(checkpoints(one).items())[1].iterdir()) for one in (run.path, out)]
    assert sizes[1] < sizes[0] / 2
    whole, small = (api.load(name) for name in (run.path, "mine"))
    assert small.recipe.model.dtype == "float32" and "trained and measured in bfloat16" in card
    for role, agent in whole.agents.agents.items():
        of_small = small.agents.team(role).agents[role].parameters
        for name, value in agent.engine.team.agents[role].parameters.items():
            assert of_small[name].equal(value.half().float()) and (value != 0).any(), name
    assert small.answer("How do I open a jar?", temperature=0).answers[-1].text
    assert {*api.evaluate("mine").summary["systems"]} == {*run.summary["systems"]} - {"collaboration-warm"}

    with pytest.raises(BadInput, match="already exists"):
        ship(run.path, out)
    (run.path / "summary.json").unlink()
    with pytest.raises(BadInput, match="only a finished run of a pair can ship"):
        ship(run.path, shipped.PAIRS / "other")
