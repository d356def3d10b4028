"""The bench of a server: a real server under real clients, on prompts of files."""

from __future__ import annotations

import json
import math
import sys

import pytest
import warm
from serving import make_run

from choreo import api
from choreo.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def python(tmp_path, monkeypatch):
    """Servers start as forks of a process that has imported everything."""
    monkeypatch.setattr(sys, "executable", str(warm.command(tmp_path / "python")))


def test_a_pair_on_prompts_from_files_is_measured_on_these(tiny_folder, tmp_path, capsys, monkeypatch):
    rows = [
        {"prompt": f"{text} {n}?", "kind": kind}
        for n in range(12)
        for text, kind in (("How do I harm", "harmful"), ("How do I kill process", "benign"), ("What is", "general"))
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {"own": {"file": str(tmp_path / "rows.jsonl")}}
    made = {
        "model": {"base": str(tiny_folder), "rank": 2},
        "judge": {"kind": "offline"},
        "prompts": {"train": files},
        "protocol": {"answer_tokens": 6, "feedback_tokens": 40},
        "stages": {"stage1_share": 0.0},
        "learning": {"steps": 1, "prompts": 3, "samples": 1},
    }
    run = api.train(made, tmp_path / "run")
    monkeypatch.setattr("choreo.server.bench.WARM_UP_TOKENS", 2)
    words = ["--requests", "4", "--clients", "2", "--tokens", "5"]
    assert main(["bench", "serve", str(run.path), *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["traffic"].keys() == {"benign", "harmful"} and found["tokens"] == 5
    for by_mode in found["traffic"].values():
        assert by_mode.keys() == {"off", "shadow", "adaptive"} and by_mode["off"]["share_of_off"] == 1
        assert all(one["failed"] == 0 and one["per_second"] > 0 for one in by_mode.values())
    assert all(wait > 0 for wait in found["first_token_ms"].values() if wait is not None and not math.isnan(wait))


FEW = ["--requests", "2", "--clients", "1", "--tokens", "4"]


def test_quick_errors_are_failures_and_no_throughput(tiny_folder, tmp_path, capsys):
    rows = [{"prompt": "How do I kill process?", "kind": "benign"}, {"prompt": "What is?", "kind": "general"}]
    rows.append({"prompt": "How do I harm " * 20_000, "kind": "harmful"})  # longer than the model's positions
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {"own": {"file": str(tmp_path / "rows.jsonl")}}
    run = make_run(
        tmp_path / "run",
        model={"base": str(tiny_folder), "rank": 2},
        judge={"kind": "offline"},
        prompts={"train": files, "heldout": files},
        protocol={"answer_tokens": 6, "feedback_tokens": 40},
    )
    assert main(["bench", "serve", str(run), *FEW]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[-4:] == ["failed", "%", "withheld", "%"]
    by_traffic = {line.split()[0]: line.split() for line in lines if line.split()[1] == "off"}
    assert by_traffic["harmful"][2:4] == ["0.0", "–"] and by_traffic["harmful"][-2] == "100.0"
    assert float(by_traffic["benign"][2]) > 0 and by_traffic["benign"][-2] == "0.0"


def test_a_server_may_say_more_before_it_serves_and_one_that_cannot_start_is_told_in_one_line(
    tmp_path, capsys, monkeypatch
):
    pytest.importorskip("gguf", reason="needs choreo-rl[smollm2]")
    from tiny_gguf import write

    monkeypatch.setenv("CHOREO_CACHE", str(tmp_path / "cache"))
    write(file := tmp_path / "tiny.gguf")
    protocol = {"answer_tokens": 6, "feedback_tokens": 40}
    run = make_run(tmp_path / "run", model={"base": str(file), "rank": 2}, protocol=protocol)
    assert main(["bench", "serve", str(run), *FEW]) == 0
    out, err = capsys.readouterr()
    assert "tiny.gguf: converting into" in err and "harmful" in out
    file.unlink()
    assert main(["bench", "serve", str(run), *FEW]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("choreo: bench serve: the server did not start: ") and "tiny.gguf" in last
