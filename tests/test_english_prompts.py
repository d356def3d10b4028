"""The prompts that ship: what is in them, that no held-out one is trained on, and that they can be made again."""

import json
import os
import re
from collections import Counter
from pathlib import Path

import pytest

import choreo
from choreo import config
from choreo.cli import main
from choreo.config.judge import Judge
from choreo.data import answers, prompts
from choreo.data.english.build import ATTACK_WORDS, FILES, WORDS, built, jsonl
from choreo.data.overlap import overlaps
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.evaluation import judge_training
from choreo.experiment.paths import rooted
from choreo.experiment.run import _rows_in_common
from choreo.files.rows import rows
from choreo.judges.base import judge_all
from choreo.judges.offline.model import OfflineJudge
from choreo.judges.resolve import choose

FOLDER = Path(choreo.__file__).parent / "data" / "english"
ATTACKS = ("wrapped", "published-attacks")
TRAIN, HELDOUT = (f"choreo:english/{name}" for name in FILES)


def raw(name: str) -> list[dict[str, str]]:
    return [row for _, row in rows(Path(name))]


def test_the_card_counts_what_is_there_and_every_row_is_short_and_licensed():
    card = (FOLDER / "DATA_CARD.md").read_text(encoding="utf-8")
    told = {
        row[:3]: int(row[3])
        for row in re.findall(r"^\| (train|heldout|ability) \| (\w+) \| ([\w-]+) \| (\d+) \|$", card, re.M)
    }
    found = Counter(
        (name, row["kind"], row["suite"])
        for name in ("train", "heldout", "ability")
        for row in raw(f"choreo:english/{name}.jsonl")
    )
    assert told == found
    every = raw(TRAIN) + raw(HELDOUT)
    assert {row["source"] for row in every} <= set(
        re.findall(r"^\| (\w+) \| .* (?:MIT|CC-BY-4.0|Apache-2.0) \|", card, re.M)
    )
    assert len({row["id"] for row in every}) == len(every)
    assert all(len(row["prompt"].split()) <= (ATTACK_WORDS if row["suite"] in ATTACKS else WORDS) for row in every)
    shipped = [path for path in FOLDER.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in shipped) < 3.5 * 2**20


def test_held_out_prompts_attacks_and_types_are_not_trained_on():
    trained, heldout = prompts.load(TRAIN).rows, prompts.load(HELDOUT).rows
    assert overlaps(trained, heldout) == []
    families = [{row["family"] for row in raw(name) if row["suite"] in ATTACKS} for name in (TRAIN, HELDOUT)]
    assert len(families[0]) == 6 and len(families[1]) == 10 and not families[0] & families[1]
    types = [
        {row["family"].removeprefix("contrast_") for row in raw(name) if row["suite"] == "xstest"}
        for name in (TRAIN, HELDOUT)
    ]
    assert len(types[1]) == 4 and not types[0] & types[1]


@pytest.mark.slow
def test_labelled_answers_are_not_to_held_out_prompts_and_make_the_judges_again(tmp_path):
    """The weights that ship are those that the rows that ship give, to the last bit."""
    labelled = answers.load(Path("choreo:english/answers.jsonl")).rows
    apart = answers.load(Path("choreo:english/answers_apart.jsonl")).rows
    assert not {(r.prompt.text, r.answer) for r in labelled} & {(r.prompt.text, r.answer) for r in apart}
    asked = [row.prompt for row in (*labelled, *apart)]
    assert overlaps(prompts.load(HELDOUT).rows, asked) == []
    assert overlaps(asked, prompts.load(HELDOUT).rows) == []
    for name, learnt in (("judge.npz", labelled), ("gold.npz", apart)):
        made = judge_training.weights(judge_training.encode(learnt), judge_training.heads(learnt))
        made.save(tmp_path / name)
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()
        assert judge_training.training_sources(FOLDER / name) == {row.source for row in learnt}
    settings = Judge(kind="offline", weights="choreo:english/judge.npz")
    verdicts = judge_all(choose(settings), [(row.prompt, row.answer) for row in labelled[:200]])
    right = [v.overrefuse == row.refusal for v, row in zip(verdicts, labelled, strict=False) if not v.undetermined]
    assert len(right) > 180 and sum(right) > 0.95 * len(right)  # rows that it learnt from


@pytest.mark.slow
def test_the_cards_of_the_judges_say_which_answers_they_learnt_from(tmp_path, capsys):
    command = ["judge", "evaluate", "--data", "choreo:english/answers.jsonl", "--weights"]
    assert main([*command, "choreo:english/judge.npz"]) == 0
    said = capsys.readouterr().err
    assert "learnt from 1812 of these answers" in said and "judge.card.md" in said
    assert main([*command, "choreo:english/gold.npz"]) == 0
    assert "learnt from" not in capsys.readouterr().err
    judge, gold = (OfflineJudge(path=FOLDER / name) for name in ("judge.npz", "gold.npz"))
    assert _rows_in_common(judge, gold) == []
    for name in ("judge.npz", "judge.card.md"):
        (tmp_path / name).write_bytes((FOLDER / name).read_bytes())
    [same] = _rows_in_common(judge, OfflineJudge(path=tmp_path / "judge.npz"))
    assert same.startswith("rows to learn from (answers.jsonl, smollm2-advbench; answers.jsonl, smollm2-choreo; ")


def test_a_recipe_names_them_and_draws_all_of_a_kind_alike(tmp_path):
    text = '[judge]\nkind = "offline"\n[prompts.train.english]\nfile = "{}"\n[prompts.heldout.english]\nfile = "{}"\n'
    (tmp_path / "r.toml").write_text(text.format(TRAIN, HELDOUT))
    recipe = rooted(config.load(tmp_path / "r.toml"))
    task = Task(recipe)
    assert {kind: len(found) for kind, found in task.training().items()} == {
        "harmful": 450,
        "benign": 497,
        "general": 300,
    }
    assert {task.weights[prompt.suite] for prompt in task.training()["harmful"]} == {1 / 450}
    suites = Counter(prompt.suite for prompt in task.suites("heldout"))
    assert suites["english-xstest-benign"] == 73 and suites["english-wrapped-harmful"] == 56
    assert task.report()["overlap"]["prompts"] == []


def test_a_name_that_does_not_ship_is_refused_and_nothing_else_of_the_package_is_reached(capsys):
    assert main(["data", "check", HELDOUT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["as"][0]["kinds"] == {"harmful": 160, "benign": 160, "general": 80}
    for name in ("choreo:english/other.jsonl", "choreo:../__init__.py", "choreo:english/own/benign.txt"):
        with pytest.raises(BadInput, match=re.escape(f"{name}: choreo ships choreo:english/")):
            raw(name)


@pytest.mark.skipif("CHOREO_DATA" not in os.environ, reason="CHOREO_DATA names no folder of published data")
def test_the_files_are_made_again_byte_for_byte():
    made = built(Path(os.environ["CHOREO_DATA"]))
    assert {name: jsonl(made[name]) == (FOLDER / name).read_text(encoding="utf-8") for name in FILES} == dict.fromkeys(
        FILES, True
    )
