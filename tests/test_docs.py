"""The page that a newcomer follows, run as it is written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest
import warm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]


def blocks(page: str) -> list[str]:
    """The page's commands, in order."""
    return re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.S | re.M)


def test_your_own_model_data_and_judge_from_a_clean_folder_to_an_export(tmp_path):
    setup, *thread = blocks("your-own.md")
    assert "make " in setup and len(thread) == 8  # what installs choreo is run by `make test` itself
    commands, mine = tmp_path / "bin", tmp_path / "mine"
    for folder in (commands, mine):
        folder.mkdir()
    warm.command(commands / "choreo", "-m", "choreo.cli")
    warm.command(commands / "python")
    where = os.environ | {"PATH": f"{commands}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = "set -eu\n" + "\n".join(thread).replace("8321", port)
    with subprocess.Popen(
        ["bash", "-c", script],
        cwd=mine,
        env=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as shell:
        try:
            out, err = shell.communicate(timeout=1500)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # a thread that broke off leaves its judge behind
    assert shell.returncode == 0, err[-3000:]
    assert "format rate" in out
    pair = {"conversation", "feedback"}
    for run, agents in (("run", pair), ("run-two", pair), ("run-macpo", {"student+"})):
        assert (mine / run / "report.html").is_file()
        assert agents <= {path.name for path in (mine / run.replace("run", "exported")).iterdir()}
    told = json.loads((mine / "run" / "summary.json").read_text())
    bill = told["judging"]["rubric/stand-in"]
    assert bill["judged"] == bill["rows"] > 0 and told["systems"]["waltz"]["asr"]["n"] > 0
