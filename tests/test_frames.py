"""A checkpoint belongs to the chat format that its agents were trained in, and to the end of a turn there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from architectures import CHATML, PLAIN, make
from macpo import recipe as macpo_recipe

from choreo import config
from choreo.cli import main
from choreo.engine import checkpoint
from choreo.errors import BadInput
from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.waltz import trainer
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.server.pair import Resident

UNENDED = PLAIN.replace(" + eos_token", "")
OTHERS = {
    CHATML.replace("<|im_end|>", "<|endoftext|>"): "to end a turn with '<|im_end|>'; its chat template ends one with "
    "'<|endoftext|>'",
    CHATML.replace("m.role +", "'the ' + m.role +"): "with another chat template than is used now",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make("qwen", tmp_path_factory.mktemp("qwen"))


def trained(base: Path, folder: Path, template: str) -> tuple[Path, Path]:
    """A run of one step, and the file that its template is in."""
    file = folder / "t.jinja"
    file.write_text(template)
    recipe = WaltzRecipe.model_validate(
        {
            "world": {"train_prompts": 30, "heldout_prompts": 2},
            "learning": {"steps": 1, "prompts": 3, "samples": 2},
            "model": {"base": str(base), "rank": 2, "template": str(file)},
            "protocol": {"answer_tokens": 4, "feedback_tokens": 4},
            "stages": {"stage1_share": 0.0},
        }
    )
    with Run.create(folder / "run", recipe) as run, Progress() as progress:
        trainer.train(recipe, run, progress)
    return folder / "run", file


def through_every_door(run: Path, out: Path, capsys) -> dict[str, tuple[int, str]]:
    """What each command that takes up a checkpoint ends with, and what it tells."""
    commands = {"train": ["--resume", run], "eval": [run], "export": [run, "--out", out]}
    found = {}
    for command, given in commands.items():
        code = main([command, *map(str, given)])
        found[command] = code, "".join(capsys.readouterr())
    try:
        resident = Resident(run)
        resident.worker.close()
        found["serve"] = 0, "\n".join(resident.remarks)
    except BadInput as error:
        found["serve"] = 2, f"choreo: {error}\n"
    return found


def test_a_run_is_not_gone_on_with_in_another_chat_format(base, tmp_path, capsys):
    run, file = trained(base, tmp_path, CHATML)
    path, before, recipe = checkpoints(run)[1], sorted(run.rglob("*")), config.load(run / "recipe.toml")
    for other, why in OTHERS.items():
        file.write_text(other)
        with pytest.raises(BadInput, match=re.escape(f"{path}: was trained {why}")):
            trainer.restore(recipe, path)
    for command, (code, told) in through_every_door(run, tmp_path / "out", capsys).items():
        assert code == 2 and told.endswith(f"choreo: {path}: was trained {why}\n"), (command, told)
    assert sorted(run.rglob("*")) == before and not (tmp_path / "out").exists()
    file.write_text(CHATML + "{# as it was #}")
    assert trainer.restore(recipe, path).remarks == []
    forget_frames(path)
    assert trainer.restore(recipe, path).remarks == []  # its end is flagged special, which an early choreo found too


@pytest.mark.slow
def test_a_run_from_before_goes_on_and_says_what_might_be_wrong(base, tmp_path, capsys):
    run, _ = trained(base, tmp_path, UNENDED)
    forget_frames(checkpoints(run)[1])
    capsys.readouterr()
    for command, (code, told) in through_every_door(run, tmp_path / "out", capsys).items():
        assert code == 0 and told.count("does not say which token ended a turn in training") == 1, (command, told)


def forget_frames(path: Path) -> None:
    saved = checkpoint.load(path)
    del saved["frames"]
    torch.save(saved, path / "state.pt")


def test_macpos_agents_are_held_to_theirs(base, tmp_path):
    file = tmp_path / "t.jinja"
    file.write_text(CHATML)
    agents = {"teachers": (str(base),), "student": str(base), "template": str(file)}
    state = MacpoAgents.load(macpo_recipe(base, agents=agents)).state_dict()
    for other, why in OTHERS.items():
        file.write_text(other)
        with pytest.raises(BadInput, match=re.escape(f"here: student: was trained {why}")):
            MacpoAgents.load(macpo_recipe(base, agents=agents)).load_state_dict(state, "here")
    file.write_text(UNENDED)
    loaded = MacpoAgents.load(macpo_recipe(base, agents=agents))
    loaded.load_state_dict({name: {k: v for k, v in of.items() if k != "frame"} for name, of in state.items()}, "here")
    assert sum("here: teacher-1 does not say which token" in remark for remark in loaded.remarks) == 1
