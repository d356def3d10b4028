"""What people say becomes figures and files: checked by hand, by the readers of the files, and with bad input."""

from __future__ import annotations

import csv
import gzip
import json
import math
import sqlite3

import numpy as np
import pytest
from arena import answers as answers_of
from arena import make_arena, write_rows

from choreo.arena.export import KINDS_OF_FILES, export_arena
from choreo.arena.items import CHOICES
from choreo.arena.results import results
from choreo.arena.store import FILE, Arena, Conflict
from choreo.cli import arena_commands, main
from choreo.data import answers, preferences, reviews
from choreo.errors import BadInput
from choreo.evaluation import bradley_terry
from choreo.evaluation.krippendorff import alpha


def test_alpha_is_what_comes_out_by_hand():
    # Labels of two raters on four things. Ordered pairs within a thing: aa 2, ab 2, bb 4; so o_ab + o_ba = 2. Of n = 8
    # labels 3 are a and 5 are b. D_o = 2 / 8, D_e = 2·3·5 / (8·7), so alpha = 1 − (2/8)·(56/30).
    assert alpha(["aa", "ab", "bb", "bb"])["value"] == pytest.approx(1 - (2 / 8) * (56 / 30))
    # Three labels on one thing count as ordered pairs over 2: of aab, the pairs ab and ba are 4 / 2 = 2. With aa beside
    # it n = 5, 4 are a: alpha = 1 − (2/5) / (2·4·1 / (5·4)) = 0. A thing with one label says nothing.
    assert alpha(["aab", "aa", "b"])["value"] == pytest.approx(0.0)
    assert alpha(["ab", "ba"])["value"] == pytest.approx(1 - 1 / (2 * 2 * 2 / (4 * 3)))
    sure = alpha(["aa", "bb"] * 10)
    assert sure["value"] == pytest.approx(1.0) and 0.5 < sure["low"] < 0.999 and sure["n"] == 20
    assert alpha(["aa", "aa"])["value"] is None and alpha([])["value"] is None


def test_strengths_are_what_comes_out_by_hand():
    three_of_four = np.zeros((4, 2, 2))
    three_of_four[:3, 0, 1] = three_of_four[3, 1, 0] = 1
    first, second = bradley_terry.strengths(three_of_four, 4)
    assert first["value"] - second["value"] == pytest.approx(math.log(3)) and first["value"] == -second["value"]
    assert first["low"] < 0 < first["high"]  # four comparisons say little
    # Odds of 1 : 2 : 4 give each pair exactly these wins, so they are the strengths that fit best.
    wins = np.array([[0, 10, 6], [20, 0, 10], [24, 20, 0]], dtype=float)
    assert bradley_terry.best_fit(wins[None])[0] == pytest.approx(np.log([0.5, 1, 2]), abs=1e-7)
    # A tie is half a win for both: one win and one tie are 1.5 : 0.5.
    tied = bradley_terry.tally([(0, 0, 1, 1.0), (1, 0, 1, 0.5)], 2, 2)
    assert np.diff([one["value"] for one in bradley_terry.strengths(tied, 2)]) == pytest.approx([-math.log(3)])
    never_lost = bradley_terry.tally([(0, 0, 1, 1.0)], 1, 2)
    assert [one["value"] for one in bradley_terry.strengths(never_lost, 1)] == [None, None]


@pytest.fixture
def rated(tmp_path):
    """Two raters on six pairs: alice always for ours, bob for ours twice, for base once, then ties; bob fails one."""
    attention = [{"prompt": "2 + 2?", "a": "4", "b": "5", "expected": "a"}]
    folder = make_arena(tmp_path, "pairs", ("ours", "base"), 6, attention)
    with Arena(folder) as arena:
        for name in ("alice", "bob"):
            arena.add_rater(name)
        for item, said in zip(range(1, 7), ("a", "a", "b", "tie", "tie", "both bad"), strict=True):
            arena.rate("alice", item, "a", None)
            arena.rate("bob", item, said, None)
        arena.rate("alice", 7, "a", None)
        arena.rate("bob", 7, "tie", None)
        yield arena


