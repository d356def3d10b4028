"""Which format a row has: published schemas by their fields, a row's own words first, and nothing guessed."""

from __future__ import annotations

import random

import pytest
from data_rows import MADE, write

from choreo.cli import main
from choreo.data import answers, preferences, prompts
from choreo.errors import BadInput


def test_every_published_schema_is_known_by_its_fields(tmp_path):
    assert set(MADE) == set(prompts.FORMATS) - {"bare"}
    for name, (row, expected) in MADE.items():
        file = write(tmp_path / ("or-bench.jsonl" if name == "or-bench" else "set.jsonl"), row)
        loaded = prompts.load(file, name="set")
        assert loaded.format == name
        assert [
            (prompt.kind, said in prompt.text) for prompt, (_, said) in zip(loaded.rows, expected, strict=True)
        ] == [(kind, True) for kind, _ in expected]
        assert all(prompt.suite == f"set-{prompt.kind}" and prompt.id.startswith("set-1") for prompt in loaded.rows)


def test_what_a_name_or_a_recipe_says_of_a_file(tmp_path):
    row = MADE["or-bench"][0]
    assert prompts.load(write(tmp_path / "or-bench-toxic.jsonl", row)).rows[0].kind == "harmful"
    assert prompts.load(write(tmp_path / "mine.jsonl", row)).counts == {prompts.NO_KIND: 1}
    assert prompts.load(write(tmp_path / "x.jsonl", MADE["jailbreakbench"][0]), kind="benign").rows[0].kind == "benign"
    bare = write(tmp_path / "bare.jsonl", {"prompt": "Hi"}, {"prompt": "Hi"}, {"prompt": " "})
    assert prompts.load(bare).counts == {prompts.NO_KIND: 3}
    told = prompts.load(bare, kind="general", name="mine")
    assert [prompt.id for prompt in told.rows] == ["mine-1"]
    assert told.left_out == {"a prompt that was there before": [2], "no prompt": [3]}
    for name, told in (("benign-behaviors.jsonl", 1), ("benignware.jsonl", 0), ("jbb_benign.jsonl", 0)):
        split = prompts.load(write(tmp_path / name, MADE["jailbreakbench"][0]))
        assert [row.kind for row in split.rows] == ["benign"] * told and (told or prompts.NO_KIND in split.left_out)
    kinds = write(tmp_path / "k.jsonl", *({"prompt": "Hi", "kind": kind} for kind in ("benign", "harmful", "benign")))
    assert prompts.load(kinds).left_out == {
        "a prompt that was there before, as benign and not harmful": [2],
        "a prompt that was there before": [3],
    }
    other = {**MADE["coconot"][0], "category": "Incomplete requests"}
    left_out = prompts.load(write(tmp_path / "c.jsonl", other)).counts
    assert left_out == {"noncompliance for another reason than safety": 1}
    assert prompts.load(write(tmp_path / "c.jsonl", other | {"chosen": "x"})).rows[0].kind == "benign"


def test_rows_of_any_shape_are_bad_input_and_nothing_else(tmp_path):
    rng = random.Random(0)
    labels = {"answer", "final_label", "jailbroken", "model"}
    names = sorted({name for row, _ in MADE.values() for name in row} | labels)
    values = [None, True, 0, "", "x", "safe", "harmful", ["a"], [1], {}]
    for _ in range(300):
        row = {name: rng.choice(values) for name in rng.sample(names, rng.randint(0, 8))}
        file = write(tmp_path / "row.jsonl", row)
        for load in (prompts.load, preferences.load, answers.load):
            try:
                assert load(file).read == 1 or "adversarial_prompt" in row  # a row of FORTRESS is two prompts
            except BadInput as wrong:
                assert str(wrong).startswith(f"{file}:1: ")


