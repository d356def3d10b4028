"""Recipes: every mistake gives one line that names where it is; what is written reads back equal."""

import random
import string

import pytest

from choreo.config import load, make, reading, to_toml
from choreo.errors import BadInput
from choreo.methods.waltz.recipe import WaltzRecipe


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "mine.toml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def complaint(path, overrides=()):
    with pytest.raises(BadInput) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("\n[learning]\nlr = 'fast'\n", 3, "learning.lr: expected a number > 0, got 'fast'"),
        ("learning.lr = -1", 1, "learning.lr: expected a number > 0, got -1"),
        ("[learning]\nlr = nan", 2, "learning.lr: expected a number > 0, got nan"),
        ("[learning]\nlr = 2026-01-01", 2, "learning.lr: expected a number > 0, got datetime.date(2026, 1, 1)"),
        ("# a comment\n[learning]\n\nlrr = 1", 4, "learning.lrr: unknown key; did you mean 'lr'?"),
        ("[lerning]\nlr = 1", 1, "lerning: unknown key; did you mean 'learning'?"),
        ("[learning.mix]\nbenign = 1\nharmfull = 1", 3, "learning.mix.harmfull: unknown key; did you mean 'harmful'?"),
        ("[learning.mix]\nharmful = 0", 1, "learning.mix: must give at least one kind a positive share"),
        ("[world]\nlanguages = [\n 'fr',\n]", 2, "world.languages.0: expected one of 'en', 'es', 'de', got 'fr'"),
        ("[world]\nlanguages = 'en'", 2, "world.languages: expected a list, got 'en'"),
        ("seed = true", 1, "seed: expected a whole number >= 0, got true"),
        ("seed = 1.5", 1, "seed: expected a whole number >= 0, got 1.5"),
        ("seed = '1'", 1, "seed: expected a whole number >= 0, got '1'"),
        ("name = 3", 1, "name: expected text in quotes, got 3"),
        ("learning = 3", 1, "learning: expected a table, got 3"),
        ("[rewards]\nmask_by_label = 1", 2, "rewards.mask_by_label: expected true or false, got 1"),
        ("[protocol]\nrounds = 9", 2, "protocol.rounds: expected a whole number >= 0 and <= 8, got 9"),
        ("[learning]\nsteps = 3\ntop_p = 0.9", 3, "learning.top_p: must be 1 in training: truncated or tempered"),
        ("seed = 1\nseed = 2", 2, "not valid TOML: Cannot overwrite a value"),
        ("seed = 1\n\n[learning\n", 3, "not valid TOML: Expected ']'"),
        ("seed = 1\nname = 'x", 2, "not valid TOML"),
        (b"seed = 1\nname = '\xff'", 2, "not UTF-8 text"),
    ],
)
def test_a_mistake_in_a_file_is_named_by_file_line_and_field(recipe_file, text, line, problem):
    path = recipe_file(text)
    message = complaint(path)
    assert message.startswith(f"{path}:{line}: {problem}")


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("learning.lr=fast", "learning.lr: expected a number > 0, got 'fast'"),
        ("learning.lrr=1", "learning.lrr: unknown key; did you mean 'lr'?"),
        ("seed.x=3", "seed: expected a whole number >= 0, got a table"),
        ("seed.x.y=3", "seed: expected a whole number >= 0, got a table"),
        ("learning.mix={harmful=0}", "learning.mix: must give at least one kind a positive share"),
        ("learning.estimator=gpo", "learning.estimator: expected one of 'reinforce++', 'reinforce++baseline', 'grpo',"),
        ("learning.lr", "expected section.key=value"),
        ("=3", "expected section.key=value"),
        ("learning..lr=3", "expected section.key=value"),
    ],
)
def test_a_mistake_in_an_override_is_named_by_the_argument(recipe_file, argument, problem):
    path = recipe_file("[learning]\nlr = 0.1\n")
    assert complaint(path, ["seed=1", argument, "model.rank=4"]).startswith(f"--set {argument}: {problem}")


