"""A server that choreo starts itself: it samples, and it ends with the process that started it, however that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from test_ranks import ids
from test_rollouts_train import SPEAKS, recipe, trained
from vllm_server import VllmStandIn

from choreo import config
from choreo.cli import main
from choreo.clients.server_process import running_server
from choreo.errors import Interrupted, Unavailable
from choreo.models.resolve import base_folder

HERE = Path(__file__).parent


def runs(pid: int) -> bool:
    try:
        return b"Z" not in Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[:1]
    except FileNotFoundError:
        return False


@pytest.fixture
def logs(tmp_path, monkeypatch) -> Path:
    """Where what servers printed is kept."""
    place = tmp_path / "logs"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


@pytest.mark.slow
def test_it_samples_as_a_server_of_the_users_and_is_gone_after_the_training(tmp_path, logs, monkeypatch):
    for name in ("RANK", "TORCHELASTIC_USE_AGENT_STORE"):  # as torchrun says
        monkeypatch.setenv(name, "0")
    command = f"{sys.executable} {HERE / 'vllm_command.py'} {tmp_path / 'pid'}"
    short = SPEAKS | {"learning": {"steps": 1, "prompts": 3}}
    trained(recipe("nano-llama", **short, engine={"rollouts": "vllm", "command": command}), tmp_path / "started")
    with VllmStandIn(base_folder("nano-llama")) as server:
        trained(recipe("nano-llama", server, **short), tmp_path / "asked")
    assert ids(tmp_path / "started") == ids(tmp_path / "asked")
    assert not runs(int((tmp_path / "pid").read_text())) and not [*logs.glob("choreo-server-*")]


def test_a_server_that_does_not_start_is_told_in_a_line(tmp_path, logs, capsys):
    made, run = tmp_path / "mine.toml", tmp_path / "run"
    for command, says in (
        (
            f"{sys.executable} -c \"print('no memory'); exit(3)\"",
            "the vLLM server: ended with code 3; what it printed: ",
        ),
        ("no-such-command serve", "engine.command: no-such-command: no such program"),
    ):
        made.write_text(config.to_toml(recipe("nano-llama", engine={"rollouts": "vllm", "command": command})))
        assert main(["train", str(made), "--run", str(run), "--overwrite"]) == 2
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert says in said
        for log in logs.glob("choreo-server-*"):
            assert str(log) in said and log.read_text() == "no memory\n"
            log.unlink()


def test_who_waits_for_it_may_stop_and_who_ends_it_ends_all_of_it(tmp_path, logs):
    shell = f"sleep 600 & echo $! > {tmp_path}/inner; wait"
    inner = tmp_path / "inner"

    def there() -> bool:
        return inner.exists() and inner.read_text().endswith("\n")

    with pytest.raises(Interrupted), running_server("it", ["sh", "-c", shell], os.environ, lambda: False, there):
        pass
    assert not runs(int(inner.read_text()))
    inner.unlink()
    said = pytest.raises(Unavailable, match=r"no answer; it: ended with code 143; what it printed: .*choreo-server-")
    with said, running_server("it", ["sh", "-c", shell], os.environ, there):
        [wrapper] = [int(one) for one in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
                     if b"server_process" in Path(f"/proc/{one}/cmdline").read_bytes()]  # fmt: skip
        os.kill(wrapper, signal.SIGTERM)
        raise Unavailable("no answer")
    assert not runs(int(inner.read_text())) and len([*logs.glob("choreo-server-*")]) == 1


def test_it_ends_when_the_process_that_started_it_is_killed(tmp_path):
    starts = f"""
import os, time
from choreo.clients.server_process import running_server
shell = "sleep 600 & echo $! > {tmp_path}/inner; echo $$ > {tmp_path}/outer; wait"
inner = "{tmp_path}/inner"
there = lambda: os.path.exists(inner) and os.path.getsize(inner) > 1
with running_server("the server", ["sh", "-c", shell], os.environ, there):
    print("started", flush=True)
    time.sleep(600)
"""
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", starts], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"started\n"
    pids = [int((tmp_path / name).read_text()) for name in ("inner", "outer")]
    assert all(map(runs, pids))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 30
    while any(map(runs, pids)):
        assert time.monotonic() < until
        time.sleep(0.05)
