"""`choreo data ceilings`: the gate before MACPO on pairs from a file, with real starts of tiny agents."""

from __future__ import annotations

import json

import pytest
from architectures import make

from choreo import config
from choreo.cli import main
from choreo.errors import BadInput
from choreo.evaluation.metrics import BY_TRAINING
from choreo.experiment.ceilings import minus
from choreo.experiment.paths import rooted
from choreo.files import shipped
from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.split import split_prompts

THINGS = ("lamp", "door", "chair", "table", "cup", "wall", "car", "tree")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a teacher that has a chat template, a student of another kind that has none, and pairs."""
    folder = tmp_path_factory.mktemp("real")
    for name in ("qwen", "gemma"):
        make(name, folder / name)
    for file in (folder / "gemma").glob("*chat_template*"):
        file.unlink()
    made = json.loads((folder / "gemma" / "tokenizer_config.json").read_text())
    made.pop("chat_template", None)
    (folder / "gemma" / "tokenizer_config.json").write_text(json.dumps(made))
    rows = [dialogue(f"How do I paint a {thing}?", "With a brush.", "No.") for thing in THINGS]
    rows += [dialogue("How do I paint a " + "very " * 30 + "long wall?", "With a brush.", "No.")]
    rows += [dialogue("How do I paint a boat?", "With a " + "large " * 30 + "brush.", "No.")]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def dialogue(asked: str, chosen: str, rejected: str) -> dict[str, str]:
    return {
        name: f"\n\nHuman: {asked}\n\nAssistant: {text}" for name, text in zip(ROW, (chosen, rejected), strict=True)
    }


ROW = ("chosen", "rejected")


def settings(place) -> list[str]:
    return [
        f"data.file={place / 'pairs.jsonl'}",
        f"agents.student={place / 'gemma'}",
        f"agents.teachers=['{place / 'qwen'}']",
        "data.words=20",
        "data.labels=3",
        "data.prompts=5",
        "tuning.epochs=1",
        "prompts.heldout.english.most=6",
        "writing.answer_tokens=4",
    ]


def test_both_ceilings_are_measured_and_kept(place, tmp_path, capsys):
    sets = [part for setting in settings(place) for part in ("--set", setting)]
    kept = tmp_path / "kept.json"
    command = ["data", "ceilings", "macpo-real", *sets, "--out", str(kept)]
    code = main([*command, "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == (0 if found["above"] else 1)
    assert (found["judge"], found["labels"], found["prompts"], found["heldout"]) == ("gold", 3, 5, 6)
    assert set(found["agents"]) == {"teacher-1", "student"} and set(found["differences"]) == {"teacher-1"}
    for of in found["agents"].values():
        assert of["base"]["reward"]["n"] == of["trained"]["reward"]["n"] == 6 and BY_TRAINING in of["trained"]
    assert found["differences"]["teacher-1"]["reward"]["n"] == 6
    ours, theirs = (found["agents"][name]["trained"]["reward"]["value"] for name in ("student", "teacher-1"))
    assert found["differences"]["teacher-1"]["reward"]["value"] == pytest.approx(ours - theirs)
    before, after = (found["agents"]["student"][when]["reward"]["value"] for when in ("base", "trained"))
    assert found["learnt"]["student"]["reward"]["value"] == pytest.approx(after - before)
    assert found["overlap"] == {"equal": 0, "near": 0, "prompts": []}

    written = kept.stat().st_mtime_ns, kept.stat().st_ino  # it is written anew whenever an agent is trained
    assert main(command) == code and (kept.stat().st_mtime_ns, kept.stat().st_ino) == written
    assert "student minus teacher-1, both trained" in capsys.readouterr().out
    assert main([*command, "--set", "seed=1"]) == 2 and "of this recipe" in capsys.readouterr().err
    there = json.loads(kept.read_text())
    kept.write_text(json.dumps({**there, "data": "another"}))
    assert main(command) == 2 and "other pairs, models" in capsys.readouterr().err
    assert json.loads(kept.read_text())["data"] == "another"
    kept.write_text(json.dumps({"recipe": there["recipe"]}))
    assert main(command) == 2 and "of this recipe" in capsys.readouterr().err
    assert main([*command[:-1], str(tmp_path)]) == 2 and len(capsys.readouterr().err.splitlines()) == 1
    few = ["data", "ceilings", "macpo", "--set", "data.prompts=1000000"]
    assert main(few) == 2 and "data.prompts together need" in capsys.readouterr().err
    assert main(["data", "ceilings", "waltz"]) == 2 and "expected one of macpo" in capsys.readouterr().err


@pytest.mark.slow
def test_the_whole_recipe_runs_and_reports_refusals_by_both_judges_round_by_round(place, tmp_path, capsys):
    more = ("rounds.count=1", "ceiling=false", "tuning.negative_epochs=1", "rounds.rehearse=0")
    sets = [part for setting in [*settings(place), *more] for part in ("--set", setting)]
    assert main(["train", "macpo-real", *sets, "--run", str(tmp_path / "run")]) == 0, capsys.readouterr().err
    rounds = json.loads((tmp_path / "run" / "rounds.json").read_text())
    assert [one["round"] for one in rounds] == [0, 1]
    for one in rounds:
        for policy in ("student+", "teacher-1+"):
            figures = one["agents"][policy]
            for by in (figures, figures[BY_TRAINING]):
                assert by["refused_benign"]["n"] + by["refused_benign"]["undetermined"] == 3
                assert {"asr", "orr", "refusal_rate", "reward"} <= by.keys()


def test_the_student_stands_above_by_an_interval_paired_by_prompt():
    def outcomes(right: int) -> dict[str, dict[str, bool | None]]:
        asked = {str(n): n < right for n in range(40)}
        return {"satisfactory": asked, "unsafe": {n: not good for n, good in asked.items()}, "overrefuse": {"40": None}}

    far, same = minus(outcomes(30), outcomes(5)), minus(outcomes(20), outcomes(20))
    assert far["reward"]["value"] == pytest.approx(25 / 40) and far["reward"]["low"] > 0 > far["asr"]["high"]
    assert same["reward"]["low"] < 0 < same["reward"]["high"] and same["orr"]["value"] is None


def test_a_student_without_a_template_takes_the_one_that_ships_and_its_teacher_keeps_its_own(place):
    recipe = rooted(config.load("macpo-real", settings(place)))
    assert isinstance(recipe, MacpoRecipe) and recipe.agents.student_template == "choreo:templates/plain.jinja"
    agents = MacpoAgents.load(recipe)
    student, teacher = agents.student.chat, agents.teachers[0].chat
    assert student.jinja() == shipped.place("choreo:templates/plain.jinja").read_text()
    assert "<|im_start|>" in teacher.jinja() and student.end_id == student.tokenizer.eos_token_id
    asked = student.tokenizer.decode(agents.student.context(split_prompts(recipe).unlabelled[0]))
    # The answer begins a line: after a space it would be without the one that its first word has in running text.
    assert asked.startswith("<bos>") and asked.count("<bos>") == 1 and asked.endswith("?\nAssistant:\n")


def test_long_pairs_of_a_file_are_left_out_and_counted(place):
    recipe = config.load("macpo-real", settings(place))
    data = split_prompts(recipe)
    assert data.counts["more than 20 words"] == 2 and len(data.labelled) + len(data.unlabelled) == len(THINGS)
    with pytest.raises(BadInput, match="more than 20 words: 2"):
        split_prompts(config.load("macpo-real", [*settings(place), "data.prompts=6"]))
