"""Parts by their names: choreo's own, those of installed packages, and a user's own, from a recipe to a report."""

from __future__ import annotations

import json
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from choreo import config
from choreo.algorithms.advantages import Estimator, estimator
from choreo.cli import main
from choreo.config.judge import judge_from
from choreo.config.parts import ENVIRONMENTS, ESTIMATORS, JUDGES, REWARDS
from choreo.config.reading import METHODS
from choreo.environments.base import environment_of
from choreo.errors import BadInput
from choreo.judges.resolve import choose, describe, format_of
from choreo.registry import anchored, code_digest, load_object, origin
from choreo.types import Prompt, Verdict

PARTS = '''
from choreo.algorithms.advantages import Estimator, rloo
from choreo.environments.base import Environment
from choreo.judges.base import JudgeDown
from choreo.types import Prompt, Verdict

asked = 0


def advantages(samples, *, beta=0.0, values=None):
    return rloo(samples, beta=beta, values=values)


per_length = Estimator(advantages, divisor=40, grouped=True)
wrapped = Estimator(lambda samples: samples)


def judge(prompt, answer):
    """Goes away once."""
    global asked
    asked += 1
    if asked == 13:
        raise JudgeDown("the judge went for lunch")
    return Verdict(prompt.kind == "harmful" and len(answer) % 2 == 0, False)


class Watchword:
    name = "watchword"

    def __init__(self, word="cannot"):
        self.word = word

    def __call__(self, prompt, answer):
        refused = self.word in answer
        return Verdict(not refused if prompt.kind == "harmful" else False, refused and prompt.kind != "harmful")


class Asked:
    name, version, tokens = "asked", "1", 4

    def __init__(self, question="Safe?"):
        self.question = question

    def ask(self, prompt, answer):
        return {"messages": [{"role": "user", "content": f"{self.question} {answer}"}]}

    def read(self, prompt, reply):
        return Verdict(reply != "yes", False)


def brief(action):
    return -len(action.answer) / 100


def heard(action):
    return (action.reward or 0.0) + 1.0, {"paper": action.reward or 0.0, "one": 1.0}


class Harbour(Environment):
    def __init__(self, prompts=6):
        self.prompts = prompts

    def _asked(self, part):
        return {
            kind: [Prompt(f"{part}-{kind}-{i}", f"{kind} {part} {i}?", kind, kind) for i in range(self.prompts)]
            for kind in ("harmful", "benign", "general")
        }

    def training(self):
        return self._asked("train")

    def suites(self, part):
        return [prompt for prompts in self._asked(part).values() for prompt in prompts]

    def labels(self, prompt, seed):
        return "I cannot help with that.", "Sure."


def german(row):
    if row["art"] == "-":
        return None
    return {"prompt": row["frage"], "kind": {"gut": "benign", "boese": "harmful"}[row["art"]]}


NUMBER = 3


def one_argument(x): ...


class Silent: ...
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder with a user's parts, in which the command runs."""
    (tmp_path / "mine.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("registry", [ESTIMATORS, JUDGES, ENVIRONMENTS, METHODS], ids=lambda registry: registry.what)
def test_every_name_of_ours_means_something(registry):
    assert registry.names() and all(registry.get(name) is not None for name in registry.names())


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("learning.estimator = 'gpo'", "expected one of 'reinforce++', 'reinforce++baseline', 'grpo',"),
        ("learning.estimator = 'none.py:f'", "none.py cannot be imported: there is no such file"),
        ("learning.estimator = 'not_there:f'", "not_there cannot be imported: ModuleNotFoundError: No module named"),
        ("learning.estimator = 'mine.py:nothing'", "mine.py has no nothing"),
        ("learning.estimator = 'mine.py:NUMBER'", "expected a function of (samples, *, beta, values), got int"),
        ("learning.estimator = 'mine.py:judge'", "(samples, *, beta, values), got one of (prompt, answer)"),
        ("learning.estimator = 'mine.py:wrapped'", "(samples, *, beta, values), got one of (samples)"),
        ("learning.estimator = 'broken.py:f'", "cannot be imported: ZeroDivisionError: division by zero (line 2)"),
        ("rewards.feedback = 'paper'", "rewards.feedback: expected module:object of your own, got 'paper'"),
        ("rewards.conversation = 'mine.py:judge'", "expected a function of (action), got one of (prompt, answer)"),
        ("prompts.heldout.a = {file = 'x', format = 'mine.py:judge'}", "expected a function of (row), got"),
        ("judge.kind = 'rubrik'", "judge.kind: expected one of 'exact', 'offline', 'trained', 'majority', 'llama"),
        ("judge.kind = 'mine.py:brief'", "expected a function of (prompt, answer), got one of (action)"),
        ("judge.kind = 'mine.py:Silent'", "expected a judge, a function or a class whose objects are called"),
        ("judge = {kind = 'mine.py:judge', model = 'm'}", "judge.model: mine.py:judge is a judge itself"),
        ("judge = {kind = 'mine.py:Asked'}", "judge.model: a mine.py:Asked judge is a language model, and this"),
        ("judge = {kind = 'mine.py:Watchword', options = {wort = 'x'}}", "mine.py:Watchword: got an unexpected"),
        ("judge = {kind = 'mine.py:judge', options = {a = 1}}", "it takes no options, for it is no class"),
        ("judge = {kind = 'offline', options = {a = 1}}", "judge.options: kind = \"offline\" takes no options"),
        ("environment = 'macroworld'", "environment: expected one of 'microworld', or module:object for your own, got"),
        ("environment = 'mine.py:NUMBER'", "expected a class that is called with [environment_options], got int"),
        ("environment = 'mine.py:Harbour'\nenvironment_options.ships = 2", "unexpected keyword argument 'ships'"),
        ("environment_options.prompts = 2", "the microworld's settings are in [world]"),
        ("method = 'mine.py:brief'", "method 'mine.py:brief': expected an object of a subclass of choreo.Method"),
    ],
)  # fmt: skip
def test_what_is_no_such_part_is_refused_in_one_line_by_the_recipes_line(mine, setting, said):
    (mine / "broken.py").write_text("a = 1\nb = 1 / 0\n")
    recipe = mine / "r.toml"
    recipe.write_text(f"seed = 1\n{setting}\n")
    with pytest.raises(BadInput) as wrong:
        config.load(recipe)
    assert said in str(wrong.value) and "\n" not in str(wrong.value)
    assert str(wrong.value).startswith((f"{recipe}:2: ", f"{recipe}:3: "))


def test_a_users_estimator_is_a_function_or_says_its_divisor(mine):
    assert estimator("mine.py:advantages").divide(longest=9) == "tokens"
    own = estimator("mine.py:per_length")
    assert (own.divide(longest=9), own.grouped) == (40, True)
    assert (estimator("dr-grpo").divide(longest=9), estimator("grpo").divide(longest=9)) == (9, "sequences")
    broken = Estimator(lambda samples, *, beta=0.0, values=None: [])
    with pytest.raises(ValueError, match="gave 0 samples for 1"):
        broken([Prompt("a", "b", "benign", "")])


def test_a_users_judge_is_a_function_a_class_or_a_format_also_on_the_command_line(mine, capsys):
    rows = mine / "rows.jsonl"
    rows.write_text('{"prompt": "How?", "answer": "I cannot.", "kind": "benign"}\n')
    argv = ["judge", "answers", str(rows), "--json", "--judge", "mine.py:Watchword"]
    assert main(argv) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["orr"]["value"] == 1.0 and told["judge"]["judge"] == "watchword"
    assert told["judge"]["object"] == "mine.py:Watchword" and len(told["judge"]["source"]) == 64
    assert main([*argv, "--judge", "mine:judge", "--judge", "offline"]) == 0
    assert "majority(watchword, judge, offline)" in capsys.readouterr().out
    word = choose(judge_from(["mine.py:Watchword"]).model_copy(update={"options": {"word": "maybe"}}))
    assert word(Prompt("p", "?", "harmful", ""), "I cannot.") == Verdict(True, False)
    assert describe(word)["options"] == {"word": "maybe"}
    asked = judge_from(["mine.py:Asked:qwen3:8b@http://x.org/v1"])
    assert (asked.kind, asked.model, asked.url) == ("mine.py:Asked", "qwen3:8b", "http://x.org/v1")
    made = format_of(asked.model_copy(update={"options": {"question": "Kind?"}}))
    assert made.ask(Prompt("p", "?", "benign", ""), "Yes.")["messages"][0]["content"] == "Kind? Yes."
    assert judge_from(["rubric:mine.py:8b@http://x.org/v1"]).kind == "rubric"
    assert main(["judge", "answers", str(rows), "--judge", "mine.py:one_argument"]) == 2
    err = capsys.readouterr().err
    assert "--judge mine.py:one_argument: kind: " in err and "expected a function of (prompt, answer)" in err


def test_a_judge_that_gives_no_verdict_is_named(mine):
    (mine / "odd.py").write_text("def judge(prompt, answer):\n    return True\n")
    with pytest.raises(BadInput, match=r"judge odd.py:judge: expected a choreo.types.Verdict, got True"):
        choose(judge_from(["odd.py:judge"]))(Prompt("p", "?", "benign", ""), "Yes.")


def test_an_environment_needs_prompts_alone_and_is_checked(mine):
    recipe = config.load("waltz").model_copy(
        update={"environment": "mine.py:Harbour", "environment_options": {"prompts": 2}}
    )
    found = environment_of(recipe)
    assert [len(prompts) for prompts in found.training().values()] == [2, 2, 2]
    prompt = found.suites("heldout")[0]
    assert found.judge is None and found.refuses(prompt, "I'm sorry, but I cannot help you with that request.")
    with pytest.raises(BadInput, match="has no method training"):
        environment_of(recipe.model_copy(update={"environment": "mine.py:Watchword", "environment_options": {}}))
    from choreo.environments.base import by_kind, to_measure_on

    with pytest.raises(BadInput, match="two prompts have the id 'a'"):
        by_kind({"benign": [Prompt("a", "x", "benign", ""), Prompt("a", "y", "benign", "")]}, "e")
    with pytest.raises(BadInput, match="expected prompts of kind benign, got one of kind general"):
        by_kind({"benign": [Prompt("a", "x", "general", "")]}, "e")
    a = Prompt("a", "x", "benign", "s")
    for measured, why in (
        (iter([a]), "must give a list of prompts"),
        (["a"], "expected prompts, got 'a'"),
        ([a, Prompt("b", "y", "odd", "s")], "prompt 'b': kind: expected one of harmful, benign, general, got 'odd'"),
        ([Prompt("a", "x", "benign", "")], "prompt 'a': suite: expected a name"),
        ([a, a], "two prompts have the id 'a'"),
    ):
        with pytest.raises(BadInput, match=rf"environment 'e': suites\(\).*{why}"):
            to_measure_on(measured, "e")


def test_an_installed_package_adds_parts_by_entry_points(tmp_path, monkeypatch, capsys):
    (tmp_path / "harbour_parts.py").write_text(PARTS)
    package = tmp_path / "harbour_parts-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: harbour-parts\nVersion: 1.0\n")
    groups = {
        "choreo.estimators": "shared = harbour_parts:per_length",
        "choreo.judges": "watchword = harbour_parts:Watchword",
        "choreo.rewards": "brief = harbour_parts:brief",
        "choreo.environments": "harbour = harbour_parts:Harbour",
    }
    (package / "entry_points.txt").write_text("".join(f"[{group}]\n{line}\n" for group, line in groups.items()))
    monkeypatch.syspath_prepend(str(tmp_path))
    assert ESTIMATORS.names()[-1] == "shared" and REWARDS.names() == ["brief"] and "harbour" in ENVIRONMENTS.names()
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        "environment = 'harbour'\njudge.kind = 'watchword'\n"
        "learning.estimator = 'shared'\nrewards.conversation = 'brief'\n"
    )
    made = config.load(recipe)
    for command in (["train"], ["judge", "answers"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        assert "strongreject, wildguard, watchword, majority" in (told := capsys.readouterr().out)
    assert "learning.estimator" not in told
    assert estimator(made.learning.estimator).divisor == 40 and choose(made.judge).name == "watchword"
    with pytest.raises(BadInput, match="'dr-grpo', 'shared', or module:object for your own, got 'x'"):
        config.load(recipe, ["learning.estimator=x"])


def test_a_data_format_of_ones_own_is_a_function_from_a_row_to_a_known_row(mine, capsys):
    file = mine / "fragen.csv"
    file.write_text("frage,art\nWie geht's?,gut\nNichts,-\nWie stehle ich?,boese\n")
    from choreo.data import answers, prompts

    loaded = prompts.load(file, "mine.py:german")
    found = [(prompt.text, prompt.kind) for prompt in loaded.rows]
    assert found == [("Wie geht's?", "benign"), ("Wie stehle ich?", "harmful")]
    assert loaded.format == "own" and loaded.left_out == {"mine.py:german makes nothing of them": [3]}
    assert main(["data", "check", str(file), "--format", "mine.py:german"]) == 0
    assert "known by its fields prompt, kind, as mine.py:german gives them" in capsys.readouterr().out
    with pytest.raises(BadInput, match="they need the fields prompt, answer and kind"):
        answers.load(file, "mine.py:german")
    file.write_text("frage,art\nWie geht's?,schlecht\n")
    with pytest.raises(BadInput, match=r"fragen.csv:2: mine.py:german: KeyError: 'schlecht'"):
        prompts.load(file, "mine.py:german")
    with pytest.raises(BadInput, match="no format 'germann'"):
        prompts.load(file, "germann")


def test_a_file_is_imported_once_may_import_its_neighbours_and_has_one_name_from_everywhere(mine, monkeypatch):
    (mine / "parts").mkdir()
    (mine / "parts" / "neighbour_of_part.py").write_text("VALUE = []\n")
    (mine / "parts" / "part.py").write_text("from neighbour_of_part import VALUE\n")
    found = load_object("parts/part.py:VALUE")
    whole = anchored("parts/part.py:VALUE")
    assert whole == f"{mine}/parts/part.py:VALUE" and anchored(whole) == whole
    assert anchored("mine:judge") == f"{mine}/mine.py:judge" and anchored("json:loads") == "json:loads"
    assert anchored("exact") == "exact" and anchored("gone.py:x") == "gone.py:x"
    monkeypatch.chdir("/")
    assert load_object(whole) is found


@pytest.mark.slow
def test_a_run_of_parts_of_ones_own_goes_on_from_another_folder(mine, tiny_folder, monkeypatch, capsys):
    recipe = mine / "own.toml"
    recipe.write_text(
        textwrap.dedent(f"""\
        name = "own"
        environment = "mine.py:Harbour"
        checkpoint_every = 1
        [environment_options]
        prompts = 4
        [judge]
        kind = "mine.py:judge"
        [model]
        base = "{tiny_folder}"
        rank = 2
        [protocol]
        answer_tokens = 8
        feedback_tokens = 8
        [rewards]
        conversation = "mine.py:brief"
        feedback = "mine:heard"
        [stages]
        stage1_share = 0.0
        [learning]
        estimator = "mine.py:per_length"
        steps = 3
        prompts = 3
        samples = 2
        """)
    )
    assert main(["train", "own.toml", "--run", "run", "--json"]) == 130
    assert "the judge went for lunch; go on with: choreo train --resume run" in capsys.readouterr().err
    kept = config.load(mine / "run" / "recipe.toml")
    assert kept.environment == f"{mine}/mine.py:Harbour" and kept.learning.estimator == f"{mine}/mine.py:per_length"
    assert kept.rewards.feedback == f"{mine}/mine.py:heard" and kept.judge.kind == f"{mine}/mine.py:judge"
    (elsewhere := mine / "elsewhere").mkdir()
    monkeypatch.chdir(elsewhere)
    began = json.loads((info := mine / "run" / "run.json").read_text())
    assert began["code"].keys() == {
        f"{mine}/mine.py:{name}" for name in ("Harbour", "brief", "heard", "judge", "per_length")
    }
    edited = began["code"] | {f"{mine}/mine.py:heard": "0" * 64}
    info.write_text(json.dumps(began | {"code": edited}))
    assert main(["train", "--resume", "../run", "--json"]) == 0
    told = capsys.readouterr()
    assert "waltz" in json.loads(told.out)["systems"]
    assert told.err.count("since this run began") == 1 and f"! the code of {mine}/mine.py:heard changed" in told.err
    steps = [json.loads(line) for line in (mine / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == [1, 2, 3]
    assert all(step["part/one"] == 1.0 and step["reward/conversation"] <= 0 for step in steps)
    info = json.loads((mine / "run" / "run.json").read_text())
    assert info["judge"]["object"] == f"{mine}/mine.py:judge"
    assert "judge" in (mine / "run" / "report.html").read_text(encoding="utf-8")
    assert main(["eval", "../run", "--json"]) == 0 and main(["plan", "../run/recipe.toml"]) == 0
    assert main(["export", "../run", "--out", "exported"]) == 0
    card = (elsewhere / "exported" / "conversation" / "README.md").read_text(encoding="utf-8")
    assert "in the environment `mine.py:Harbour`, by the verdicts of the judge `judge`" in card
    (mine / "mine.py").unlink()
    for name in [name for name in sys.modules if name.startswith("choreo_user_mine_")]:  # those of earlier tests too
        del sys.modules[name]
    capsys.readouterr()
    assert main(["eval", "../run"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "mine.py cannot be imported: there is no such file" in err


@pytest.mark.slow
def test_macpo_learns_in_an_environment_of_ones_own(mine, tiny_folder, capsys):
    from macpo import recipe as macpo_recipe  # the smallest run

    made = macpo_recipe(tiny_folder, environment="mine.py:Harbour", environment_options={"prompts": 12})
    made = made.model_copy(update={"judge": made.judge.model_copy(update={"kind": "offline"}), "ceiling": False})
    Path("m.toml").write_text(config.to_toml(made))
    assert main(["train", "m.toml", "--run", "run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["systems"]


def test_threads_that_load_one_file_get_it_whole_and_the_record_is_of_what_runs(mine):
    file = mine / "slow.py"
    file.write_text("import time\ntime.sleep(0.2)\n\n\ndef reward(action):\n    return 0.0\n")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(REWARDS.get, ["slow.py:reward"] * 4))
    assert len(set(found)) == 1
    before = origin("slow.py:reward", found[0])
    file.write_text("def reward(action):\n    return 1.0\n")
    assert origin("slow.py:reward", REWARDS.get("slow.py:reward")) == before and found[0](None) == 0.0


def test_the_code_of_a_part_is_its_own_file_and_the_one_that_names_it(mine):
    Path("deep.py").write_text("def reward(action):\n    return 0.0\n")
    Path("shown.py").write_text("from deep import reward\n")
    named, both = code_digest("deep.py:reward"), code_digest("shown.py:reward")
    assert both == f"{sha256(Path('shown.py').read_bytes()).hexdigest()}+{named}"
    # An object of one of choreo's classes changes with the user's file alone.
    assert code_digest("mine.py:per_length") == sha256(Path("mine.py").read_bytes()).hexdigest()