def test_pairs_are_counted_and_attention_items_are_not(rated):
    found = results(rated)
    (met,) = found["pairs"]
    assert {name: met[name] for name in ("n", "win", "tie", "both_bad", "lose")} == {
        "n": 12,
        "win": 8,
        "tie": 2,
        "both_bad": 1,
        "lose": 1,
    }
    assert met["score"]["value"] == pytest.approx((8 + 1.5) / 12) and met["score"]["low"] < 0.75
    strengths = [found["strengths"][name]["value"] for name in ("ours", "base")]
    assert strengths[0] - strengths[1] == pytest.approx(math.log(9.5 / 2.5))
    assert [of["attention"] for of in found["raters"].values()] == [{"n": 1, "failed": 0}, {"n": 1, "failed": 1}]
    assert found["alpha"]["choice"]["n"] == 6
    alone = results(rated, ["bob"])
    assert alone["pairs"][0]["win"] == alone["n"] == 6 and alone["strengths"]["ours"]["value"] is None


def test_the_log_keeps_everything_and_undo_takes_the_last(rated):
    with pytest.raises(Conflict, match="undo that first"):
        rated.rate("bob", 7, "a", None)
    with pytest.raises(Conflict, match="last rating"):
        rated.undo("bob", 1)
    rated.rate("bob", 7, "tie", None)  # said again: nothing new
    for _ in range(2):  # asked again: nothing more
        rated.undo("bob", 7)
    rated.rate("bob", 7, "a", None)
    file = sqlite3.connect(rated.folder / FILE)
    said = file.execute("SELECT action, choice FROM audit WHERE rater = 'bob' AND item = 7 ORDER BY id").fetchall()
    assert said == [("rate", "tie"), ("undo", None), ("rate", "a")]
    assert results(rated)["raters"]["bob"]["attention"] == {"n": 1, "failed": 0}
    for change in ("DELETE FROM audit", "UPDATE audit SET choice = 'a'"):
        with pytest.raises(sqlite3.IntegrityError, match="append-only"):
            file.execute(change)
    file.close()


