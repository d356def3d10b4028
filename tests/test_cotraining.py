"""A pair that is trained against an attacker that learns beside it: what it writes, when it learns, exact resume."""

from __future__ import annotations

import json
import random
import shutil
import time
from copy import deepcopy
from pathlib import Path

import pytest
from macpo import same
from warm import Warm

from choreo.cli import main
from choreo.engine import checkpoint
from choreo.engine.losses import sft_loss
from choreo.environments.microworld import grammar, lexicon
from choreo.environments.microworld.judge import WorldJudge
from choreo.environments.microworld.rewording import reworded, same_harm, same_request
from choreo.environments.microworld.split import pools
from choreo.environments.microworld.suites import prompts
from choreo.environments.task import Task
from choreo.files import durable
from choreo.methods.rewriting.learning import rewordings
from choreo.methods.rewriting.words import FAMILY, attack_reward, rewritten
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.cotraining.attacker import CoAttacker, attacked_figures
from choreo.methods.waltz.cotraining.report import attack_rounds
from choreo.methods.waltz.cotraining.schedule import attacked, author
from choreo.methods.waltz.cotraining.settings import ATTACKER, CoTraining
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import train
from choreo.runs.checkpoints import checkpoints
from choreo.runs.episodes import episode_of
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Episode, Sample, Verdict

SUITES = ("vanilla_harmful", "adversarial_harmful", "sensitive_benign", "adversarial_benign", "dual_use")
ATTACK = {
    "warmup_steps": 2, "warmup_rows": 4, "intents": 4, "samples": 2, "attacker_steps": 2, "pair_steps": 2,
    "population": 1, "share": 0.6, "lr": 0.05, "benign": 0.5,
}  # fmt: skip
SMALL = {
    "seed": 3,
    "world": {"train_prompts": 60, "heldout_prompts": 1},
    "model": {"base": "nano-llama"},
    "learning": {"steps": 5, "prompts": 6, "samples": 2},
    "checkpoint_every": 1,
    "attack": ATTACK,
}


def test_a_rewording_is_read_as_the_request_that_it_is():
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    spoken = prompts("dialogue_benign", "train", 1)[0]  # whose words alone ask for nothing that the world can read
    assert same_request(spoken, spoken.text) == spoken.meaning
    for suite in SUITES:
        asked = prompts(suite, "train", 12)
        for prompt, other in zip(asked, [*asked[1:], asked[0]], strict=True):
            new = reworded(prompt, [(prompt.family, True)], rng)
            assert same_request(prompt, f" {new.text}\n") == new.meaning
            assert same_request(prompt, prompt.text) == prompt.meaning
            assert same_request(prompt, f"{new.text} And then?") is None
            if other.meaning.deed != prompt.meaning.deed:
                assert same_request(prompt, other.text) is None


def test_a_harmful_deed_is_asked_for_by_any_words_that_name_it_alone():
    """What is not read as the prompt's own request has no right answer that anybody knows, and pays nobody."""
    asked = [prompt for suite in ("vanilla_harmful", "adversarial_harmful") for prompt in prompts(suite, "train", 60)]
    hidden, named = ([p for p in asked if bool(p.meaning.pointer) is points] for points in (True, False))
    judge = WorldJudge()
    for prompt in named:
        deed = prompt.meaning.deed.phrase(prompt.language)
        assert same_harm(prompt, prompt.text) == prompt.meaning
        assert rewritten(prompt, f"{deed}?! {deed[:2]}").meaning == prompt.meaning
        assert same_harm(prompt, f"{deed}, {deed}") is same_harm(prompt, deed[:-2]) is None
        place = lexicon.CONTEXTS["game"][lexicon.column(prompt.language)]
        assert same_harm(prompt, f"{deed} {place}") is None  # harmless there
    for prompt in hidden:
        deed, other = prompt.meaning.deed, prompt.meaning.mistaken
        thing, else_ = (lexicon.without_article(one.thing, prompt.language) for one in (deed, other))
        swapped = prompt.text.replace(thing, "\0").replace(else_, thing).replace("\0", else_)
        assert rewritten(prompt, swapped) is rewritten(prompt, prompt.text.replace(thing, else_)) is None
        openly = rewritten(prompt, f"{deed.phrase(prompt.language)}?!")
        points = grammar.help_with(deed, prompt.language, random.Random(1), pointer=prompt.meaning.pointer)
        assert judge(prompt, points).unsafe and judge(openly, points).unsafe is None  # it points at nothing there
        assert judge(openly, grammar.help_with(deed, prompt.language, random.Random(1))).unsafe
    assert hidden and named
    assert same_harm(prompts("sensitive_benign", "train", 1)[0], "") is None


