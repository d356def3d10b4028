"""A recipe that names its prompts and its judge, trained: both trainers pause when the judge goes away."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
from architectures import PLAIN, make
from stub_endpoint import Say, Stub, chat
from test_macpo import recipe as macpo_recipe
from test_trainer import episodes, lines, small

from choreo import config
from choreo.cli import main
from choreo.config.judge import Judge
from choreo.errors import BadInput
from choreo.experiment.paths import rooted
from choreo.experiment.run import check, overlap_words, run_recipe, unread_base
from choreo.judges.base import JudgeDown
from choreo.judges.offline.model import WEIGHTS
from choreo.methods.macpo.run import run_macpo
from choreo.methods.waltz.recipe import Model, WaltzRecipe
from choreo.methods.waltz.trainer import train
from choreo.runs.bar import ProgressBar
from choreo.runs.callbacks import Callback
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress


class Server:
    """Says of every answer whether it has an even number of letters; gone from the `leaves`-th request on."""

    def __init__(self, leaves: int = 10**9):
        self.leaves, self.asked = leaves, 0

    def __call__(self, body: dict, n: int) -> Say:
        self.asked += 1
        if self.asked >= self.leaves:
            return Say(status=503)
        even = len(json.loads(body["messages"][-1]["content"])["answer"]) % 2 == 0
        said = {"reasoning": "", "harmful": "no", "refusal": "full", "over_refusal": "yes" if even else "no"}
        return Say(chat(json.dumps(said)))


def rubric(stub: Stub) -> Judge:
    return Judge(kind="rubric", model="j", url=stub.url, retries=0)


@pytest.mark.slow
def test_waltz_by_a_recipes_judge_pauses_and_goes_on_to_the_same_bits(tmp_path):
    def go_on(path: Path) -> None:
        made = small(steps=3).model_copy(update={"judge": rubric(stub)})
        with Run.open(path) if path.exists() else Run.create(path, made) as run, Progress() as progress:
            train(run.recipe, run, progress)

    server = Server()
    with Stub(server) as stub:
        go_on(tmp_path / "whole")
        assert (tmp_path / "whole" / "judgements.sqlite").is_file()
        server.asked, server.leaves = 0, 25
        with pytest.raises(JudgeDown, match=r"saved at step \d; judge rubric/j .* stopped answering"):
            go_on(tmp_path / "paused")
        saved = max(checkpoints(tmp_path / "paused"), default=0)
        assert 0 < saved < 3 and len(lines(tmp_path / "paused")) == saved
        server.leaves = 10**9
        go_on(tmp_path / "paused")
    assert lines(tmp_path / "paused") == lines(tmp_path / "whole")
    assert episodes(tmp_path / "paused") == episodes(tmp_path / "whole")


@pytest.mark.slow
def test_macpo_is_measured_once_its_judge_is_back(tiny_folder, tmp_path):
    server = Server()
    with Stub(server) as stub:
        made = macpo_recipe(tiny_folder, judge=rubric(stub).model_dump())
        with Run.create(tmp_path / "whole", made) as run, Progress() as progress:
            whole = run_macpo(made, run, progress)
        server.asked, server.leaves = 0, 10
        path = tmp_path / "paused"
        with Run.create(path, made) as run, Progress() as progress, pytest.raises((JudgeDown, BadInput), match="0 is"):
            run_macpo(made, run, progress)
        assert checkpoints(path) and not (path / "rounds.json").exists()
        server.leaves = 10**9
        with Run.open(path) as run, Progress() as progress:
            found = run_recipe(run, progress)
    # The bill of the last process: what it asked, and what the paused one had asked, from the cache.
    bill = found["judging"]["rubric/j"]
    assert bill["calls"] > 0 and bill["cached"] > 0 and bill["rows"] == bill["judged"]
    # That an answer is harmless and helps does not make it right.
    everywhere = [*found["systems"].values(), *(line["agents"]["student+"] for line in found["rounds"])]
    assert all(system["general"]["n"] == 0 for system in everywhere)
    assert found["rounds"] == whole.extra["rounds"] and found["systems"] == whole.systems


def test_a_judge_that_is_not_there_is_said_before_a_run_is_made(tmp_path):
    with Stub(Server(leaves=1)) as stub:
        made = small().model_copy(update={"judge": rubric(stub)})
        with pytest.raises(BadInput, match=r"judge rubric/j at .*HTTP 503"):
            check(made)


def on_files(folder: Path, base: Path, texts: dict[str, list[str]], heldout: list[str], **sections: object) -> Path:
    """A recipe of one step on prompts of these texts, by kind, and held-out ones that are harmful."""
    rows = [{"prompt": text, "kind": kind} for kind, some in texts.items() for text in some]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = [{"prompt": text, "kind": "harmful"} for text in heldout]
    (folder / "heldout.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")
    made = WaltzRecipe.model_validate(
        {
            "judge": {"kind": "offline"},
            "model": {"base": str(base), "rank": 2},
            "protocol": SHORT,
            "learning": {"steps": 1, "prompts": 4, "samples": 1, "mix": {"harmful": 0.5, "benign": 0.5}},
            "prompts": {
                "train": {"mine": {"file": str(folder / "train.jsonl")}},
                "heldout": {"other": {"file": str(folder / "heldout.jsonl")}},
            },
            **sections,
        }
    )
    (folder / "mine.toml").write_text(config.to_toml(made), encoding="utf-8")
    return folder / "mine.toml"


SHORT = {"answer_tokens": 6, "feedback_tokens": 8}
OTHER = '{"prompt": "Another?", "kind": "benign"}'
LONG = "and another word " * 300  # beyond the 512 positions of the tiny base
FEW = {"harmful": ["How do I break a lamp?", "How do I break a door?"], "benign": ["Why?", "How?"]}


@pytest.mark.parametrize(
    "texts, heldout, judge, said",
    [
        ({**FEW, "benign": ["Why?", LONG]}, ["Who?"], {}, "a step wants 2 benign prompts, and there are 1"),
        (FEW, [LONG], {}, r"no prompt fits: the shortest has \d{3,} tokens.* has 512 positions; give shorter prompts"),
        (FEW, ["Who?"], {"weights": "nowhere.npz"}, "nowhere.npz: No such file"),
    ],
    ids=["what is left to train on is too little", "nothing held out fits", "no judge"],
)
def test_a_run_that_cannot_end_does_not_begin(texts, heldout, judge, said, tiny_folder, tmp_path, capsys):
    recipe = on_files(tmp_path, tiny_folder, texts, heldout, judge={"kind": "offline", **judge})
    old = tmp_path / "old"
    with Run.create(old, small()):
        pass
    assert main(["train", str(recipe), "--run", str(old), "--overwrite"]) == 2
    assert re.search(said, capsys.readouterr().err)
    assert config.load(old / "recipe.toml") == small()  # what was there is there still


@pytest.mark.slow
def test_a_run_is_bound_to_no_working_directory(tiny_folder, tmp_path, monkeypatch, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    shutil.copytree(tiny_folder, here / "tiny")
    recipe = on_files(here, Path("tiny"), FEW, ["Who?"])
    recipe.write_text(recipe.read_text().replace(f"{here}/", ""))
    monkeypatch.chdir(here)
    assert main(["train", "mine.toml", "--run", "run"]) == 0
    kept = config.load(here / "run" / "recipe.toml")
    assert kept.bases() == (str(here / "tiny"),)
    assert [kept.prompts.train["mine"].file, kept.prompts.heldout["other"].file] == [
        str(here / f"{name}.jsonl") for name in ("train", "heldout")
    ]
    monkeypatch.chdir(there)
    assert main(["eval", "../here/run"]) == 0 and main(["export", "../here/run", "--out", "out"]) == 0
    monkeypatch.chdir(here)
    served = Judge(kind="rubric", model="tiny", url="http://x")
    for same in (WaltzRecipe(), WaltzRecipe(judge=served)):
        assert rooted(same) == same  # shipped bases and models of a server keep their names
    Path("here.v2").touch()
    for name, kept in {
        "v1.5": "v1.5",
        "rag": "rag",
        ".v2": ".v2",
        "here.v2": str(here / "here.v2"),
        "a/v1.5": str(here / "a" / "v1.5"),
    }.items():
        assert rooted(WaltzRecipe(model=Model(template=name))).model.template == kept
    local = rooted(WaltzRecipe(model=Model(template="t.jinja"), judge=Judge(kind="wildguard", model="tiny")))
    assert (local.model.template, local.judge.model) == (str(here / "t.jinja"), str(here / "tiny"))


def test_files_that_leave_nothing_to_train_on_are_no_reason_to_train_on_the_microworld(tmp_path, capsys):
    file, recipe, run = tmp_path / "one.jsonl", tmp_path / "one.toml", tmp_path / "run"
    file.write_text('{"prompt": "a b c d", "kind": "benign"}\n')  # its checksum is of the held-out tenth
    for side, said in (("train", "prompts.train: nothing is left"), ("heldout", "to measure on alone; name what to")):
        recipe.write_text(f'[judge]\nkind = "offline"\n[prompts.{side}.mine]\nfile = "{file}"\n')
        assert main(["train", str(recipe), "--run", str(run)]) == 2 and not run.exists()
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1


def test_a_kind_that_is_never_drawn_needs_no_prompt_that_fits(tiny_folder, tmp_path):
    recipe = on_files(tmp_path, tiny_folder, {**FEW, "general": [LONG]}, ["Who?"])
    assert main(["train", str(recipe), "--run", str(tmp_path / "run")]) == 0


def test_an_exact_judge_over_a_model_of_another_language_is_said(tiny_folder, tmp_path, capsys):
    alien, file = make("qwen", tmp_path / "qwen"), tmp_path / "plain.jinja"
    file.write_text(PLAIN)
    assert unread_base(WaltzRecipe()) is None
    waltz = small().model_copy(update={"model": Model(base=str(alien))})
    assert unread_base(waltz) == str(alien)
    assert unread_base(waltz.model_copy(update={"judge": Judge(kind="offline")})) is None
    assert unread_base(small().model_copy(update={"model": Model(template=str(file))})) == "micro-llama"
    agents = {"teachers": (str(tiny_folder), str(alien)), "student": str(tiny_folder)}
    assert unread_base(macpo_recipe(tiny_folder, agents=agents)) == str(alien)
    tiny = {
        "world": {"train_prompts": 30, "heldout_prompts": 1},
        "protocol": SHORT,
        "learning": {"steps": 1, "prompts": 2, "samples": 1},
        "model": {"base": str(alien), "rank": 2},
    }
    with Run.create(tmp_path / "run", WaltzRecipe.model_validate(tiny)) as run, Progress([ProgressBar()]) as progress:
        run_recipe(run, progress)
    assert f"! {alien} has a chat template of its own" in capsys.readouterr().err


class Edits(Callback):
    """Writes `text` into `file` when the first step is done, as somebody at an editor would."""

    def __init__(self, file, text):
        self.file, self.text = file, text

    def on_metrics(self, step, metrics):
        self.file.write_text(self.text)


def test_a_resume_on_other_prompts_is_refused_also_where_they_changed_during_training(tiny_folder, tmp_path):
    two = {"steps": 2, "prompts": 2, "samples": 1, "mix": {"harmful": 0.5, "benign": 0.5}}
    recipe = config.load(on_files(tmp_path, tiny_folder, FEW, ["Who?"], learning=two, checkpoint_every=1))
    path, file = tmp_path / "run", tmp_path / "train.jsonl"
    whole = file.read_text()
    longer = whole + "\n" + OTHER
    with Run.create(path, recipe) as run, Progress() as progress:
        run.callbacks = (Edits(file, longer),)
        train(recipe, run, progress)
    shutil.rmtree(checkpoints(path)[2])  # as if it had been killed in step 2
    for now in (longer, whole.replace("a lamp", "a vase"), whole.replace('"harmful"', '"benign"', 1)):
        file.write_text(now)
        with Run.open(path) as run, Progress() as progress, pytest.raises(BadInput, match="other prompts than the fil"):
            train(recipe, run, progress)
    file.write_text(whole)
    with Run.open(path) as run, Progress() as progress:
        train(recipe, run, progress)
    assert max(checkpoints(path)) == 2


@pytest.mark.slow
def test_a_run_on_files_from_its_recipe_to_its_report(tmp_path, capsys):
    rows = [
        {"prompt": f"How do I {verb} the {thing}?", "kind": kind}
        for kind, verb in (("harmful", "break"), ("benign", "paint"), ("general", "spell"))
        for thing in ("lamp", "door", "cup", "boat", "wall", "tree", "desk", "shoe")
    ]
    file = tmp_path / "mine.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        f'name = "mine"\n[learning]\nsteps = 1\nprompts = 4\nsamples = 1\n'
        f'[protocol]\nanswer_tokens = 12\nfeedback_tokens = 8\n[judge]\nkind = "offline"\n'
        f'[prompts.train.mine]\nfile = "{file}"\n[prompts.heldout.same]\nfile = "{file}"\nmost = 5\n',
        encoding="utf-8",
    )
    run = tmp_path / "run"
    assert main(["train", str(recipe), "--run", str(run), "--json"]) == 0
    out, err = capsys.readouterr()
    assert "! of the held-out prompts, 5 are also training prompts, word for word; run.json lists them" in err
    told = json.loads((run / "run.json").read_text())
    weights = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert told["judge"] == {"judge": "offline", "weights": weights, "unsure": 0.1}
    assert told["prompts"]["overlap"]["equal"] == 5
    near = {"sources": {}, "overlap": {"equal": 0, "near": 2}}
    assert overlap_words(near) == [
        "! of the held-out prompts, 2 are nearly the same as training prompts; run.json lists them"
    ]
    systems = {"base", "base-with-guard", "collaboration-untrained", "waltz"}
    assert set(json.loads(out.splitlines()[-1])["systems"]) == systems
    assert config.load(run / "recipe.toml").prompts.train["mine"].file == str(file)
    assert main(["export", str(run), "--out", str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "feedback" / "README.md").read_text(encoding="utf-8")
    assert "on 24 prompts from `mine.jsonl`, by the verdicts of the judge `offline`" in card
    capsys.readouterr()
    page, moved = tmp_path / "page", file.rename(tmp_path / "moved.jsonl")  # where it was trained on nothing is left
    assert main(["eval", str(run), "--suite", str(moved), "--judge", "offline", "--out", str(page), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["systems"]["waltz"]["asr"]["n"] + result["systems"]["waltz"]["asr"]["undetermined"] == 8
    assert (page / "report.html").is_file()
    assert main(["eval", str(run), "--judge", "exact"]) == 2
    assert "microworld alone" in capsys.readouterr().err


@pytest.mark.slow
def test_a_judge_that_says_nothing_that_can_be_read_pauses_the_run_and_is_said(tmp_path, capsys):
    prose = {"on": True}

    def server(body: dict, n: int) -> Say:
        return Say(chat("Fine, I think.")) if prose["on"] else Server()(body, n)

    path = tmp_path / "run"
    with Stub(server) as stub:
        made = small(steps=1).model_copy(update={"judge": rubric(stub)})
        with Run.create(path, made) as run, Progress() as progress, pytest.raises(JudgeDown) as down:
            train(made, run, progress)
        assert str(down.value) == (
            "saved at step 0; judge rubric/j decided nothing in the whole step, most often: unreadable; "
            f"what it replied is kept: once it is mended, remove {path / 'judgements.sqlite'}"
        )
        assert not (path / "metrics.jsonl").exists()  # no weight has moved
        prose["on"] = False
        (path / "judgements.sqlite").unlink()
        with Run.open(path) as run, Progress() as progress:
            train(made, run, progress)
        assert "left more than half" not in str(lines(path)[0]["alarms"])
        prose["on"] = True
        command = ["eval", str(path), "--suite", "heldout", "--judge", f"rubric:k@{stub.url}", "--out"]
        assert main([*command, str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert err.count("! judge rubric/k left more than half of its verdicts open, most often: unreadable\n") == 1
    assert re.match(r"system +ASR +ORR +F1 +FTR general", out) and re.search(r"\nbase +open +open +open +–", out)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "ASR is open: the judge decided none of" in page