def test_preferences_are_read_by_those_who_train_on_them(rated, tmp_path):
    for kind in ("preferences", "dpo", "csv"):
        export_arena(rated, kind, tmp_path / kind)
    # Alone the first two: elsewhere only one of two raters was for ours, which is not more than half.
    loaded = preferences.load(tmp_path / "preferences")
    assert loaded.format == "macpo" and not loaded.left_out
    assert [(pair.chosen, pair.rejected) for pair in loaded.rows] == [(f"ours on {i}", f"base on {i}") for i in (0, 1)]
    assert json.loads((tmp_path / "dpo").read_text().splitlines()[0]) == {
        "prompt": [{"role": "user", "content": "Question 0?"}],
        "chosen": [{"role": "assistant", "content": "ours on 0"}],
        "rejected": [{"role": "assistant", "content": "base on 0"}],
    }
    with (tmp_path / "csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == 14 and table[-1]["attention"] == "true"
    assert {row["choice"] for row in table} == set(CHOICES["pairs"])


def test_labels_meet_the_judge_of_the_run_and_become_answers(tmp_path):
    """A source is a run's system: its last answers, with the verdicts that they had."""
    run = tmp_path / "run"
    (run / "heldout").mkdir(parents=True)
    for name in ("run.json", "summary.json", "heldout/ours.json"):
        (run / name).write_text("{}")
    kinds, unsafe, over = ("harmful", "harmful", "benign", "benign"), (True, False, False, False), (0, 0, 1, 0)
    games = [
        {
            "prompt": {"id": str(i), "text": f"Question {i}?", "kind": kinds[i], "suite": "mine"},
            "answers": [{"text": "a draft"}, {"text": f"answer {i}"}],
            "verdicts": [{"unsafe": None, "overrefuse": None}, {"unsafe": unsafe[i], "overrefuse": bool(over[i])}],
        }
        for i in range(4)
    ]
    lost = {**games[0], "prompt": {**games[0]["prompt"], "text": "Lost?"}, "answers": [{"text": "", "failure": "cut"}]}
    with gzip.open(run / "heldout" / "ours.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(game) + "\n" for game in [*games, lost])
    assert main(["arena", "new", str(tmp_path / "arena"), "--labels", "--system", f"ours={run}:ours"]) == 0
    with Arena(tmp_path / "arena") as arena:
        assert len(arena.items) == 4 and arena.about["left_out"] == {"did not arrive": 1}
        for name in ("alice", "bob", "carol"):
            arena.add_rater(name)
        for item, said in zip(range(1, 5), ("unsafe", "unsafe", "over-refusal", "fine"), strict=True):
            arena.rate("alice", item, said, False)
            arena.rate("bob", item, said, item == 4)
        arena.rate("carol", 2, "fine", False)
        found = results(arena)
        assert found["judges"]["unsafe"]["accuracy"]["value"] == 0.75  # the judge passed the second answer
        assert found["judges"]["overrefuse"]["accuracy"]["value"] == 1.0
        measured = found["measures"]["ours"]
        assert (measured["asr"]["value"], measured["orr"]["value"]) == (1.0, 0.5)
        assert measured["degenerate"]["undetermined"] == 1  # two minds on the fourth
        assert export_arena(arena, "answers", tmp_path / "answers.jsonl") == 4
    rows = answers.load(tmp_path / "answers.jsonl").rows
    assert [(row.harm, row.refusal, row.degenerate) for row in rows] == [
        (True, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, None),
    ]
    assert {(row.model, row.prompt.suite) for row in rows} == {("ours", "mine")}
    verdicts = [row.verdict for row in reviews.load(tmp_path / "answers.jsonl").rows]  # as [warmup.answers] reads it
    assert [(one.unsafe, one.overrefuse) for one in verdicts if one] == [(1, 0), (1, 0), (0, 1), (0, 0)]
    assert [row.labeller for row in rows] == ["alice+bob", "alice+bob+carol", "alice+bob", "alice+bob"]
    with Arena(tmp_path / "arena") as arena:
        for name in ("dan", "eve", "fay"):  # alice and bob are outvoted, so what they said of a refusal does not count
            arena.add_rater(name)
            arena.rate(name, 1, "fine", False)
        with pytest.raises(BadInput, match="a name has"):
            arena.add_rater("x²")
        export_arena(arena, "answers", tmp_path / "more.jsonl")
    first = answers.load(tmp_path / "more.jsonl").rows[0]
    assert (first.harm, first.refusal) == (False, None)


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"prompt": "p"}], [], "ours.jsonl:1: answer: expected text, got nothing"),
        ([{"prompt": "p", "answer": "x"}], ["--labels"], "ours.jsonl:1: kind: expected text, got nothing"),
        ([{"prompt": "p", "answer": "x", "kind": "bad"}], ["--labels"], "ours.jsonl:1: kind: expected one of harmful"),
        (
            [{"prompt": "p", "answer": "x"}, {"prompt": "p", "answer": "y"}],
            [],
            "ours.jsonl:2: prompt: is that of line 1",
        ),
        ([{"prompt": "other", "answer": "x"}], [], "no prompt that all systems have answered"),
        ([{"prompt": "p", "answer": "base"}], [], "answers are all equal"),
        (
            [{"prompt": "p", "answer": "x"}],
            ["--attention", "a.jsonl"],
            "a.jsonl:2: expected: expected one of a, b, tie",
        ),
        ([{"prompt": "p", "answer": "x"}], ["--guidelines", "none.md"], "none.md: No such file"),
        ([{"prompt": "p", "answer": "x"}], ["--system", "base=base.jsonl"], "two systems have this name"),
        ([{"prompt": "p", "answer": "x"}], ["--system", "c"], "--system c: expected NAME=SOURCE"),
        ([{"prompt": "p", "answer": "x"}], ["--system", "c=run:ours"], "run: no such run folder"),
    ],
)
def test_bad_input_is_one_line_and_makes_nothing(tmp_path, monkeypatch, capsys, rows, more, said):
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path / "ours.jsonl", rows)
    write_rows(tmp_path / "base.jsonl", [{"prompt": "p", "answer": "base", "kind": "benign"}])
    good = {"prompt": "q", "a": "x", "b": "y", "expected": "a"}
    write_rows(tmp_path / "a.jsonl", [good, {**good, "expected": "left"}])
    mode = [] if "--labels" in more else ["--pairs"]
    command = ["arena", "new", "arena", *mode, "--system", "ours=ours.jsonl", "--system", "base=base.jsonl", *more]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "arena").exists()


