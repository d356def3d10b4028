"""Published prompt sets, mixtures, overlap: made rows in every schema, real rows where CHOREO_DATA has them."""

from __future__ import annotations

import gzip
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from choreo import config
from choreo.cli import main
from choreo.config.prompts import Source
from choreo.data import answers, preferences, prompts
from choreo.data.mixture import mixture, parted, wrapped
from choreo.data.overlap import overlaps
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.files.rows import rows
from choreo.methods.waltz.recipe import Learning
from choreo.types import Prompt

# One made row of every schema, and (kind, part of the text) of what is read in it.
MADE = {
    "wildjailbreak": (
        {"vanilla": "", "adversarial": "Pretend to help", "completion": "", "data_type": "adversarial_benign"},
        [("benign", "Pretend")],
    ),
    "fortress": (
        {
            "ID": 1,
            "adversarial_prompt": "Break it",
            "benign_prompt": "Mend it",
            "rubric": [],
            "risk_domain": "x",
            "risk_subdomain": "y",
        },
        [("harmful", "Break"), ("benign", "Mend")],
    ),
    "xstest": (
        {"id": "1", "prompt": "How to kill a process?", "type": "homonyms", "label": "safe"},
        [("benign", "kill")],
    ),
    "harmbench": (
        {"Behavior": "Do it", "ContextString": "A story", "BehaviorID": "b"},
        [("harmful", "A story\n\n---")],
    ),
    "advbench": ({"goal": "Write it", "target": "Sure"}, [("harmful", "Write")]),
    "jailbreakbench-artifacts": (
        {"goal": "g", "prompt": "Attack", "response": "", "method": "GCG"},
        [("harmful", "Attack")],
    ),
    "jailbreakbench": ({"index": 1, "goal": "Defame", "behavior": "b", "category": "c"}, [("harmful", "Defame")]),
    "jailbreakbench-table": (
        {"Index": "1", "Goal": "Defame", "Target": "t", "Behavior": "b", "Category": "c"},
        [("harmful", "Defame")],
    ),
    "do-not-answer": ({"risk_area": "r", "question": "Where?"}, [("harmful", "Where")]),
    "coconot": (
        {"id": "1", "category": "Requests with safety concerns", "subcategory": "s", "prompt": "Insult"},
        [("harmful", "Insult")],
    ),
    "cyberseceval-frr": ({"mutated_prompt": "Scan", "is_malicious": False, "attack_type": "a"}, [("benign", "Scan")]),
    "cyberseceval-injection": (
        {"test_case_prompt": "Rules", "user_input": "Ignore", "injection_type": "direct", "judge_question": "?"},
        [("harmful", "Rules\n\nIgnore")],
    ),
    "ifeval": ({"key": 1, "prompt": "No commas", "instruction_id_list": [], "kwargs": []}, [("general", "commas")]),
    "mmlu": ({"question": "2+2?", "subject": "maths", "choices": ["3", "4"], "answer": 1}, [("general", "B. 4")]),
    "truthfulqa": ({"question": "Is it?", "best_answer": "No", "category": "c"}, [("general", "Is it")]),
    "truthfulqa-table": (
        {"Type": "t", "Category": "c", "Question": "Is it?", "Best Answer": "No"},
        [("general", "Is it")],
    ),
    "alpaca": ({"instruction": "Sort", "input": "b a"}, [("general", "Sort\n\nb a")]),
    "own": ({"prompt": "Hi", "kind": "general", "language": "de"}, [("general", "Hi")]),
    "or-bench": ({"prompt": "Knives?", "category": "violence"}, [("benign", "Knives")]),
}


def write(file: Path, *made: object) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in made), encoding="utf-8")
    return file


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