def test_what_a_row_says_of_itself_wins_over_what_its_fields_look_like(tmp_path, capsys):
    """Every published format's fields beside a prompt and its kind: never another kind than the row's own."""
    table = "prompt,kind,category\nHi,general,x\nHo,benign,y\n"
    (tmp_path / "t.csv").write_text(table)
    assert [prompt.kind for prompt in prompts.load(tmp_path / "t.csv").rows] == ["general", "benign"]
    for name, (row, _) in MADE.items():
        for kind in ("harmful", "benign", "general"):
            file = write(tmp_path / "x.jsonl", {**row, "prompt": "Hi", "kind": kind})
            loaded = prompts.load(file)
            assert (loaded.format, [prompt.kind for prompt in loaded.rows]) == ("own", [kind]), name
            for of in ("harmful", "benign", "general"):  # a format or a kind that is named overrides no row either
                for told in ({"format": name, "kind": of}, {"format": name}, {"kind": of}):
                    try:
                        assert {prompt.kind for prompt in prompts.load(file, **told).rows} <= {kind}
                    except BadInput as wrong:
                        assert str(wrong).startswith(f"{file}:1: ")
            own = {name: value for name, value in row.items() if name != "prompt"} | {"kind": kind}
            file = write(tmp_path / "y.jsonl", own)
            if row.keys() & {"messages", "conversation", "conversations"}:  # in place of a prompt
                assert [(one.kind, one.user_turns) for one in prompts.load(file).rows] == [(kind, 2)], name
                continue
            with pytest.raises(BadInput):
                prompts.load(file)
    assert (
        main(
            [
                "data",
                "check",
                str(write(tmp_path / "z.jsonl", {"prompt": "a", "kind": "benign", "goal": "g", "method": "m"})),
            ]
        )
        == 0
    )
    assert "prompts of your own (own)" in (out := capsys.readouterr().out) and "known by its fields prompt, kind" in out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "category": "c"}, {"prompt": "b", "category": "c", "kind": "harmful"}], ":2: has the"),
        (
            [{"prompt": "a", "category": "c"}, {"goal": "g", "prompt": "b", "method": "m", "category": "c"}],
            ":2: has the fields of JailbreakBench's attacks",
        ),
        ([{"prompt": "a", "kind": "benign"}, {"prompt": "b"}], ":2: kind: expected one of"),
        (['{"prompt": "a", "kind": "benign", "kind": "harmful"}'], ":1: the row says a field twice"),
        (
            [{"prompt": "a", "type": "t", "label": "safe", "risk_area": "r"}],
            ":1: the fields fit 2 formats, XSTest's prompts (xstest: label, prompt, type) and Do-Not-Answer",
        ),
        ([{"instruction": "a", "category": "c"}], "Alpaca, AlpacaEval (alpaca: instruction) has no category"),
        ([{"prompt": "a", "Kind": "benign", "category": "c"}], ":1: 'Kind': choreo's own field is 'kind'"),
        *(
            ([{"prompt": "a", "kind": kind, "goal": "g", "method": "m"}], ":1: kind: expected one of")
            for kind in ("Harmful", "unsafe", "", None, ["harmful"])
        ),
    ],
)
def test_nothing_is_guessed_against_what_is_said_nor_between_two(tmp_path, rows, said):
    file = write(tmp_path / "x.jsonl", *rows)
    with pytest.raises(BadInput) as wrong:
        prompts.load(file)
    assert said in str(wrong.value) and str(wrong.value).startswith(f"{file}:")


def test_a_data_set_that_looks_like_another_has_no_kind(tmp_path):
    harmful = {"id": "1", "harm_area": "x", "category": "y", "prompt": "z"}  # SimpleSafetyTests; not OR-Bench's benign
    loaded = prompts.load(write(tmp_path / "s.jsonl", harmful))
    assert loaded.format == "bare" and loaded.counts == {prompts.NO_KIND: 1}
    assert prompts.load(tmp_path / "s.jsonl", kind="harmful").rows[0].kind == "harmful"
    jbb = MADE["jailbreakbench"][0]
    assert prompts.load(write(tmp_path / "benign-behaviors.jsonl", jbb)).rows[0].kind == "benign"


def test_labels_of_ones_own_are_never_passed_over(tmp_path):
    published = {"goal": "g", "prompt": "p", "response": "r", "jailbroken": True, "method": "m", "model": "m"}
    assert answers.load(write(tmp_path / "x.jsonl", published)).rows[0].prompt.kind == "harmful"
    assert answers.load(write(tmp_path / "x.jsonl", published | {"kind": "benign"})).rows[0].prompt.kind == "benign"
    with pytest.raises(BadInput, match="harmful: is choreo's own field"):
        answers.load(write(tmp_path / "x.jsonl", published | {"harmful": False}))
    with pytest.raises(BadInput, match="fit 2 formats"):
        answers.load(write(tmp_path / "x.jsonl", {"prompt": "a", "answer": "x", "response": "y", "kind": "benign"}))
    two = {"prompt": "a", "chosen": "x", "rejected": "y", "response_0": "p", "response_1": "q"}
    with pytest.raises(BadInput, match="fit 2 formats"):
        preferences.load(write(tmp_path / "x.jsonl", two))
    assert preferences.load(tmp_path / "x.jsonl", "prompt-pairs").rows[0].chosen == "x"


def test_a_format_can_be_named_wherever_a_file_is(tmp_path, capsys):
    files = [
        str(write(tmp_path / f"{i}.jsonl", {"prompt": f"a {i}", "type": "t", "label": "safe", "risk_area": "r"}))
        for i in range(2)
    ]
    command = [
        "eval",
        "--conversation",
        "micro-llama",
        "--out",
        str(tmp_path / "o"),
        "--set",
        "answer_tokens=2",
        "--set",
        "feedback_tokens=2",
        "--suite",
        *files,
    ]
    assert main(command) == 2 and "fit 2 formats" in capsys.readouterr().err
    assert main([*command, "--format", "xstest", "xstest", "xstest"]) == 2
    assert "expected one for all files, or one for each" in capsys.readouterr().err
    assert main([*command, "--format", "xstest", "do-not-answer"]) == 0
    err = capsys.readouterr().err
    assert "format xstest, known by name, read 1, used 1, benign 1" in err and "format do-not-answer" in err
