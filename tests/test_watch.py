"""What `choreo watch` reads of run folders: growing files, states, figures, alarms, settings, and games among many."""

from __future__ import annotations

import json
import os
import random
import re
import threading

import pytest
from test_runs import episode

from choreo.cli import main
from choreo.errors import BadInput
from choreo.files import durable
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.models.hub import fingerprint
from choreo.models.resolve import BASES
from choreo.runs.episodes import record
from choreo.runs.folder import Run
from choreo.runs.lock import is_held, take
from choreo.watch.curves import curve_figures, values_of
from choreo.watch.figures import alarm_times
from choreo.watch.folders import GrowingLines, runs_in
from choreo.watch.games import IndexedGame, indexed, shown_game
from choreo.watch.index import ORDERS, GameIndex, GameSearch, match_of
from choreo.watch.pieces import pieces
from choreo.watch.recipes import said_of_settings, side_by_side
from choreo.watch.watcher import Watcher


def told(watcher):
    watcher._walked = float("-inf")  # new runs are searched for every few seconds
    watcher.look()
    while watcher.take_up(60):
        pass
    watcher.look()
    return json.loads(watcher.told)


@pytest.fixture
def watcher(tmp_path):
    """A watcher of an empty folder, without its thread: a test says when it looks."""
    made = Watcher(tmp_path)
    yield made
    made.index.close()


def test_half_a_line_waits_for_its_end_and_a_cut_is_noticed(tmp_path):
    file = tmp_path / "metrics.jsonl"
    lines = GrowingLines(file)
    assert not lines.read() and lines.lines == []
    file.write_text('{"step": 1}\n{"step": 2, "as')
    assert lines.read() and lines.lines == [{"step": 1}]
    with open(file, "a") as more:
        more.write('r": 0.5}\nno json\n[1]\n')
    assert lines.read() and lines.lines == [{"step": 1}, {"step": 2, "asr": 0.5}]
    assert not lines.read() and lines.generation == 0
    # A resume cuts the file and writes on: it may be longer again before anybody looks.
    file.write_text('{"step": 1}\n{"step": 2, "asr": 0.25}\n' + "".join(f'{{"step": {n}}}\n' for n in range(3, 9)))
    assert lines.read() and lines.generation == 1
    assert [line["step"] for line in lines.lines] == [*range(1, 9)] and lines.lines[1]["asr"] == 0.25
    file.unlink()
    assert lines.read() and lines.lines == [] and lines.generation == 2


def test_a_run_is_running_interrupted_or_finished_by_its_lock_and_summary(watcher, tmp_path):
    assert told(watcher)["runs"] == []
    recipe = WaltzRecipe.model_validate({"seed": 4, "learning": {"steps": 3}})
    with Run.create(tmp_path / "deep" / "in" / "mine", recipe) as run:
        (row,) = told(watcher)["runs"]
        assert (row["state"], row["doing"], row["name"]) == ("running", "starting", "deep/in/mine")
        assert (row["method"], row["seed"], row["bases"], row["judges"]) == (
            "waltz", 4, ["micro-llama"], {"training": "exact"},
        )  # fmt: skip
        run.log(1, {"asr": 0.5, "orr": 0.2, "ftr_general": 0.25, "seconds": 7.0, "alarms": ["it burns"]})
        (row,) = told(watcher)["runs"]
        assert (row["step"], row["steps"], row["left"], row["doing"]) == (1, 3, 14.0, "training, step 1 of 3")
        assert row["measures"]["f1"]["value"] == pytest.approx(2 / (1 / 0.5 + 1 / 0.8))
        assert row["alarms"][0]["on"] and "gap" not in row["measures"]
        both = {"asr/gold": 0.5, "orr/gold": 0.0, "asr/training": 0.0, "orr/training": 0.0}
        run.log(2, {"asr": 0.0, "orr": 0.0, "alarms": [], **both})
        (row,) = told(watcher)["runs"]
        assert row["measures"]["asr"]["value"] == 0.5, "by the gold judge, where there is one"
        assert row["measures"]["gap"]["value"] == pytest.approx(2 / 3 - 1) and not row["alarms"][0]["on"]
    (row,) = told(watcher)["runs"]
    assert (row["state"], row["doing"]) == ("interrupted", "stopped after step 2 of 3")
    rate = {"value": 0.1, "low": 0.05, "high": 0.2, "n": 60}
    waltz = {"asr": rate, "f1": {**rate, "value": 0.9}, "ftr": {"general": rate}}
    run.finish({"systems": {"base": {}, "waltz": {**waltz, "by_training_judge": {"f1": {"value": 0.95}}}}})
    (row,) = told(watcher)["runs"]
    assert (row["state"], row["by"], row["about"]) == ("finished", "waltz, on held-out prompts", "waltz")
    assert row["measures"]["ftr"] == rate and row["measures"]["gap"]["value"] == pytest.approx(-0.05)
    (run.path / "summary.json").write_text(
        '{"systems": {"waltz": {"f1": {"value": "high"}, "by_training_judge": {"f1": {"value": 1}}}}}'
    )
    (row,) = told(watcher)["runs"]
    assert "holds what no run does" in row["problem"] and row["state"] == "finished"
    (run.path / "summary.json").write_text("{")
    assert "summary.json: not JSON" in told(watcher)["runs"][0]["problem"]


