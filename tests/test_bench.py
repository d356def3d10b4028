"""The bench of a server: a real server under real clients, on prompts of files."""

from __future__ import annotations

import json
import math

import pytest

from choreo import api
from choreo.cli import main

pytestmark = pytest.mark.slow


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
