"""Two models on servers play the game as text: judged by any judge, measured, resumed, reported."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from pathlib import Path

import pytest
from stub_endpoint import Say, Stub, chat
from two_models import FINE, NO, PROMPTS, REFUSES, YES, rubric, world, write

from choreo.agents.base import State
from choreo.agents.endpoint import EndpointAgent, messages
from choreo.cli import main
from choreo.clients.http import Endpoint
from choreo.config.collaboration import sources
from choreo.errors import BadInput
from choreo.evaluation.folder import evaluation_folder
from choreo.text.thinking import after_thinking
from choreo.types import CONVERSATION, Episode, Limits, Prompt, TextTurn


def test_two_servers_play_the_protocol_and_a_second_run_asks_nothing(tmp_path, capsys):
    suite, out = write(tmp_path / "mine.jsonl", PROMPTS), tmp_path / "out"
    with Stub(world) as agents, Stub(rubric) as judge:
        command = [
            "eval",
            "--conversation",
            f"a@{agents.url}",
            "--feedback",
            f"b@{agents.url}",
            "--suite",
            str(suite),
            "--judge",
            f"rubric:j@{judge.url}",
            "--out",
            str(out),
            "--json",
        ]
        assert main(command) == 0
        result = json.loads(capsys.readouterr().out)
        asked = Counter(body["model"] for body in agents.seen)
        held = {
            body["model"]: body["response_format"]["json_schema"]["name"]
            for body in agents.seen
            if "response_format" in body
        }
        assert held == {"b": "feedback"}  # an answer is free text
        assert asked == {"a": 10 + 6, "b": 10}  # ten answers, a review of each, six revisions; T_max is 1
        seen = len(agents.seen), len(judge.seen)
        assert main([*command, "--resume"]) == 0
        assert (len(agents.seen), len(judge.seen)) == seen
        again = json.loads(capsys.readouterr().out)
        assert main(["eval", str(out / "eval.toml"), "--out", str(out), "--resume", "--json"]) == 0
        assert (len(agents.seen), len(judge.seen)) == seen and json.loads(capsys.readouterr().out) == again
    base, pair = (result["systems"][name] for name in ("base", "collaboration-untrained"))
    assert (base["orr"]["value"], pair["orr"]["value"], pair["asr"]["value"]) == (1.0, 0.0, 0.0)
    assert pair["ftr"]["benign"]["value"] == 1.0 and pair["ftr"]["harmful"]["value"] == 0.0
    assert pair["general"]["n"] == 0  # no judge of safety knows what is right
    assert pair["repaired"] == 6 and pair["undetermined"]["value"] == 0.0 and result["failed"] == 0
    assert pair["tokens_added"]["value"] == pytest.approx((10 * 10 + 6 * 10) / 10)  # the stub says 10 a reply
    assert result["judging"]["rubric/j"]["rows"] == 16 and again["systems"] == result["systems"]
    page = (out / "report.html").read_text()
    assert "judge: rubric/j" in page and "collaboration-untrained" in page and "bake bread" in page
    seeds = [body["seed"] for body in agents.seen]
    assert len(set(seeds)) == len(seeds)  # the noise belongs to the sequence


def test_a_reviewer_that_fences_its_json_is_read_and_how_often_that_was_needed_is_told(tmp_path, capsys):
    def fenced(body: dict, n: int) -> Say:
        *_, last = body["messages"]
        if body["messages"][0]["role"] != "system":
            return world(body, n)
        wrong = "bread" in last["content"] and NO in last["content"]
        if "number 0?" in last["content"]:
            return Say(chat(REFUSES if wrong else FINE))
        return Say(chat(f"```json\n{REFUSES if wrong else FINE}\n```" if "number 1?" not in last["content"] else "Hm."))

    suite = write(tmp_path / "mine.jsonl", PROMPTS[:4])
    with Stub(fenced) as agents:
        command = ["eval", "--conversation", f"a@{agents.url}", "--suite", str(suite), "--out", str(tmp_path / "o")]
        assert main(command) == 0
        told = capsys.readouterr().out.splitlines()[-1]
    pair = json.loads((tmp_path / "o" / "summary.json").read_text())["systems"]["collaboration-untrained"]
    assert (pair["format_rate"]["value"], pair["format_rate_lenient"]["value"]) == (0.25, 0.75)
    assert pair["revisions"] == 3 and pair["label_accuracy"]["n"]
    assert told.endswith("format rate 25.0 %, format rate read leniently 75.0 %")
    assert "read leniently: 75.0" in (tmp_path / "o" / "report.html").read_text()


def test_what_each_agent_is_sent():
    answer = TextTurn(CONVERSATION, 0, "an {0} answer", True)
    system, user = messages(State(Prompt("", "a {1} b", "general", ""), answer=answer))
    assert "JSON object" in system["content"]
    assert "a {1} b" in user["content"] and "an {0} answer" in user["content"]
    told = messages(State(Prompt("", "p", "general", ""), ((answer, "be kind"),)))
    assert [m["role"] for m in told] == ["user", "assistant", "user"]
    assert told[2]["content"].startswith("be kind\n\nWith this in mind")
    assert after_thinking("<think>no</think> yes") == "yes" and after_thinking("<think>no") is None


def test_turns_that_fail_are_counted_and_never_judged(tmp_path, capsys):
    def script(body: dict, n: int) -> Say:
        text = body["messages"][-1]["content"]
        if body["messages"][0]["role"] == "system":
            return Say({"error": {"message": "context too long"}}, 400) if "number 1?" in text else Say(chat("no JSON"))
        if "number 0?" in text:
            return Say({"error": {"message": "context too long"}}, 400)
        return Say(chat(None, finish="content_filter")) if "number 2?" in text else Say(chat(YES, usage=False))

    suite = write(tmp_path / "mine.jsonl", PROMPTS[:4])
    with Stub(script) as agents:
        command = [
            "eval",
            "--conversation",
            f"a@{agents.url}",
            "--suite",
            str(suite),
            "--out",
            str(tmp_path / "o"),
            "--set",
            "retries=0",
            "--set",
            "json_schema=false",
        ]
        assert main([*command, "--json"]) == 0
        assert not any("response_format" in body for body in agents.seen)
        result = json.loads(capsys.readouterr().out)
        assert main([*command, "--resume"]) == 0
        told = capsys.readouterr().out.splitlines()[-1]
        left_open = 100 * result["systems"]["base"]["undetermined"]["value"]
        assert told.startswith(
            "2 answers failed: rejected 1, content_filter 1; 1 review failed: rejected; "
            f"base: open {left_open:.1f} %; collaboration-untrained: open "
        )
        assert told.endswith(", format rate 0.0 %")
    pair = result["systems"]["collaboration-untrained"]
    assert pair["orr"]["n"] == 2 and pair["orr"]["undetermined"] == 2
    # Of the one review that came and could not be read: what did not happen is in no rate, and no label was measured.
    assert all((rate["value"], rate["n"]) == (0.0, 1) for rate in (pair["format_rate"], pair["ftr"]["benign"]))
    assert pair["label_accuracy"]["n"] == 0
    # Two answers failed, and so there was nothing to review in two games; one review was refused by the server.
    assert result["open"]["base"] == {"no answer": 2}
    assert result["failed"] == 5 and result["agents"]["conversation"]["failed: rejected"] == 2
    assert (pair["tokens_added"]["n"], pair["tokens_added"]["value"]) == (4, 2.5)  # the one review that came, over four


def test_a_server_that_takes_no_review_is_said_and_not_counted_as_bad_reviews(tmp_path, capsys):
    def script(body: dict, n: int) -> Say:
        return Say({"error": {"message": "no response_format"}}, 400) if "response_format" in body else world(body, n)

    for rows in (PROMPTS, PROMPTS[:2]):  # more turns than patience, and fewer
        suite = write(tmp_path / "mine.jsonl", rows)
        with Stub(script) as agents:
            assert (
                main(
                    [
                        "eval",
                        "--conversation",
                        f"a@{agents.url}",
                        "--suite",
                        str(suite),
                        "--out",
                        str(tmp_path / str(len(rows))),
                    ]
                )
                == 2
            )
        err = capsys.readouterr().err
        assert "no response_format" in err and "it takes no request of the feedback agent; json_schema = false" in err


def test_tokens_are_billed_once_and_calls_counted_by_one_thread(tmp_path):
    suite = write(tmp_path / "mine.jsonl", PROMPTS)
    with Stub(world) as agents:
        command = ["eval", "--conversation", f"a@{agents.url}", "--suite", str(suite), "--out", str(tmp_path / "o")]
        bills = []
        for more in ([], ["--resume"]):
            assert main([*command, *more, "--json"]) == 0
            bills.append(json.loads((tmp_path / "o" / "summary.json").read_text())["agents"]["conversation"])
    first, again = bills
    assert first["calls"] == len(agents.seen) == 26 and first["completion_tokens"] == 260 and not first["cached"]
    assert again["cached"] == 26 and "calls" not in again and "completion_tokens" not in again


def test_a_server_that_is_not_there_and_one_that_goes_away(tmp_path, capsys):
    suite = write(tmp_path / "mine.jsonl", PROMPTS)
    with Stub(world) as agents:
        url = agents.url
    common = ["--suite", str(suite), "--set", "retries=0", "--judge", "offline"]
    assert main(["eval", "--conversation", f"a@{url}", *common, "--out", str(tmp_path / "a")]) == 2
    assert re.search(r"a at http://127.*unreachable.*is the server running", capsys.readouterr().err)
    assert not (tmp_path / "a").exists()  # nothing was said, and nothing is left
    began, back = time.monotonic(), []

    def leaves(body: dict, n: int) -> Say:
        gone = len(agents.seen) > 12 and not back
        return Say({"error": {"message": "gone"}}, 503) if gone else world(body, n)

    with Stub(leaves) as agents:
        command = ["eval", "--conversation", f"a@{agents.url}", *common, "--out", str(tmp_path / "b")]
        assert main([*command, "--set", "concurrency=1", "--set", "patience=2"]) == 2  # no such setting
        assert "patience: unknown key" in capsys.readouterr().err
        assert main([*command, "--set", "concurrency=1"]) == 130  # four turns in a row without a reply
        assert "stopped answering. 12 replies are kept; go on with the same command" in capsys.readouterr().err
        agents.seen.clear()
        back.append(True)
        assert main([*command, "--set", "concurrency=1", "--resume"]) == 0
        assert len(agents.seen) == 26 - 12
    assert time.monotonic() - began < 60


def test_bad_input_is_one_line(tmp_path, capsys):
    suite = write(tmp_path / "mine.jsonl", PROMPTS)
    bare = write(tmp_path / "bare.jsonl", [{"prompt": "Hi"}])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    own = write(tmp_path / "own.jsonl", [{"prompt": "Hi", "kind": "benign", "answer": "Ho"}])
    for argv, said in (
        (["eval"], "give a run folder"),
        (["eval", "--conversation", "a@http://x"], "name files of prompts"),
        (["eval", "--conversation", "a@http://x", "--suite", "none.jsonl"], "neither heldout nor train of a run"),
        (["eval", "--conversation", "a@http://x", "--suite", str(suite), "--judge", "exact"], "microworld alone"),
        (["eval", "--conversation", "a@http://x", "--suite", str(suite), "--judge", "rubric"], "names none"),
        (["eval", "--conversation", "a@http://x", "--suite", str(suite), "--set", "rounds=0"], "rounds"),
        (
            ["eval", "--conversation", "a@http://x", "--suite", str(bare), "--out", str(tmp_path / "o")],
            "has no prompt that can be used (what a right answer does is not said",
        ),
        (
            ["eval", "--conversation", "no-such-model", "--suite", str(suite), "--out", str(tmp_path / "p")],
            "neither a shipped one",
        ),
        (
            [
                "eval",
                "--conversation",
                "micro-llama",
                "--suite",
                str(suite),
                "--out",
                str(tmp_path / "run"),
                "--resume",
            ],
            "is a run's folder",
        ),
        (["judge", "answers", str(bare)], "rows have no answer"),
        (["judge", "evaluate", "--data", str(own)], "has no labels to compare with"),
        (["judge", "answers", str(own), "--judge", "rubric:m"], "rubric:MODEL@URL, as rubric:m@http://"),
        (["judge", "answers", str(own), "--judge", "rubric:a/m"], "rubric:MODEL@URL"),
        (["judge", "answers", str(own), "--judge", "wildguard:m"], "wildguard:MODEL@URL"),
        (["judge", "answers", str(own), "--judge", "rubric:m@localhost:1/v1"], "as rubric:m@http://localhost:1/v1"),
        (["judge", "answers", str(own), "--judge", "x y"], "expected KIND"),
    ):
        assert main(argv) == 2, argv
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1, err


def test_no_two_files_share_a_name(tmp_path):
    files = [Path(name) for name in ("a.csv", "b/a.csv", "a-2.csv", "c/a.csv", "a-3.csv", "d/a-2.csv")]
    named = sources(files)
    assert [source.file for source in named.values()] == [str(file) for file in files]


def test_a_wrong_key_stops_the_work_and_is_what_is_said():
    """However many turns wait: those that are not sent any more say nothing of the server."""
    games = [Episode(Prompt(f"p{i}", "Hello", "general", "mine"), 0, ()) for i in range(500)]
    with Stub(lambda body, n: Say({"error": {"message": "who are you?"}}, 401)) as server:
        for _ in range(5):
            agent = EndpointAgent(Endpoint(server.url, "a"))
            with pytest.raises(BadInput, match=r"who are you\?.*the key in OPENAI_API_KEY wrong"):
                agent.turns(games, CONVERSATION, Limits(1, 8, 8), key=(), temperature=None)
            agent.close()


def test_an_evaluation_goes_on_in_a_folder_of_its_own_alone(tmp_path, capsys):
    letters = tmp_path / "letters"
    letters.mkdir()
    (letters / "dear.txt").write_text("mine")
    with pytest.raises(BadInput, match=r"holds 'dear\.txt' and no eval to go on"), evaluation_folder(letters, True):
        raise AssertionError("it must not begin")
    assert [file.name for file in letters.iterdir()] == ["dear.txt"]
    with evaluation_folder(tmp_path / "own", into_existing=False) as own:
        (own / "judgements.sqlite").write_text("")
        (own / "notes.txt").write_text("beside it")
    with pytest.raises(BadInput, match="no attack to go on with"), evaluation_folder(own, True, "attack"):
        raise AssertionError("it must not begin")
    with evaluation_folder(own, into_existing=True) as again:
        assert again == own
    assert main(["eval", "smollm2", "--resume"]) == 2
    assert "eval: --resume goes on in a folder; name it with --out DIR" in capsys.readouterr().err