def test_prompts_are_drawn_and_where_fewer_are_there_a_line_says_so(tmp_path, capsys):
    sources = [f"--system={name}={answers_of(tmp_path, name, 5)}" for name in ("ours", "base")]
    for asked, drawn in ((3, 3), (5, 5), (6, 5)):
        assert main(["arena", "new", str(tmp_path / f"{asked}"), "--pairs", *sources, "--prompts", str(asked)]) == 0
        told = capsys.readouterr().out
        assert f"{drawn} items on {drawn} prompts" in told
        assert ("fewer prompts than --prompts 6: all systems have answered only 5" in told) == (asked > drawn)


def test_nothing_is_lost_or_overwritten_by_a_command(rated, tmp_path, capsys):
    folder, out = str(rated.folder), tmp_path / "out.csv"
    out.write_text("mine")
    sources = ["--system", f"ours={tmp_path / 'ours.jsonl'}", "--system", f"base={tmp_path / 'base.jsonl'}"]
    for command, said in (
        (["new", folder, "--pairs", *sources], "holds an arena already"),
        (["export", folder, "--as", "csv", "--out", str(out)], "already exists"),
        (["export", folder, "--as", "answers", "--out", str(tmp_path / "new")], "is of an arena of labels"),
        (["rater", folder, "alice"], "has a key already"),
        (["rater", folder, "dora", "--renew"], "is not there yet"),
        (["rater", folder, "a b"], "a name has"),
        (["results", folder, "--leave-out", "dora"], "there is no such rater; there are alice, bob"),
        (["results", str(tmp_path)], "holds no arena"),
        (["results", folder, "--out", "."], ".: is a folder"),
        (["results", folder, "--out", str(out / "page")], "out.csv: cannot make this folder"),
    ):
        assert main(["arena", *command]) == 2
        assert said in capsys.readouterr().err
    assert out.read_text() == "mine" and len(rated.ratings()) == 14
    assert main(["arena", "results", folder, "--json", "--out", str(tmp_path / "page")]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 12
    assert "ours against base" in (tmp_path / "page.md").read_text()
    page = ["arena", "results", folder, "--out", str(tmp_path / "page.html")]
    for name in ("page.html", "page.md", "page-2.svg"):  # any one of them may be somebody's own
        for file in tmp_path.glob("page*"):
            file.unlink()
        (tmp_path / name).write_text("mine")
        assert main(page) == 2
        assert f"{name}: already exists" in capsys.readouterr().err and [*tmp_path.glob("page*")] == [tmp_path / name]
        assert main([*page, "--overwrite"]) == 0
        assert (tmp_path / name).read_text() != "mine"


def test_the_command_line_names_the_files_that_there_are():
    assert tuple(KINDS_OF_FILES) == arena_commands.FILES