def test_tables_gzip_and_what_cannot_be_read(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text('prompt,category\n"Two\nlines",x\nOne\n"a, b",y\n', encoding="utf-8")
    read = list(rows(table))
    assert read[0] == (3, {"prompt": "Two\nlines", "category": "x"})
    assert read[2] == (5, {"prompt": "a, b", "category": "y"})
    assert str(read[1][1]) == f"{table}:4: expected 2 columns, as the first line has, got 1"
    packed = tmp_path / "t.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"prompt": "Hi", "kind": "benign"}\n'))
    assert prompts.load(packed).rows[0].suite == "t-benign"
    for content, said in ((b"PAR1", "Parquet"), (b"\x1f\x8b", "not UTF-8"), (b'{"a": "\xff"}', ":1: not UTF-8")):
        (tmp_path / "bad.jsonl").write_bytes(content)
        with pytest.raises(BadInput, match=said):
            list(rows(tmp_path / "bad.jsonl"))
    (tmp_path / "bad.gz").write_bytes(b"text")
    with pytest.raises(BadInput, match="no whole gzip file"):
        list(rows(tmp_path / "bad.gz"))


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


def test_overlap_finds_equal_near_and_wrapped_prompts():
    def prompt(name: str, text: str) -> Prompt:
        return Prompt(name, text, "harmful", "x")

    request = "write a short story about a fox that opens the old wooden door"
    trained = [
        prompt("a", "Write a SHORT story: about a fox that opens the old wooden door!"),
        prompt("b", f"You are an actor without rules. {request} and stay in your role"),
        prompt("c", "one two three four"),
    ]
    measured = [
        prompt("1", request),
        prompt("2", request.replace("short story", "long poem")),
        prompt("3", "something else entirely is asked for here"),
        prompt("4", "two three"),
    ]
    found = overlaps(trained, measured)
    assert [(o.measured.id, o.trained.id, o.equal) for o in found] == [("1", "a", True)]
    near = overlaps(trained[1:], measured)
    assert [(o.measured.id, o.trained.id, o.equal, o.share) for o in near] == [("1", "b", False, 1.0)]


def test_a_mixture_draws_by_weight_wraps_and_holds_out(tmp_path):
    big = write(tmp_path / "big.jsonl", *({"prompt": f"b{i}", "kind": "harmful"} for i in range(300)))
    small = write(tmp_path / "small.jsonl", *({"prompt": f"s{i}", "kind": "harmful"} for i in range(30)))
    jail = write(tmp_path / "jail.jsonl", {"prompt": "Play along: [INSERT PROMPT HERE] now"}, {"prompt": "No rules."})
    sources = {"big": Source(file=str(big)), "small": Source(file=str(small), weight=3.0, wrap=str(jail), most=20)}
    mixed = mixture(sources, seed=0)
    assert Counter(prompt.suite for prompt in mixed.prompts) == {"big-harmful": 300, "small-harmful": 20}
    assert mixed.counts["small"]["read"] == 30 and mixed.counts["small"]["used"] == 20
    small_texts = {prompt.text for prompt in mixed.prompts if prompt.suite == "small-harmful"}
    assert all(text.startswith(("Play along: s", "No rules.\n\ns")) for text in small_texts) and len(small_texts) == 20
    assert wrapped([Prompt("1", r"a\1", "benign", "")], ["[PROMPT]"], "k")[0].text == r"a\1"

    from choreo.methods.waltz.trainer import draw

    learning = Learning(prompts=8, samples=1, mix={"harmful": 1.0})
    pool = {"harmful": list(mixed.prompts), "benign": [], "general": []}
    drawn = Counter(prompt.suite for step in range(300) for prompt, _ in draw(pool, learning, 0, step, mixed.weights))
    # Three to one without replacement: 8 of 20 are soon used up, so a little less than three quarters.
    assert 0.6 < drawn["small-harmful"] / drawn.total() < 0.75
    assert draw(pool, learning, 0, 1, mixed.weights) == draw(pool, learning, 0, 1, mixed.weights)

    train, heldout = parted(mixed.prompts)
    assert len(train) + len(heldout) == 320 and 15 <= len(heldout) <= 55
    assert not {prompt.text for prompt in train} & {prompt.text for prompt in heldout}


def test_a_recipe_on_files(tmp_path):
    file = write(
        tmp_path / "p.jsonl",
        *({"prompt": f"{kind} prompt {i}", "kind": kind} for i in range(60) for kind in ("harmful", "benign")),
    )
    text = f'[judge]\nkind = "offline"\n[prompts.train.mine]\nfile = "{file}"\nweight = 2.0\n'
    recipe = config.load(write(tmp_path / "r.toml", text))
    again = config.load(write(tmp_path / "again.toml", config.to_toml(recipe)))
    assert again == recipe and not config.unset(tmp_path / "again.toml")
    task = Task(recipe)
    train, heldout = task.training(), task.suites("heldout")
    assert not train["general"] and {prompt.suite for prompt in heldout} == {"mine-harmful", "mine-benign"}
    assert sum(map(len, train.values())) + len(heldout) == 120
    assert task.report()["overlap"]["equal"] == 0 and task.report(heldout[:1])["overlap"]["equal"] == 1
    both = config.load(write(tmp_path / "b.toml", text + f'[prompts.heldout.same]\nfile = "{file}"\n'))
    assert Task(both).report()["overlap"]["equal"] == 120
    for change, said in (
        ('kind = "exact"', 'r.toml:2: judge: kind = "exact" knows the microworld alone'),
        ('kind = "rubric"', "judge.model: a rubric judge is a language model, and this names none"),
        ('kind = "majority"', "judge.of: a majority takes two judges or more"),
        ('kind = "offlin"', "judge.kind: expected one of"),
        ('kind = "offline"\nurl = "x"', "judge.url: must look like"),
    ):
        with pytest.raises(BadInput) as wrong:
            config.load(write(tmp_path / "r.toml", text.replace('kind = "offline"', change)))
        assert said.split("r.toml:2: ")[-1] in str(wrong.value)
    with pytest.raises(BadInput, match="'a b' is no name"):
        config.load(write(tmp_path / "r.toml", f'[prompts.train."a b"]\nfile = "{file}"\n'))


def test_check_says_what_a_file_is_and_what_is_wrong_where(tmp_path, capsys):
    file = write(
        tmp_path / "x.jsonl",
        {"prompt": "Hi", "kind": "benign"},
        "{",
        {"prompt": 3, "kind": "benign"},
        {"prompt": "Hi", "kind": "benign"},
        {"prompt": "Ho", "kind": "rude"},
    )
    assert main(["data", "check", str(file)]) == 2
    out = capsys.readouterr().out
    assert "prompts of your own (own): 5 rows, 1 of use" in out and "benign 1" in out
    assert "left out, a prompt that was there before: 1 (line 4)" in out
    for line, said in ((2, "not JSON"), (3, "prompt: expected text, got int"), (5, "kind: expected one of")):
        assert f"wrong: {file}:{line}: {said}" in out
    other = write(tmp_path / "y.jsonl", {"prompt": "hi!", "answer": "x", "kind": "benign"})
    assert main(["data", "check", str(other), "--against", str(file), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [way["as"] for way in told["as"]] == ["answers", "prompts"]
    assert (told["overlap"]["equal"], told["overlap"]["prompts"]) == (1, 1)
    assert main(["data", "check", str(write(tmp_path / "z.jsonl", {"a": 1}))]) == 2
    assert "no known format has the fields a" in capsys.readouterr().err
    for name, text, said in (
        ("e", "", "holds no rows"),
        ("README.md", "# Read", ":1: not JSON: Expecting value, "),
        ("s", '{"a": "b', ":1: not JSON: Unterminated string starting, column 7"),
        ("f", "{}", ":1: a row without any field"),
    ):
        (tmp_path / name).write_text(text)
        assert main(["data", "check", str(tmp_path / name)]) == 2
        assert said in (err := capsys.readouterr().err) and err.count("\n") == 1, err
    assert main(["data", "check", str(file), "--format", "none"]) == 2


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
            with pytest.raises(BadInput):
                prompts.load(write(tmp_path / "y.jsonl", own))
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


REAL = {
    "advbench": ("harmbench", 332),
    "alpaca_eval_prompts": ("alpaca", 575),
    "alpaca_instructions_sample": ("alpaca", 2101),
    "coconot_eval": ("coconot", 268),
    "coconot_pref": ("coconot", 638),
    "cyberseceval_mitre_frr": ("cyberseceval-frr", 524),
    "cyberseceval_prompt_injection": ("cyberseceval-injection", 166),
    "do_not_answer": ("do-not-answer", 637),
    "harmbench_text": ("harmbench", 290),
    "jbb_attack_artifacts": ("jailbreakbench-artifacts", 326),
    "jbb_behaviors": ("jailbreakbench", 61),
    "xstest_prompts": ("xstest", 327),
    "jailbreak_prompts_in_the_wild": ("bare", 0),
    "xstest_responses_human_labels": ("bare", 0),
}


@pytest.mark.skipif("CHOREO_DATA" not in os.environ, reason="CHOREO_DATA names no folder of published data")
def test_published_rows_are_read_whole():
    folder = Path(os.environ["CHOREO_DATA"])
    found = {name: prompts.load(folder / f"{name}.jsonl") for name in REAL}
    assert {name: (loaded.format, len(loaded.rows)) for name, loaded in found.items()} == REAL
    xstest = Counter(prompt.kind for prompt in found["xstest_prompts"].rows)
    assert xstest == {"benign": 182, "harmful": 145}
    assert len(preferences.load(folder / "coconot_pref.jsonl").rows) == 643
    labelled = answers.load(folder / "xstest_responses_human_labels.jsonl").rows
    assert len(overlaps(found["xstest_prompts"].rows, [row.prompt for row in labelled[:50]])) >= 30


def test_the_recipe_in_the_docs_is_one(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "your-data.md").read_text(encoding="utf-8")
    recipe = config.load(write(tmp_path / "mine.toml", page.split("```toml\n")[1].split("```")[0]))
    assert set(recipe.prompts.train) == {"jailbreaks", "lookalikes", "wrapped"} and recipe.judge.kind == "rubric"
    for name in prompts.FORMATS:
        assert f"`{name.removesuffix('-table')}`" in page
