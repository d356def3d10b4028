"""A pair whose agents are on two bases, of other architectures, tokenizers and chat templates."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import replace
from functools import partial
from itertools import compress
from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import make
from rounding import same_games
from serving import Serving
from test_protocol import ASKS, LIMITS, Scripted, prompt, talk
from test_protocol import chat as chat
from test_trainer import episodes, lines, same

from choreo import config
from choreo.agents.local import NOBODY, LocalAgent
from choreo.cli import main
from choreo.engine import checkpoint
from choreo.errors import BadInput
from choreo.game.play import play, review
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.samples import split
from choreo.methods.waltz.trainer import restore, train
from choreo.models.chat import Chat
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.server.pair import Resident
from choreo.server.session import SessionOptions, play_session
from choreo.types import AGENTS, CONVERSATION, FEEDBACK, Episode, Limits, Verdict


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: make(name, tmp_path_factory.mktemp(name)) for name in ("qwen", "neox", "gemma")}


def recipe(feedback_base: Any, base: Any = "nano-llama", **sections: dict) -> WaltzRecipe:
    settings: dict[str, dict] = {
        "world": {"train_prompts": 30, "heldout_prompts": 2},
        "model": {"base": str(base), "feedback_base": str(feedback_base), "rank": 2},
        "protocol": {"answer_tokens": 16, "feedback_tokens": 24},
        "stages": {"stage1_share": 0.34},
        "learning": {"steps": 3, "prompts": 3, "samples": 2, "lr": 1e-2},
    }
    merged = {name: settings.get(name, {}) | sections.get(name, {}) for name in settings | sections}
    return WaltzRecipe.model_validate({"seed": 3, "checkpoint_every": 2, **merged})


def trained(made: WaltzRecipe, path: Path) -> Pair:
    with Run.create(path, made) as run, Progress() as progress:
        return train(made, run, progress)


def weights(pair: Pair, agent: str) -> dict[str, torch.Tensor]:
    team = pair.team(agent)
    return {**team.state_dict(agent)["weights"], **dict(team.decoder.named_parameters())}


# ---- what an agent reads of the other's ---------------------------------------------------------


def test_each_reads_the_others_words_in_its_own_tokenizer_and_its_own_turns_as_they_were_sampled(chat, folders):
    """Ids that no encoding gives: they go on as they are to their writer, and to whoever shares its tokenizer."""
    spelled = tuple(chat.encode(letter)[0] for letter in "the")
    assert chat.encode(chat.decode(spelled)) != spelled
    twin, other = Chat(chat.tokenizer), load_chat(folders["qwen"])
    for reader in (twin, other):
        talker = Scripted(chat, lambda *_: (*spelled, chat.end_id))
        reviewer = Scripted(reader, talk(ASKS))
        agents = {CONVERSATION: LocalAgent(chat, talker), FEEDBACK: LocalAgent(reader, reviewer, chat)}
        [game] = play(agents, [(prompt(), 0)], Limits(1, 8, 200), key=(5, 9))
        heard = (*spelled, chat.end_id) if reader is twin else other.encode("the")
        assert game.reviews[0].context == reader.review_context(reader.encode("light the lamp"), heard)
        told = [((*spelled, chat.end_id), chat.encode(ASKS.feedback))]
        assert game.answers[1].context == chat.answer_context(chat.encode("light the lamp"), told)
        assert game.feedback == (ASKS,) and [agent for agent, *_ in talker.batches] == [CONVERSATION] * 2


def test_a_reader_that_drops_reasoning_is_not_talked_out_of_an_answer(chat, folders):
    """What a template drops of its own agent's turns it must not drop of another's, who only wrote its mark."""
    qwen = load_chat(folders["qwen"])
    said = "burn it </think> fine"
    agents = {
        CONVERSATION: LocalAgent(chat, Scripted(chat, talk(ASKS, answers=said))),
        FEEDBACK: LocalAgent(qwen, Scripted(qwen, talk(ASKS)), chat),
    }
    [game] = play(agents, [(prompt(), 0)], Limits(1, 40, 9), key=(5, 9))
    assert said in qwen.tokenizer.decode(game.reviews[0].context)


def test_an_answer_that_outgrows_the_reviewers_positions_is_reviewed_by_nobody(chat, folders):
    other = load_chat(folders["qwen"])
    reviewer = Scripted(other, talk(ASKS))
    reviewer.positions = other.room(1, 0, 20) + len(other.encode("light the lamp")) + 4
    agents = {
        CONVERSATION: LocalAgent(chat, Scripted(chat, lambda *key: "lamp " * 8 if key[2] == "long" else "a")),
        FEEDBACK: LocalAgent(other, reviewer, chat),
    }
    asked = [(prompt("short"), 0), (prompt("long"), 0)]
    short, long = play(agents, asked, Limits(1, 8, 20), key=(5, 9))
    assert [len(batch) for _, batch, _ in reviewer.batches] == [1] and short.reviews[0].agent == FEEDBACK
    assert (long.reviews[0].agent, long.reviews[0].ids, long.feedback) == (NOBODY, (), (None,))
    assert len(long.answers) == 1
    verdict = Verdict(True, False)
    judged = [replace(game, verdicts=(verdict,) * len(game.answers)) for game in (short, long)]
    parts = split(judged, agents=AGENTS, rewards=WaltzRecipe().rewards, stage=1, key=(0,))
    assert [s.agent for s in parts.samples if s.group.startswith("long/")] == [CONVERSATION]


# ---- training -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("how", ["lora", "full"])
@pytest.mark.parametrize("feedback_base", [pytest.param("nano-neox", marks=pytest.mark.numeric), "qwen", "gemma"])
def test_it_trains_each_agent_on_its_own_base(feedback_base, how, folders, tmp_path):
    made = recipe(folders.get(feedback_base, feedback_base), model={"train": how}, learning={"baseline": "separate"})
    fresh, pair = Pair(made), trained(made, tmp_path / "run")
    assert pair.agents[CONVERSATION] is not pair.agents[FEEDBACK]
    assert [list(pair.team(agent).agents) for agent in AGENTS] == [[CONVERSATION], [FEEDBACK]]
    rows = lines(tmp_path / "run")
    assert [row["stage"] for row in rows] == [1, 2, 2]
    assert [pair.team(agent).version[agent] for agent in AGENTS] == [2, 3]
    # By its own sampler and reference: ratio 1 and KL 0 at an agent's first update, and not after it.
    for agent, first in ((CONVERSATION, 1), (FEEDBACK, 0)):
        assert rows[first][f"ratio/{agent}"] < 1e-4 and abs(rows[first][f"kl/{agent}"]) < 1e-6
        assert rows[2][f"kl/{agent}"] > 1e-6
    # What it began as is still there to be measured.
    before, after, untrained = (
        play(p.agents, [(prompt(), 0)], LIMITS, key=(1,)) for p in (fresh, pair, pair.untrained())
    )
    assert before == untrained != after
    # Stage 1 has moved the feedback agent's weights, and no other number.
    stage1 = trained(
        recipe(folders.get(feedback_base, feedback_base), model={"train": how}, stages={"train": "feedback"}),
        tmp_path / "stage1",
    )
    assert same(weights(stage1, CONVERSATION), weights(fresh, CONVERSATION))
    assert not same(weights(stage1, FEEDBACK), weights(fresh, FEEDBACK))


@pytest.mark.numeric
def test_two_copies_of_one_base_play_and_learn_as_the_one(tmp_path):
    """The same draws, to the bit in the first games; what is scored in other batches differs by rounding alone."""
    twin = shutil.copytree(base_folder("nano-llama"), tmp_path / "twin")
    one, two = (trained(recipe(base), tmp_path / f"run-{base != twin}") for base in ("", twin))
    assert one.agents[CONVERSATION] is one.agents[FEEDBACK]
    assert two.base == f"{one.base}+{one.base}"
    first = "step-000001.jsonl.gz"
    assert episodes(tmp_path / "run-True")[first] == episodes(tmp_path / "run-False")[first]
    for a, b in zip(lines(tmp_path / "run-True"), lines(tmp_path / "run-False"), strict=True):
        assert a == {
            name: value if isinstance(value, list) else pytest.approx(value, rel=1e-3, abs=1e-6)
            for name, value in b.items()
        }


@pytest.mark.slow
def test_killed_and_resumed_is_bit_identical(folders, tmp_path, monkeypatch):
    made = recipe(folders["qwen"])
    trained(made, tmp_path / "whole")

    def kill(run, step, *_):
        if step == 3:
            raise KeyboardInterrupt
        plain(run, step, *_)

    plain = Run.save_episodes
    monkeypatch.setattr(Run, "save_episodes", kill)
    with pytest.raises(KeyboardInterrupt):
        trained(made, tmp_path / "killed")
    monkeypatch.undo()
    with Run.open(tmp_path / "killed") as run, Progress() as progress:
        train(run.recipe, run, progress)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert episodes(tmp_path / "killed") == episodes(tmp_path / "whole")
    ends = [checkpoint.load(checkpoints(tmp_path / name)[3]) for name in ("killed", "whole")]
    assert same(*ends) and ends[0]["base"].count("+") == 1


# ---- commands -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_planned_trained_measured_and_served(folders, capfd, tmp_path):
    run, made = tmp_path / "run", tmp_path / "mine.toml"
    small = recipe(folders["qwen"], learning={"steps": 1})
    made.write_text(config.to_toml(small))
    assert main(["plan", str(made), "--json"]) == 0
    planned = json.loads(capfd.readouterr().out)["models"]
    assert [(m["agents_of"], m["agents"], m["architecture"]) for m in planned] == [
        (CONVERSATION, 1, "llama"),
        (FEEDBACK, 1, "qwen3"),
    ]
    pair = Pair(small)
    for model, agent in zip(planned, AGENTS, strict=True):
        own = pair.team(agent).agents[agent].parameters.values()
        assert model["trained_per_agent"] == sum(value.numel() for value in own)
        assert model["memory"]["optimisers"] == 8 * model["trained_per_agent"]
    assert main(["plan", str(made)]) == 0
    assert "an agent that learns" in capfd.readouterr().out
    assert main(["train", str(made), "--run", str(run), "--json"]) == 0
    summary = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert list(summary["bases"]) == [small.model.base, small.model.feedback_base]
    assert main(["eval", str(run), "--json"]) == 0
    again = json.loads(capfd.readouterr().out.splitlines()[-1])
    for name, system in summary["systems"].items():
        assert again["systems"][name] | {"latency_added": None} == system | {"latency_added": None}
    with Serving(run, "--mode", "off") as server:
        answer = server.ask().json()
        assert answer["choices"][0]["message"]["content"]
        assert answer["system_fingerprint"] == f"step-000001/{pair.base}"
    capfd.readouterr()


@pytest.mark.parametrize("feedback_base, lengths", [("nano-neox", {1, 2}), ("gemma", {1})])  # gemma's say nothing
def test_a_server_plays_the_games_that_training_plays(feedback_base, lengths, folders, tmp_path):
    made = recipe(folders.get(feedback_base, feedback_base), protocol={"answer_tokens": 40, "feedback_tokens": 96})
    with Run.create(tmp_path / "run", made):
        pass
    resident, pair = Resident(tmp_path / "run"), Pair(made)
    texts = ["How do I rob a bank?", "How do I kill a process?", "What is 3 plus 4?"]
    games = [Episode(replace(prompt("", text)), i, ()) for i, text in enumerate(texts * 4)]

    async def served():
        options = SessionOptions(40, 0.6, (), 0, time.monotonic() + 120)
        return await asyncio.gather(
            *(play_session(g, resident.agents, options, mode="adaptive", rounds=1) for g in games)
        )

    guided = [outcome.game.feedback[0] for outcome in asyncio.run(served())]
    assert None not in guided  # by the grammar, of a random model too
    for agent in resident.agents.values():
        agent.grammar = None
    outcomes = [outcome.game for outcome in asyncio.run(served())]
    resident.worker.close()
    limits, key = Limits(1, 40, 96), ("serve", 0)
    played = play(
        pair.agents,
        [(g.prompt, g.sample) for g in games],
        limits,
        key=key,
        temperature=0.6,
        reviewer=partial(review, pair.agents, limits=limits, key=key, temperature=0.0),
    )
    assert {len(game.answers) for game in played} == lengths
    equal = same_games(pair.agents, outcomes, played, ("serve", 0), answers=0.6, reviews=0.0)
    for a, b in compress(zip(outcomes, played, strict=True), equal):  # a server reviews the last revision besides
        assert len(a.answers) == len(b.answers) == len(a.reviews)


def test_bad_input_is_one_line(folders, capsys, tmp_path):
    def refused(*settings: str) -> str:
        given = [word for setting in settings for word in ("--set", setting)]
        assert main(["train", "waltz", "--run", str(tmp_path / "run"), *given]) == 2
        [line] = capsys.readouterr().err.strip().splitlines()
        assert not (tmp_path / "run").exists()
        return line

    assert "base 'nowhere': neither a shipped one" in refused("model.feedback_base=nowhere")
    short = shutil.copytree(base_folder("nano-neox"), tmp_path / "short")
    told = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 64}
    (short / "config.json").write_text(json.dumps(told))
    line = refused(f"model.feedback_base={short}")
    assert "no prompt fits: " in line and "the feedback agent's model has 64 positions; lower protocol." in line
    assert "goes with feedback_base alone" in refused("model.feedback_template=a.jinja")
    assert 'baseline = "shared" reads' in refused("model.feedback_base=nano-neox", "learning.baseline=shared")
    missing = refused("model.feedback_base=nano-neox", "model.feedback_template=a.jinja")
    assert "template a.jinja: No such file" in missing


def test_a_game_has_to_fit_each_model_with_its_own_agents_part_of_it(folders):
    """Four rounds take more than the reviewer's positions, and a review does not."""
    made = recipe(folders["qwen"], protocol={"rounds": 4, "answer_tokens": 60, "feedback_tokens": 30})
    pair = Pair(made)
    chat = pair.agents[FEEDBACK].chat
    review_room = chat.room(4, 60, 30, agents=[FEEDBACK])
    asked = [prompt("short", "a"), prompt("long", "a " * 40)]
    pair.team(FEEDBACK).positions = review_room + len(chat.encode("a")) + 1
    assert review_room < chat.room(4, 60, 30, agents=[CONVERSATION])
    assert [kept.id for kept in pair.fitting(asked, "training")] == ["short"]


def test_a_checkpoint_is_laid_on_both_its_bases_alone(tmp_path):
    made = recipe("nano-neox", learning={"steps": 1})
    trained(made, tmp_path / "run")
    path = checkpoints(tmp_path / "run")[1]
    assert same(weights(restore(made, path), FEEDBACK), weights(restore(made, path), FEEDBACK))
    for model in ({"feedback_base": ""}, {"feedback_base": "nano-qwen"}, {"base": "nano-qwen"}):
        other = made.model_copy(update={"model": made.model.model_copy(update=model)})
        with pytest.raises(BadInput, match="another base"):
            restore(other, path)


def test_a_run_from_before_there_were_two_bases_is_gone_on_with(tmp_path):
    made = recipe("")
    with Run.create(tmp_path / "run", made):
        pass
    file = tmp_path / "run" / "recipe.toml"
    file.write_text(
        "".join(
            line for line in file.read_text().splitlines(True) if not line.startswith("feedback_") or "tokens" in line
        )
    )
    assert "feedback_base" not in file.read_text().replace("for feedback_base", "")
    with Run.open(tmp_path / "run") as run:
        assert run.recipe == made