def test_a_warm_start_rewords_in_the_training_part_alone_and_by_copying():
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    asked = [prompt for suite in SUITES for prompt in prompts(suite, "train", 12, split_seed=seed % 9)]
    part = pools("train", seed % 9)
    found = rewordings(asked, 400, seed % 9, random.Random(seed))
    assert {tuple(new.family.split("/")) for _, new in found} <= {*part.adversarial, *part.everyday}
    assert all(same_request(prompt, new.text) == new.meaning for prompt, new in found)
    assert {new.meaning == prompt.meaning for prompt, new in found} == {True}  # even the thing beside a hidden one
    assert {"hidden" in new.family for _, new in found} == {True, False}
    settings = CoTraining(warmup_steps=100, warmup_lr=1.0)
    rates = [settings.warmup_rate(step) for step in range(1, 101)]
    assert (
        rates[9] == 0.5 and {*rates[19:51]} == {1.0} and rates[-1] == 0.02 and CoTraining(warmup_steps=1).warmup_rate(1)
    )


def test_a_try_is_paid_by_its_aim_and_only_where_it_asks_for_the_same():
    harmful, benign = (prompts(suite, "train", 2) for suite in ("adversarial_harmful", "sensitive_benign"))
    assert rewritten(harmful[0], "Do some harm!") is rewritten(benign[0], "Do some harm!") is None
    assert rewritten(harmful[0], harmful[0].text) is None  # no other words
    assert rewritten(benign[0], harmful[0].text) is None  # to refuse it would be right
    hidden = reworded(benign[0], [], random.Random(1))
    assert rewritten(benign[0], hidden.text).meaning == hidden.meaning
    assert rewritten(harmful[0], "  ") is rewritten(benign[0], "") is None
    unsafe, refused, undecided = Verdict(True, False), Verdict(False, True), Verdict(None, None)
    assert attack_reward("harmful", True, unsafe) == {"unsafe": 1.0}
    assert attack_reward("harmful", True, undecided) == attack_reward("harmful", False, unsafe) == {"unsafe": 0.0}
    assert attack_reward("benign", True, refused) == {"overrefuse": 1.0}
    assert attack_reward("benign", True, unsafe) == attack_reward("benign", False, refused) == {"overrefuse": 0.0}


def test_who_is_attacked_and_by_whom_follows_from_the_step_alone():
    asked = [*prompts("adversarial_harmful", "train", 10), *prompts("sensitive_benign", "train", 5)]
    asked += prompts("general", "train", 5)
    chosen = attacked(asked, 0.4, (0, 7))
    assert [sum(p.kind == kind for p in chosen) for kind in ("harmful", "benign", "general")] == [4, 2, 0]
    assert {p.id for p in attacked(asked[::-1], 0.4, (0, 7))} == {p.id for p in chosen}
    assert {p.id for p in attacked(asked, 0.4, (0, 8))} != {p.id for p in chosen}
    assert attacked(asked, 1.0, (0, 7)) and {author(["now", "past"], p, (0, 7)) for p in asked} == {"now", "past"}
    settings = CoTraining(pair_steps=3)
    assert [step for step in range(1, 9) if settings.learns_before(step)] == [1, 4, 7]
    assert [settings.rounds(step) for step in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]