def test_a_bad_file_is_blamed_even_when_an_override_touches_the_same_field(recipe_file):
    path = recipe_file("[learning]\nlr = 'fast'\n")
    assert complaint(path, ["learning.lr=0.1"]).startswith(f"{path}:2:")


def test_overrides_are_toml_values_or_plain_text_and_leave_the_rest(recipe_file):
    path = recipe_file("[learning]\nlr = 0.1\nsteps = 7\n")
    recipe = load(
        path,
        ["learning.lr=1e-5", "learning.estimator=rloo", "learning.mix.general=0", 'world.languages=["en"]', "seed=3"],
    )
    assert (recipe.learning.lr, recipe.learning.steps, recipe.learning.estimator) == (1e-5, 7, "rloo")
    assert recipe.learning.mix == {"harmful": 0.4, "benign": 0.4, "general": 0.0}
    assert (recipe.world.languages, recipe.seed) == (("en",), 3)


def test_what_follows_from_a_setting_follows_where_it_is_overridden_too():
    assert load("waltz").rewards.undetermined == "zero"  # the exact judge leaves nothing open that is an answer
    for recipe in (load("waltz", ["judge.kind=offline"]), make({}, ["judge.kind=offline"])):
        assert recipe.rewards.undetermined == "drop"
    assert load("waltz", ["judge.kind=offline", "rewards.undetermined=zero"]).rewards.undetermined == "zero"


def test_files_that_are_not_there(tmp_path):
    assert complaint(tmp_path / "none.toml") == f"{tmp_path / 'none.toml'}: no such recipe file"
    assert complaint(tmp_path) == f"{tmp_path}: no such recipe file"
    assert complaint("waltzz") == "waltzz: no shipped recipe has this name; did you mean 'waltz'?"


def test_every_shipped_recipe_loads_by_name_and_is_named_after_its_file():
    names = {path.stem: load(path.stem) for path in reading.SHIPPED.glob("*.toml") if not path.is_symlink()}
    assert {"waltz", "waltz-published", "waltz-frozen-conversation", "single-agent", "waltz-no-label"} <= names.keys()
    assert all(recipe.name == name for name, recipe in names.items())
    assert len({recipe.model_dump_json(exclude={"name"}) for recipe in names.values()}) == len(names)


def test_a_recipe_written_out_reads_back_equal(recipe_file):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    alphabet = string.printable + "äß€\x00\x1f\x7f\u2028\U0001f600\\\"'"
    for _ in range(200):
        recipe = WaltzRecipe.model_validate(
            {
                "name": "".join(rng.choices(alphabet, k=rng.randrange(12))),
                "seed": rng.randrange(2**40),
                "world": {"languages": tuple(rng.sample(["en", "es", "de"], rng.randrange(1, 4)))},
                "rewards": {"alpha": 10 ** rng.uniform(-20, 20), "mask_by_label": rng.random() < 0.5},
                "learning": {"mix": {"harmful": rng.random() + 0.1}},
            }
        )
        assert load(recipe_file(to_toml(recipe))) == recipe


def test_a_recipe_written_out_explains_every_setting():
    for name in ("waltz", "macpo"):
        lines = to_toml(load(name)).splitlines()
        settings = [i for i, line in enumerate(lines) if " = " in line and not line.startswith("#")]
        assert len(settings) > 25 and all(lines[i - 1].startswith("# ") for i in settings)
    text = to_toml(load("waltz"))
    assert "# a whole number >= 0: divides the reserve into training and held-out\nsplit_seed = 0" in text


def test_a_run_older_than_a_switch_goes_on_only_where_it_is_off(tmp_path):
    for name, missing in (("waltz", []), ("macpo", ["world.reading"])):
        lines = to_toml(load(name)).splitlines(keepends=True)
        file = tmp_path / f"{name}.toml"
        file.write_text("".join(line for line in lines if not line.startswith("reading = ")))
        assert reading.unset(file) == missing