def test_games_after_a_round_are_found_beside_those_at_the_end(watcher, tmp_path):
    with Run.create(tmp_path / "mine", WaltzRecipe()) as run:
        for number in (0, 9, 10):
            run.save_measured("student+", {}, [episode(number), episode(number + 1)], round=number)
        run.save_measured("student+", {}, [episode(10), episode(11)])  # of the last round, at the end
        (run.path / "heldout" / "round-9" / "teacher-1+.jsonl.gz").write_bytes(b"no games")
    (row,) = told(watcher)["runs"]
    found = [name for name, _ in watcher.index.choices([row["run"]])["source"]]
    assert found == ["student+", "student+ after round 0", "student+ after round 9"] and watcher.index.games == 6
    assert "teacher-1+.jsonl.gz: is damaged" in row["problem"]


def test_a_run_that_a_study_has_not_begun_waits(watcher, tmp_path):
    Run.create(tmp_path / "table" / "runs" / "waltz-seed0", WaltzRecipe()).close()
    assert [row["state"] for row in told(watcher)["runs"]] == ["interrupted"]
    durable.write_json(tmp_path / "table" / "study.json", {})
    (row,) = told(watcher)["runs"]
    assert (row["state"], row["doing"]) == ("waiting", "a run of a study that has made no step yet")


def attack_folder(folder, tries):
    """As `choreo attack` leaves it when it is stopped after so many tries of one system."""
    about = {"step": 4, "base": f"{fingerprint(BASES / 'nano-llama')}+0123456789abcdef", "checkpoint": "c" * 16}
    (folder / "attempts").mkdir(parents=True)
    info = {"name": "attack", "method": "attack", "attacks": "runs/mine", "target": about, "seed": 7, "writer": {}}
    info["judge"] = "microworld"
    durable.write_json(folder / "run.json", info)
    games = [record(episode(number), {}) for number in range(tries)]
    if tries:
        durable.write_lines(folder / "attempts" / "pair%2C%20injection.001-000.jsonl.gz", games)