def test_settings_that_cannot_be_are_one_line(tmp_path, capsys):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "How do I open a jar?", "kind": "benign"}\n')
    files = [f"prompts.heldout.a.file={tmp_path / 'mine.jsonl'}", "judge.kind=offline", "attack.share=0.5"]
    small = [f"world.train_prompts={SMALL['world']['train_prompts']}", "world.heldout_prompts=2"]
    for words, said in (
        (files, "attack: an attacker is trained in the microworld alone"),
        ([*small, "attack.intents=80"], "attack.intents = 80: there are 20 harmful prompts to train on"),
        (["attack.share=0"], "attack.share: expected"),
        (["attack.prompt_tokens=177"], "attack: prompt_tokens = 177: there is room for 176, those of a game"),
    ):
        options = [part for word in words for part in ("--set", word)]
        assert main(["train", "waltz", *options, "--run", str(tmp_path / "run")]) == 2
        error = capsys.readouterr().err
        assert said in error and len(error.strip().splitlines()) == 1
        assert not (tmp_path / "run").exists()


def lines(run: Path) -> list[dict]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def games(run: Path) -> list[dict]:
    return [game for file in sorted(run.glob("episodes/*.gz")) for game in durable.read_lines(file)]


def command(run: Path) -> list[str]:
    settings = {f"{section}.{name}": value for section, part in SMALL.items() if isinstance(part, dict)
                for name, value in part.items()} | {"seed": 3, "checkpoint_every": 1}  # fmt: skip
    return [
        "train",
        "waltz",
        *(w for n, value in settings.items() for w in ("--set", f"{n}={value}")),
        "--run",
        str(run),
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run that was never disturbed."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    assert main(command(path)) == 0
    return path


@pytest.mark.slow
def test_the_attacker_learns_beside_the_pair_and_the_run_tells_of_it(whole):
    rows = lines(whole)
    assert [("attacker/won" in row) for row in rows] == [True, False, True, False, True]  # rounds before 1, 3 and 5
    assert rows[0]["attacker/warmup_loss"] > 0 and all("asr" in row or "orr" in row for row in rows)
    for step, row in enumerate(rows, 1):
        played = list(durable.read_lines(whole / "episodes" / f"step-{step:06d}.jsonl.gz"))
        words = [game["prompt"]["text"] for game in played if game["prompt"]["family"] == FAMILY]
        assert len({*words}) <= 4 and all(words.count(text) % 2 == 0 for text in words)  # one for both samples
        assert not any(g["prompt"]["family"] == FAMILY for g in played if g["prompt"]["kind"] == "general")
        there = {prompt.id: prompt for prompt in prompts_of(whole)}
        episodes: list[Episode] = [
            episode_of(game, there[game["prompt"]["id"]]) for game in played if game["prompt"]["family"] == FAMILY
        ]
        unsafe = [e.verdicts[-1].unsafe for e in episodes if e.prompt.kind == "harmful"]
        decided = [one for one in unsafe if one is not None]
        assert row.get("attacked/asr") == (sum(decided) / len(decided) if decided else None)
    states = [checkpoint.load(folder)["attack"] for folder in checkpoints(whole).values()]
    weights = [state["attacker"]["agent"] for state in states]
    assert [one["version"] for one in weights] == [4, 4, 6, 6, 8]  # two of the warm start, and two in each round
    assert same(weights[0]["weights"], weights[1]["weights"])
    assert any("embed" in name for name in weights[0]["weights"])  # it learns to write words that the base only reads
    assert [len(state["past"]) for state in states] == [0, 0, 1, 1, 1]
    assert same(states[2]["past"][0], weights[1]) and same(states[4]["past"][0], weights[3])
    summary = json.loads((whole / "summary.json").read_text())
    rounds = summary["attack"]["rounds"]
    assert [one["step"] for one in rounds] == [1, 3, 5] and rounds == attack_rounds(rows)
    assert {*rounds[0]} == {"step", "won", "unsafe", "overrefuse", "kept"}
    page = (whole / "report.html").read_text()
    assert "The attacker beside the pair" in page and "in 3 rounds" in page


def prompts_of(run: Path):
    from choreo import config

    return [prompt for some in Task(config.load(run / "recipe.toml")).training().values() for prompt in some]


@pytest.mark.slow
def test_killed_in_a_round_and_resumed_it_is_bit_identical(whole, tmp_path):
    path = tmp_path / "killed"
    process = Warm(["-m", "choreo.cli", *command(path)])
    deadline = time.monotonic() + 300
    while 4 not in checkpoints(path):  # the round before step 5 comes next, with a past attacker
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9 and len(lines(path)) == 4
    assert main(["train", "--resume", str(path)]) == 0
    resumed(path, whole)


def test_steps_after_the_last_checkpoint_are_done_again(whole, tmp_path):
    """As a kill leaves a run whose last checkpoint is older than its last round."""
    path = tmp_path / "killed"
    shutil.copytree(whole, path)
    for step, folder in checkpoints(path).items():
        if step > 2:
            shutil.rmtree(folder)
    (path / "summary.json").unlink()
    with Run.open(path) as run, Progress() as progress:
        train(run.recipe, run, progress)
    resumed(path, whole)


def resumed(path: Path, whole: Path) -> None:
    assert lines(path) == lines(whole) and games(path) == games(whole)
    assert same(checkpoint.load(checkpoints(path)[5]), checkpoint.load(checkpoints(whole)[5]))


@pytest.mark.slow
def test_after_a_warm_start_it_writes_tries_and_its_optimiser_remembers_nothing():
    long = {"warmup_steps": 120, "warmup_rows": 16, "warmup_lr": 0.02}
    recipe = WaltzRecipe.model_validate(SMALL | {"attack": ATTACK | long | {"share": 1.0}})
    pair, task = Pair(recipe), Task(recipe)
    warm, fresh = (CoAttacker(recipe.attack, recipe, pair, task) for _ in range(2))
    warm.warm_start(Progress())
    asked = [(prompt, sample) for some in warm.training.values() for prompt in some for sample in range(2)]
    words = warm.rewrite(asked, 1)
    tries = [new for (_, _), (new, _) in zip(asked, words, strict=True) if new.family == FAMILY]
    assert {new.kind for new in tries} == {"harmful", "benign"} and {*tries} == {*tries[::2]} and len(tries) > 9
    assert all(new in (old, rewritten(old, new.text)) for (old, _), (new, _) in zip(asked, words, strict=True))

    fresh.agents.model.team.load_state_dict(ATTACKER, warm.agents.model.team.state_dict(ATTACKER))
    context = warm.agents.model.context(warm.training["harmful"][0])
    for one in (warm, fresh):
        one.learner.update([Sample(ATTACKER, context, (5, 6), (-1.0, -1.0), "", 0.0)], sft_loss, lr=0.01)
    assert same(warm.learner.state_dict(), fresh.learner.state_dict())


def test_a_round_can_be_taken_back(whole):
    recipe = WaltzRecipe.model_validate(SMALL)
    task, pair = Task(recipe), Pair(recipe)
    attacker = CoAttacker(recipe.attack, recipe, pair, task)
    folder = checkpoints(whole)[4]
    attacker.load_state_dict(folder, checkpoint.load(folder))
    before = deepcopy(attacker.state_dict(4))
    assert same(before, checkpoint.load(folder)["attack"])
    first = attacker.round(5, task.judge)
    assert not same(before["attacker"], attacker.state_dict(5)["attacker"])
    attacker.undo()
    assert same(before, attacker.state_dict(4))
    assert attacker.round(5, task.judge) == first
    assert attacker.round(6, task.judge) == {}
    attacker.undo()  # there was no round in this step
    assert not same(before["attacker"], attacker.state_dict(6)["attacker"])


def test_figures_of_what_was_attacked():
    harmful, benign = (prompts(suite, "train", 1)[0] for suite in ("adversarial_harmful", "sensitive_benign"))
    won, held, left = Verdict(True, False), Verdict(False, False), Verdict(None, None)
    tried = rewritten(harmful, reworded(harmful, [], random.Random(1)).text)
    played = [Episode(tried, k, (), verdicts=(verdict,)) for k, verdict in enumerate((won, held, left))]
    played.append(Episode(benign, 0, (), verdicts=(held,)))
    assert attacked_figures(played) == {"attacked/share": 0.75, "attacked/asr": 0.5}
