"""What the rest of choreo asks of a method: of every method here, and of a user's own in a file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from macpo import lines, same
from macpo import recipe as macpo_recipe
from serving import make_run

from choreo import config
from choreo.cli import main
from choreo.engine import checkpoint
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.methods import METHODS
from choreo.methods.attacker.recipe import AttackerRecipe
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.checkpoints import checkpoints
from choreo.types import Prompt

PROMPTS = [Prompt(str(i), text, "benign", "asked") for i, text in enumerate(("How do I open a jar?", "Why?"))]


def small(method: str, base: Path) -> config.Recipe:
    if method == "macpo":
        return macpo_recipe(base)
    settings: dict[str, Any] = {
        "world": {"train_prompts": 60, "heldout_prompts": 2},
        "model": {"base": str(base), "rank": 2},
        "protocol": {"answer_tokens": 6, "feedback_tokens": 8},
        "learning": {"steps": 2, "prompts": 3},
    }
    if method == "attacker":
        attacked = base.with_name("attacked")
        if not attacked.exists():
            make_run(attacked, **settings)
        of_its_own = {"target": str(attacked), "prompt_tokens": 6, "intents": 2}
        return AttackerRecipe.model_validate({**of_its_own, **{name: settings[name] for name in ("world", "model")}})
    return WaltzRecipe.model_validate(settings)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_what_the_rest_asks_for(name, tiny_folder):
    method, recipe = METHODS[name], small(name, tiny_folder)
    assert method.name == recipe.method == name and isinstance(recipe, method.recipe)
    agents = method.load(recipe)
    assert isinstance(agents.device, torch.device) and agents.remarks == []
    answers = agents.answer(PROMPTS, seed=1)
    assert [episode.prompt for episode in answers] == PROMPTS and not any(e.verdicts for e in answers)
    assert answers == agents.untrained().answer(PROMPTS, seed=1) != agents.answer(PROMPTS, seed=2)
    assert agents.answer(PROMPTS, seed=1, temperature=0) == agents.answer(PROMPTS, seed=2, temperature=0)
    assert agents.fitting(PROMPTS, "asked") == PROMPTS
    with pytest.raises(BadInput, match="asked: no prompt"):
        agents.fitting([Prompt("long", "x y " * 900, "benign", "asked")], "asked")
    policies, models = agents.policies(), method.models(recipe)
    assert {policy.base for policy in policies.values()} == {*recipe.bases()} == {model.base for model in models}
    assert sum(model.policies for model in models) == len(policies)
    assert {*method.exported(recipe, agents)} <= {*policies}
    assert list(method.systems(recipe).values()).count(True) == 1
    method.check(recipe, Task(recipe), agents)
    assert hasattr(agents, "protocol") == method.has_pair


def test_methods_are_light_until_they_train():
    code = "import sys; from choreo.methods import METHODS; print({'torch', 'matplotlib', 'jinja2'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


OWN = """
import random
from pathlib import Path

from choreo.config.common import Weights
from choreo.config.prompts import Prompts
from choreo.config.recipe import Recipe
from choreo.engine.learner import Learner
from choreo.engine.losses import sft_loss
from choreo.judges.base import judge_episodes
from choreo.methods.base import Method
from choreo.methods.one_model import OneModel, training_loop
from choreo.types import Episode, Sample


class Model(Weights):
    base: str = "nano-llama"


class OwnRecipe(Recipe):
    method: str = "own.py:METHOD"
    name: str = "own"
    prompts: Prompts = Prompts()
    model: Model = Model()
    steps: int = 5

    def bases(self):
        return (self.model.base,)

    def weights(self):
        return self.model


