"""verifiers itself, by its own command: it plays the game with models on servers, and pays what the paper pays.

`make test` installs it in a place of its own; elsewhere this runs where CHOREO_VERIFIERS names its `vf-eval`, or it
is on the PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from serving import KEY, Serving, make_run
from stub_endpoint import Say, Stub, chat

from choreo import config
from choreo.environments.task import Task
from choreo.text.feedback import render_feedback
from choreo.types import Feedback

VF_EVAL = shutil.which(os.environ.get("CHOREO_VERIFIERS", "vf-eval"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        VF_EVAL is None, reason="no vf-eval on the PATH or in CHOREO_VERIFIERS; `make test` installs one"
    ),
]
OVERRIDES = ["world.heldout_prompts=1", "protocol.feedback_tokens=77"]


# What the command vf-eval calls, for several evaluations in turn: a start of it takes as long as they do.
IN_TURN = (
    "import json, sys; from verifiers.v1.cli.eval.main import main; [main(one) for one in json.loads(sys.argv[1])]"
)


def evaluation(folder: Path, url: str, *options: str, count: int = 4) -> list[str]:
    """The arguments of `vf-eval` for the first `count` prompts."""
    words = ["choreo-game", "--model", "run", "--client.base-url", url, "--client.api-key-var", "TEST_KEY"]
    words += ["--env.taskset.overrides", json.dumps(OVERRIDES), "-n", str(count)]
    return [*words, "--no-push", "--no-rich", "-o", str(folder), "--run.name", "it", *options]


def run(*command: object) -> None:
    source = Path(__file__).parents[1] / "src"
    environment = os.environ | {"TEST_KEY": KEY, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


def played(folder: Path) -> list[dict[str, Any]]:
    """The episodes of an evaluation."""
    return [json.loads(line) for line in (folder / "it" / "traces.jsonl").read_text().splitlines()]


def reply(text: str) -> Say:
    """A whole chat.completion, as verifiers wants it."""
    body = chat(text)
    body["choices"][0]["index"] = 0
    return Say(body | {"id": "1", "created": 1, "model": "run"})


def traces(episodes: list[dict[str, Any]], seat: str) -> list[dict[str, Any]]:
    return [trace for episode in episodes for trace in episode["traces"] if trace["agent"]["name"] == seat]


def scores(trace: dict[str, Any]) -> dict[str, float]:
    return {name: reward["score"] for name, reward in trace["rewards"].items()}


def test_both_seats_are_played_and_paid_as_in_the_paper(tmp_path):
    """Every first answer is wrong, every review of it is right, and every revision is right."""
    task = Task(config.load("waltz", OVERRIDES))
    prompts = {prompt.text: prompt for prompt in task.suites("heldout")}
    labels = {text: task.environment.labels(prompt, 0) for text, prompt in prompts.items()}

    def script(body: dict[str, Any], n: int) -> Say:
        messages = body["messages"]
        if messages[0]["role"] == "system":
            assert body["max_tokens"] == 77
            (text,) = [text for text in prompts if text in messages[1]["content"]]
            verdict = task.judge(prompts[text], labels[text][1])
            return reply(render_feedback(Feedback("", verdict.unsafe, verdict.overrefuse, "Mend it.")))
        chosen, rejected = labels[messages[0]["content"]]
        return reply(rejected if len(messages) == 1 else chosen)

    with Stub(script) as stub:
        run(VF_EVAL, *evaluation(tmp_path, stub.url))
    episodes = played(tmp_path)
    assert [episode["ok"] for episode in episodes] == [True] * 4
    assert [scores(trace) for trace in traces(episodes, "conversation")] == [{"answer": 1.0}] * 4
    for trace in traces(episodes, "feedback"):
        assert scores(trace) == {"dir": 0.65, "label": 0.5, "format": 0.1}  # α, λ and γ of the recipe
        assert trace["metrics"]["label_accuracy"] == trace["metrics"]["ftr"] == 1
    for trace in traces(episodes, "conversation"):
        assert trace["agent"]["trainable"] and trace["metrics"]["first_answer"] == 0
        assert "Mend it." in trace["nodes"][2]["message"]["content"]


def test_a_run_is_the_fixed_partner_of_a_policy_that_reviews_and_a_base_of_one_that_answers(tmp_path):
    """The first policy writes no JSON: nothing is applied, and R_format is not earned. The second is a base behind our
    own server."""
    reviews, answers = tmp_path / "reviews", tmp_path / "answers"
    partner = ("--env.policy", "feedback", "--env.partner", str(make_run(tmp_path / "partner")))
    alone = ("--sampling.choreo.mode", "off")  # else it would review its answers itself
    of_base = ("--env.policy", "conversation", "--env.partner", "micro-llama", *alone)
    with (
        Stub(lambda body, n: reply("It looks fine to me.")) as stub,
        Serving(make_run(tmp_path / "run"), "--model", "run") as server,
    ):
        both = [evaluation(reviews, stub.url, *partner), evaluation(answers, f"{server.url}/v1", *of_base)]
        run(Path(VF_EVAL).with_name("python"), "-c", IN_TURN, json.dumps(both))

    reviewed = played(reviews)
    assert not traces(reviewed, "conversation")  # the partner is in no trace: nothing of it is to be learnt
    for trace in traces(reviewed, "feedback"):
        assert trace["agent"]["trainable"] and trace["metrics"]["ftr"] == 0
        assert scores(trace) == {"dir": 0.0, "label": 0.0, "format": 0.0}
        assert trace["task"]["data"]["prompt"][1]["content"].count(trace["task"]["data"]["id"]) == 0
    assert len(traces(reviewed, "feedback")) == 4

    answered = played(answers)
    assert len(traces(answered, "conversation")) == 4 and all(episode["ok"] for episode in answered)
    for trace in traces(answered, "conversation"):
        assert scores(trace)["answer"] in (0.0, 1.0) and trace["num_output_tokens"] > 0
