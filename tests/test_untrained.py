"""A run is measured beside what it began as, without another model in memory."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from macpo import recipe as macpo_recipe
from safetensors.torch import load_file, save_file
from test_engine_gradients import make_team

from choreo import config
from choreo.engine.agent import Team
from choreo.engine.local import LocalEngine, Untrained
from choreo.engine.requests import Request
from choreo.experiment.run import check, run_recipe
from choreo.judges.formats.wildguard import WildGuard
from choreo.judges.local import LocalJudge
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.models.model_folder import ALIGNMENT
from choreo.runs.folder import Run
from choreo.runs.progress import Progress

REQUESTS = [Request((2, 7, 30, n), (n, "answer")) for n in range(8)]


@pytest.mark.numeric
@pytest.mark.parametrize("train", ["lora", "full"])
def test_untrained_agents_on_a_trained_team_say_what_a_fresh_team_says(train, tiny_folder):
    trained, fresh = make_team(tiny_folder, 0.1, train=train), Team.load(tiny_folder, train=train, rank=4, seed=8)
    now, before, then = (
        engine.sample("feedback", REQUESTS, max_new_tokens=9)
        for engine in (
            LocalEngine(trained, pad_id=0, end_id=1),
            Untrained(trained, pad_id=0, end_id=1),
            LocalEngine(fresh, pad_id=0, end_id=1),
        )
    )
    assert before == then  # ids, log-probabilities to the bit, and the version
    assert now != then
    pairs = [(request.context, done.ids) for request, done in zip(REQUESTS, then, strict=True)]
    untrained = Untrained(trained, pad_id=0, end_id=1).score("feedback", pairs)
    assert untrained == LocalEngine(fresh, pad_id=0, end_id=1).score("feedback", pairs)


def test_what_the_base_says_is_drawn_once_and_what_another_policy_says_each_time(tiny_folder, monkeypatch):
    team, kept, drawn = make_team(tiny_folder, 0.1), {}, []
    run = team.run
    monkeypatch.setattr(team, "run", lambda *given: drawn.append(given) or run(*given))
    one, other = (Untrained(team, kept=kept, pad_id=0, end_id=1) for _ in range(2))
    first = one.sample("conversation", REQUESTS, max_new_tokens=9)
    assert drawn and not drawn.clear()
    assert other.sample("feedback", REQUESTS[3:], max_new_tokens=9) == first[3:] and not drawn
    assert (
        other.sample("feedback", [*REQUESTS, replace(REQUESTS[0], key=(99,))], max_new_tokens=9)[:8] == first and drawn
    )
    for longer in ({"max_new_tokens": 8}, {"max_new_tokens": 9, "temperature": 0.0}):
        assert one.sample("conversation", REQUESTS, **longer) == Untrained(team, pad_id=0, end_id=1).sample(
            "conversation", REQUESTS, **longer
        )
    warm = Untrained(team, policies={"feedback": "feedback"}, kept=kept, pad_id=0, end_id=1)
    now = LocalEngine(team, pad_id=0, end_id=1).sample("feedback", REQUESTS, max_new_tokens=9)
    assert warm.sample("feedback", REQUESTS, max_new_tokens=9) == now != first


@pytest.mark.numeric
@pytest.mark.parametrize("padding", range(0, 64, 4))
def test_where_a_file_has_its_weights_changes_nothing(padding, tiny_folder, tmp_path):
    """Files with equal weights at other addresses: a product with one row rounded by the address of the matrix."""
    folder = shutil.copytree(tiny_folder, tmp_path / "moved")
    file = folder / "model.safetensors"
    save_file(load_file(file), file, {"format": "pt", "padding": "x" * padding})
    teams = [Team.load(path, rank=4, seed=8) for path in (tiny_folder, folder)]
    judges = [LocalJudge(WildGuard(), str(path), device="cpu")._model for path in (tiny_folder, folder)]
    for model in (*(team.decoder for team in teams), *judges):
        assert not any(value.data_ptr() % ALIGNMENT for value in (*model.parameters(), *model.buffers()))
    ids = torch.tensor([REQUESTS[0].context])
    with torch.inference_mode():
        assert torch.equal(*(judge(input_ids=ids[:, :1]).logits for judge in judges))  # a product with one row
        assert torch.equal(*(judge(input_ids=ids).logits for judge in judges))
    one, other = (LocalEngine(team, pad_id=0, end_id=1).sample(None, REQUESTS[:1], max_new_tokens=9) for team in teams)
    assert one == other  # log-probabilities to the bit


def most_at_once(recipe: config.Recipe, path: Path, monkeypatch) -> int:
    """How many models are in memory at once, at most, while `recipe` is checked, trained and measured."""
    there: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()  # a layer of each
    counts, plain = [], Team.__init__

    def counted(team: Team, *given, **named) -> None:
        plain(team, *given, **named)
        there.add(team.decoder.model.base_model.layers[0])
        counts.append(len(there))

    monkeypatch.setattr(Team, "__init__", counted)
    gc.collect()
    gc.disable()  # what only a collection at a lucky moment would free counts as there
    try:
        check(recipe)
        with Run.create(path, recipe) as run, Progress() as progress:
            run_recipe(run, progress)
    finally:
        gc.enable()
    return max(counts)


def test_waltz_takes_one_model_from_its_check_to_its_last_measure(tiny_folder, tmp_path, monkeypatch):
    recipe = WaltzRecipe.model_validate(
        {
            "world": {"train_prompts": 30, "heldout_prompts": 1},
            "protocol": {"answer_tokens": 4, "feedback_tokens": 4},
            "model": {"base": str(tiny_folder), "rank": 2, "recompute": True},
            "learning": {"steps": 1, "prompts": 2, "samples": 1},
        }
    )
    assert most_at_once(recipe, tmp_path / "run", monkeypatch) == 1


@pytest.mark.slow
def test_macpo_takes_a_model_for_each_member_with_its_ceiling_too(tiny_folder, tmp_path, monkeypatch):
    recipe = macpo_recipe(
        tiny_folder,
        ceiling=True,
        world={"heldout_prompts": 1},
        agents={"recompute": True},
        tuning={"epochs": 1, "negative_epochs": 1},
    )
    assert most_at_once(recipe, tmp_path / "run", monkeypatch) == 3