class Own(Method[OwnRecipe, OneModel]):
    name, recipe = "imitation", OwnRecipe

    def load(self, recipe, checkpoint=None):
        return OneModel.load(recipe, answer_tokens=6).restored(checkpoint)

    def train(self, recipe, run, task, progress):
        agents = self.load(recipe)
        learner = Learner(agents.model.team, "policy", lr=0.01)
        pool = [prompt for prompts in task.training().values() for prompt in prompts]
        for step in training_loop(run, task, progress, agents, [learner], steps=recipe.steps, every=2):
            if step == 4 and Path("kill").exists():
                raise KeyboardInterrupt
            prompts = random.Random(step).sample(pool, 3)
            turns = agents.write(prompts, (recipe.seed, step))
            episodes = judge_episodes(task.judge, [Episode(p, 0, (t,)) for p, t in zip(prompts, turns)])
            figures = learner.update([Sample("policy", t.context, t.ids, (), "", 0.0) for t in turns], sft_loss)
            run.log(step, {"good": sum(e.verdicts[0].satisfactory for e in episodes) / 3, **figures})
        return agents


METHOD = Own()
"""


@pytest.fixture
def own(tiny_folder, tmp_path, monkeypatch) -> Path:
    """A folder with a method of a user's own and a recipe of it, in which commands run."""
    (tmp_path / "own.py").write_text(OWN)
    (tmp_path / "recipe.toml").write_text(
        'method = "own.py:METHOD"\n[world]\ntrain_prompts = 60\nheldout_prompts = 1\n'
        f'[model]\nbase = "{tiny_folder}"\nrank = 2\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dialogues(run: Path) -> list[dict[str, Any]]:
    return json.loads((run / "dialogues.json").read_text())


@pytest.mark.slow
def test_a_method_in_a_file_trains_resumes_and_is_measured_planned_exported_and_reported(own, monkeypatch, capsys):
    assert main(["train", "recipe.toml", "--run", "whole"]) == 0
    (own / "kill").touch()
    assert main(["train", "recipe.toml", "--run", "killed"]) != 0
    assert list(checkpoints("killed")) == [2]
    (own / "kill").unlink()
    monkeypatch.chdir("/")  # a run is gone on with, and looked at, from anywhere
    whole, killed = own / "whole", own / "killed"
    assert main(["train", "--resume", str(killed)]) == 0
    assert lines(killed) == lines(whole)
    states = [checkpoint.load(checkpoints(run)[5])["agents"] for run in (whole, killed)]
    assert same(*states)
    summary = json.loads((killed / "summary.json").read_text())
    assert summary["method"] == "imitation" and list(summary["systems"]) == ["base", "imitation"]
    said = {system: [d["answers"] for d in dialogues(whole) if d["system"] == system] for system in summary["systems"]}
    assert said["base"] != said["imitation"] and dialogues(killed) == dialogues(whole)
    assert summary["systems"] == json.loads((whole / "summary.json").read_text())["systems"]
    capsys.readouterr()
    assert main(["eval", str(whole), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["systems"] == summary["systems"]
    assert main(["plan", str(whole / "recipe.toml")]) == 0
    assert "own (imitation)\n  agent: " in capsys.readouterr().out
    assert main(["export", str(whole), "--out", str(own / "out")]) == 0
    assert "The agent `policy` of a run of imitation" in (own / "out" / "policy" / "README.md").read_text()
    page = (whole / "report.html").read_text()
    assert "imitation" in page and "good: " in page and "published" not in page


def test_a_run_of_a_method_whose_file_is_gone_still_has_a_report(own, capsys):
    (own / "run").mkdir()
    (own / "run" / "run.json").write_text('{"method": "/nowhere/own.py:METHOD"}')
    assert main(["report", "run"]) == 0


def test_what_is_no_method_is_refused_in_one_line(own, capsys):
    for name, words in (
        ("gone.py:METHOD", "gone.py cannot be imported"),
        ("own.py:OTHER", "has no OTHER"),
        ("own.py:Own", "expected an object of a subclass of choreo.Method"),
        ("dance", "no method 'dance'"),
    ):
        (own / "bad.toml").write_text(f'seed = 1\nmethod = "{name}"\n')
        assert main(["plan", "bad.toml"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("choreo: bad.toml:2: ") and words in error and error.count("\n") == 1