def test_an_attack_has_tries_and_its_row_no_figures_of_one_of_its_systems(watcher, tmp_path):
    attack_folder(tmp_path / "none", 0)
    attack_folder(tmp_path / "some", 3)
    watcher._walked = float("-inf")
    watcher.look()  # before its files are read, it says no number that is wrong
    unread = [row["doing"] for row in json.loads(watcher.told)["runs"]]
    assert unread == ["stopped; its tries are still being read"] * 2
    none, some = told(watcher)["runs"]
    assert none["doing"] == "stopped before its first try on runs/mine"
    assert some["doing"] == "stopped after 3 tries on runs/mine"
    assert (some["state"], some["report"], some["measures"]) == ("interrupted", "", {})
    assert (some["bases"], some["judges"], some["seed"]) == (
        ["nano-llama", "0123456789abcdef"], {"attack": "microworld"}, 7,
    )  # fmt: skip
    run = watcher.runs[some["run"]]
    assert (run.base("conversation"), run.base("feedback")) == ("nano-llama", "0123456789abcdef")
    lock = take(tmp_path / "some")
    row = told(watcher)["runs"][1]
    assert (row["doing"], row["steps"], row["left"]) == ("attacking runs/mine, 3 tries so far", None, None)
    info = json.loads((tmp_path / "some" / "run.json").read_text())
    durable.write_json(
        tmp_path / "some" / "run.json", {**info, "progress": {"done": 40, "total": 1000, "seconds": 0.5}}
    )
    row = told(watcher)["runs"][1]
    assert row["doing"] == "attacking runs/mine, 3 tries so far; done or no longer needed: 40 of 1,000"
    assert (row["step"], row["steps"], row["bound"], row["left"]) == (40, 1000, "usually less than", 480.0)
    os.close(lock)
    row = told(watcher)["runs"][1]
    assert row["doing"] == "stopped after 3 tries on runs/mine; done or no longer needed: 40 of 1,000"
    assert row["left"] is None
    rate = {"value": 0.25, "low": 0.1, "high": 0.5, "n": 12}
    systems = {name: {"asr": rate, "orr": rate, "sent": 500} for name in ("pair, injection", "alone, injection")}
    durable.write_json(tmp_path / "some" / "summary.json", {"systems": systems})
    (tmp_path / "some" / "report.html").write_text("")
    row = told(watcher)["runs"][1]
    assert (row["state"], row["doing"]) == ("finished", "finished after 1,000 tries on runs/mine")
    assert (row["measures"], row["by"], row["problem"]) == ({}, "", "")
    assert row["report"] == str(tmp_path / "some" / "report.html")


