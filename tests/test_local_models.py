"""Models on this machine in the game as text: templates, dtypes, overflow, thinking."""

from __future__ import annotations

import json
from pathlib import Path

from two_models import PROMPTS, write

from choreo.cli import main
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.types import AGENTS, CONVERSATION, Episode, Limits, Prompt


def test_a_local_base_speaks_as_it_plays(tmp_path):
    """A base as it is plays the game of the pair that training begins with: same noise, same words."""
    from choreo.environments.microworld.suites import prompts
    from choreo.evaluation.collaboration import local_agent
    from choreo.game.play import play
    from choreo.methods.waltz.agents import Pair

    recipe = WaltzRecipe()
    asked = [(prompt, 0) for prompt in prompts("sensitive_benign", "heldout", 12)]
    limits, settings = Limits(1, 40, 96), {"key": (0, "evaluation"), "temperature": 0.6}
    trained = play(Pair(recipe).agents, asked, limits, **settings)
    untrained = play(dict.fromkeys(AGENTS, local_agent("micro-llama")), asked, limits, **settings)
    assert any(episode.triggered for episode in trained)
    for ours, theirs in zip(untrained, trained, strict=True):
        assert [turn.text for turn in (*ours.answers, *ours.reviews)] == [
            turn.text for turn in (*theirs.answers, *theirs.reviews)
        ]
        assert ours.feedback == theirs.feedback


def test_a_local_model_is_loaded_as_it_is_told_and_what_overflows_fails_alone(tiny_folder, tmp_path, capsys):
    from architectures import PLAIN

    template = tmp_path / "plain.jinja"
    template.write_text(PLAIN, encoding="utf-8")
    suite = write(tmp_path / "mine.jsonl", [*PROMPTS[:3], {"prompt": "x y " * 900, "kind": "benign"}])
    command = [
        "eval",
        "--conversation",
        str(tiny_folder),
        "--suite",
        str(suite),
        "--set",
        "answer_tokens=8",
        "--set",
        "feedback_tokens=8",
        "--set",
        "device=cpu",
        "--set",
        f"template={template}",
    ]
    assert main([*command, "--set", "dtype=bfloat16", "--out", str(tmp_path / "o"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["open"]["base"]["no answer"] == 1
    assert result["failures"]["answers"] == {"too long for the model's positions": 1}
    assert result["systems"]["collaboration-untrained"]["ftr"]["benign"]["n"] == 0
    assert result["failed"] == 5  # that answer, and all four reviews: what frames one has no room in 512 positions
    assert main([*command, "--set", "dtype=float16", "--out", str(tmp_path / "p")]) == 2
    assert "dtype" in capsys.readouterr().err


def test_two_local_models_have_a_template_each(tmp_path, capsys):
    from architectures import PLAIN, make
    from transformers import AutoTokenizer

    from choreo.config.collaboration import collaboration
    from choreo.evaluation.collaboration import agent_of

    one, two = (str(make(name, tmp_path / name)) for name in ("qwen", "llama"))
    own = AutoTokenizer.from_pretrained(one).chat_template
    bare = AutoTokenizer.from_pretrained(two)
    bare.chat_template = None
    for file in Path(two).glob("*chat_template*"):
        file.unlink()
    bare.save_pretrained(two)
    template, suite = tmp_path / "plain.jinja", write(tmp_path / "mine.jsonl", PROMPTS)
    template.write_text(PLAIN, encoding="utf-8")
    given = {"conversation": one, "feedback": two, "suites": {"mine": {"file": str(suite)}}}
    settings = collaboration(None, given, [f"feedback_template={template}"])
    told = [agent_of(model, settings, tmp_path, reviews=model == two).chat.jinja() for model in (one, two)]
    assert told == [own, PLAIN]
    pair = ["eval", "--conversation", one, "--feedback", two, "--suite", str(suite), "--out", str(tmp_path / "o")]
    for argv, said in (
        (pair, "no chat template; name a file with one (--set feedback_template=FILE)"),
        ([*pair, "--set", "feedback_template=none.jinja"], "none.jinja: No such file"),
        ([*pair[:3], *pair[5:], "--set", f"feedback_template={template}"], "goes with a feedback model of its own"),
        (
            ["eval", "--conversation", "a@http://x", *pair[3:], "--set", f"template={template}"],
            "conversation is on a server, which has its own template; feedback_template is of feedback",
        ),
    ):
        assert main([*argv, "--resume"]) == 2
        assert said in (err := capsys.readouterr().err) and err.count("\n") == 1, err


def test_what_a_local_model_only_thought_is_no_answer(tiny_folder):
    from choreo.agents.local import LocalAgent
    from choreo.engine.requests import Completion
    from choreo.models.load import load_chat

    chat = load_chat(tiny_folder)
    said = [("<think>well", False), ("<think>well</think>yes", False), ("yes", True), ("", True)]

    class Scripted:
        positions = None

        def sample(self, agent, requests, **options):
            return [Completion(chat.encode(text), (), finished, 0) for text, finished in said]

    games = [Episode(Prompt("", "p", "general", ""), i, ()) for i in range(len(said))]
    agent = LocalAgent(chat, Scripted(), trained=False)
    turns = agent.turns(games, CONVERSATION, Limits(1, 9, 9), key=("k",), temperature=1.0)
    assert [turn.failure.split(":")[0] for turn in turns] == ["thought only", "", "", ""]
    assert turns[0].text == ""