def test_to_ask_for_the_lock_never_stops_a_run_that_begins(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        assert is_held(run.path)
    over = threading.Event()
    asking = threading.Thread(target=lambda: [is_held(run.path) for _ in iter(over.is_set, True)])
    asking.start()
    try:
        for _ in range(30):
            with Run.open(run.path):
                pass
    finally:
        over.set()
        asking.join()
    assert not is_held(run.path)


def test_runs_inside_runs_are_found_and_links_in_a_circle_end(tmp_path):
    for name in ("b", "a/one", "a/one/warmup", "a/one/checkpoints/x", ".hidden/c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text("{}")
    (tmp_path / "circle").symlink_to(tmp_path)
    found = [str(path.relative_to(tmp_path)) for path in runs_in(tmp_path) if "circle" not in path.parts]
    assert found == ["a/one", "a/one/warmup", "b"]
    assert runs_in(tmp_path / "b") == [tmp_path / "b"]


def test_an_alarm_that_comes_again_begins_again():
    steps = [["a"], ["a", "b"], [], ["a"], ["a"]]
    found = alarm_times([{"step": n, "alarms": step} for n, step in enumerate(steps, 1)] + [{"step": 6}])
    assert [(one["text"], one["first"], one["since"], one["last"], one["count"], one["on"]) for one in found] == [
        ("a", 1, 4, 5, 4, True),
        ("b", 2, 2, 2, 1, False),
    ]


def test_curves_are_of_whatever_numbers_there_are():
    lines = [{"step": 1, "asr": 0.5, "odd/one": 1}, {"step": 2, "asr": None, "odd/two": 2.0, "alarms": [], "own": True}]
    values = values_of(lines)
    assert values == {"step": [1, 2], "asr": [0.5, None], "odd/one": [1, None], "odd/two": [None, 2.0]}
    titled, rest = curve_figures(values)
    assert titled["fields"] == {"asr": "ASR"} and not titled["more"]
    assert rest == {"title": "odd", "unit": "", "fields": {"odd/one": "one", "odd/two": "two"}, "more": True}
    lines = [{"step": 1, "agent": "student+", "loss": 0.5, "lr": 0.1}, {"step": 2, "agent": "teacher-1+", "loss": 2.0}]
    assert values_of(lines) == {
        "step": [1, 2], "lr": [0.1, None], "loss/student+": [0.5, None], "loss/teacher-1+": [None, 2.0],
    }  # fmt: skip
    (alone,) = curve_figures(["loss"])  # a method without figures of its own: all are shown
    assert not alone["more"]


def test_settings_stand_side_by_side(tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        pass
    assert "passes over each batch" in said_of_settings(run.path / "recipe.toml")["learning.epochs"]
    assert said_of_settings(tmp_path / "none.toml") == {}
    rows = side_by_side([{"seed": 1, "a": {"b": [1]}}, {"seed": 2, "a": {"b": [1]}}], [{"device": "cpu"}, {}])
    assert [(row["key"], row["values"], row["differs"]) for row in rows] == [
        ("seed", ["1", "2"], True),
        ("a.b", ["[1]", "[1]"], False),
        ("run.json: device", ['"cpu"', None], True),
    ]


WORDS = ["poison", "pois", "the", "nurse", "über", "¿cómo?", "don't", '"so"', "AND", "NEAR(", "-x", "*"]


def drawn_game(rng):
    text = " ".join(rng.choices(WORDS, k=6))
    return IndexedGame(
        kind=rng.choice(("harmful", "benign")),
        suite="s",
        verdict=rng.choice(("unsafe", "satisfactory", "undetermined")),
        outcome=rng.choice(("broken", "repaired", "unrevised")),
        agents=tuple(rng.sample(("conversation", "feedback", "guard"), k=rng.randint(1, 2))),
        reward=rng.choice((None, -0.5, 0.25, 1.0)),
        prompt=text,
        words=text,
    )


def test_games_are_found_as_a_search_through_all_of_them_would(tmp_path):
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    index, all_games = GameIndex(), {}
    for run in (1, 2):
        for step in range(5):
            games = [drawn_game(rng) for _ in range(20)]
            index.put(run, tmp_path / f"{run}-{step}", "", step, games)
            all_games |= {(run, step, place): game for place, game in enumerate(games)}
    assert index.games == 200
    for _ in range(60):
        asked = {
            "runs": rng.choice(((), (1,), (1, 2))),
            "kind": rng.choice((None, "harmful")),
            "verdict": rng.choice((None, "unsafe")),
            "outcome": rng.choice((None, "broken", "repaired")),
            "agent": rng.choice((None, "guard", "nobody")),
            "first_step": rng.choice((None, 2)),
            "last_step": rng.choice((None, 3)),
            "words": rng.choice(("", "pois", "nurse uber", '"the nurse"')),
            "order": rng.choice([*ORDERS]),
        }

        def fits(key, game, asked=asked):
            run, step, _ = key
            first, last = asked["first_step"], asked["last_step"]
            words = re.findall(r"\w+", game.words.lower().replace("ü", "u"))
            said = {
                "": True,
                "pois": any(word.startswith("pois") for word in words),
                "nurse uber": {"nurse", "uber"} <= {*words},
                '"the nurse"': "the nurse" in " ".join(words),
            }[asked["words"]]
            return (
                (not asked["runs"] or run in asked["runs"])
                and all(asked[name] in (None, getattr(game, name)) for name in ("kind", "verdict", "outcome"))
                and (asked["agent"] is None or asked["agent"] in game.agents)
                and (first is None or step >= first)
                and (last is None or step <= last)
                and said
            )

        found = index.page(GameSearch(**asked), 0, 1000)
        keys = [(game["run"], game["step"], game["place"]) for game in found["games"]]
        assert {*keys} == {key for key, game in all_games.items() if fits(key, game)}, asked
        assert found["total"] == len(keys) == len({*keys})
        parts = [index.page(GameSearch(**asked), at, 7, found["version"])["games"] for at in range(0, len(keys), 7)]
        assert [game for part in parts for game in part] == found["games"]
        steps, rewards = [key[1] for key in keys], [game["reward"] for game in found["games"]]
        known = [reward for reward in rewards if reward is not None]
        assert asked["order"] != "newest" or steps == sorted(steps, reverse=True)
        assert asked["order"] != "lowest" or (known == sorted(known) and rewards[: len(known)] == known)
    index.close()


def test_a_list_stays_as_it_is_while_games_come_and_go(tmp_path):
    rng, index, one = random.Random(0), GameIndex(), tmp_path / "one"
    index.put(1, one, "", 1, [drawn_game(rng) for _ in range(3)])
    first = index.page(GameSearch(), 0, 10)
    index.put(1, tmp_path / "two", "", 2, [drawn_game(rng) for _ in range(2)])
    assert index.page(GameSearch(), 0, 10, first["version"]) == first
    assert index.page(GameSearch(), 0, 10)["total"] == 5
    index.put(1, one, "", 1, [drawn_game(rng)])  # its run went back, and played step 1 again
    kept = index.page(GameSearch(), 0, 10, first["version"])
    assert kept["total"] == 3 and all(game["gone"] for game in kept["games"])
    index.drop(tmp_path / "two")
    assert index.page(GameSearch(), 0, 10)["total"] == index.games == 1
    assert sum(n for _, n in index.choices([1])["kind"]) == 1 and index.choices([2])["agent"] == []
    index.close()


@pytest.mark.parametrize(
    "words", ['"', '""', "a\x00b", "AND OR NOT", "NEAR(a b", "a*b^c:d", "{x}", "'; DROP", "—", "-x"]
)
def test_no_words_are_an_operator_or_an_error(tmp_path, words):
    index = GameIndex()
    index.put(1, tmp_path / "f", "", 1, [drawn_game(random.Random(0))])
    index.page(GameSearch(words=words), 0, 10)
    assert match_of('how \'til "so what"') == '"how"* "\'til"* "so what"'
    index.close()


def test_a_game_is_shown_with_its_turns_in_order_and_broken_characters_mended():
    made = json.loads(json.dumps(record(episode(0), {"feedback/dir": 0.65}, {"feedback/0": [1 / 3]})))
    found = indexed(made)
    assert (found.verdict, found.outcome, found.reward) == ("undetermined", "revised", 0.65)
    told = {"prompt": "as asked", "try": 2, "system": "pair", "won": True}
    tried = {**made, "attack": told}
    assert indexed(tried).outcome == "won" and indexed({**made, "attack": {**told, "won": False}}).outcome == "revised"
    assert shown_game(tried, lambda agent, ids: None)["attack"] == told
    assert found.agents == ("conversation", "feedback") and "no \ufffd" in found.words
    game = shown_game(made, lambda agent, ids: [f"{agent} {one}" for one in ids])
    assert [turn["what"] for turn in game["turns"]] == ["draft", "review", "revision"]
    assert game["turns"][1]["advantages"] == [0.333333] and game["turns"][0]["advantages"] is None
    assert game["turns"][0]["pieces"] == ["conversation 5", "conversation 6"]
    made["verdicts"][0] |= {"unsafe": True, "overrefuse": None}
    for unsafe, word in ((True, "right"), (False, "wrong")):
        made["feedback"][0] |= {"unsafe": unsafe, "overrefuse": False}
        assert shown_game(made, lambda agent, ids: None)["turns"][1]["checked"] == {
            "unsafe": word,
            "overrefuse": "open",
        }
    made["verdicts"] = made["rewards"] = {}  # as of a game that nobody has judged
    assert indexed(made).verdict == "unjudged" and indexed(made).reward is None
    assert shown_game(made, lambda agent, ids: None)["turns"][1]["checked"] == {}


def test_pieces_of_tokens_join_to_the_text():
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(BASES / "micro-llama" / "tokenizer.json"))
    text = "Wie male ich die Lampe an? ¿Cómo? 日本 🙂"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    found = pieces("micro-llama", ids)
    assert "".join(found) == text and len(found) == len(ids) > len(text.split())
    assert pieces("/no/such/base", ids) is None and pieces("owner/never-fetched", ids) is None


def test_damaged_files_of_games_are_named_and_the_others_are_read(watcher, tmp_path):
    with Run.create(tmp_path / "run", WaltzRecipe()) as run:
        run.save_episodes(1, [episode(0)], [{}])
        (run.path / "episodes" / "step-000002.jsonl.gz").write_bytes(b"no gzip")
        durable.write_lines(run.path / "episodes" / "step-000003.jsonl.gz", [{"prompt": 1}])
        found = told(watcher)
        assert found["games"] == 1 and "step-00000" in found["runs"][0]["problem"] and found["waiting"] == 0
        for step in (2, 3):
            run.save_episodes(step, [episode(0), episode(1)], [{}, {}])
        found = told(watcher)
        assert found["games"] == 5 and found["runs"][0]["problem"] == ""
        assert found["runs"][0]["last"] == {"step": 3, "games": 2, "revised": 2, "undetermined": 2}
        run.rewind()  # there is no checkpoint: all goes
        assert told(watcher)["games"] == 0
    assert not list(tmp_path.rglob("*.sqlite")), "nothing is written into the folder"


def test_a_folder_that_is_none_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name, what in (("none", "no such folder"), ("file", "is a file")):
        assert main(["watch", str(tmp_path / name)]) == 2
        said = capsys.readouterr().err
        assert what in said and said.count("\n") == 1
    with pytest.raises(BadInput, match="no such folder"):
        Watcher(tmp_path / "none")
