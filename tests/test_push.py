"""`choreo export --push` against a server that speaks the hub's calls for an upload: every file arrives as it is."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from choreo.cli import main
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import train
from choreo.runs.folder import Run
from choreo.runs.progress import Progress

pytestmark = pytest.mark.slow


class Hub:
    """Serves on 127.0.0.1 until closed. files: what was committed; token: what writes are to bear."""

    def __init__(self, token: str):
        self.files: dict[str, bytes] = {}
        self.created: list[dict] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers["Authorization"] != f"Bearer {token}":
                    return self.say(401, {"error": "Invalid username or password."})
                self.say(*hub.answer(self.path, raw))

            def do_GET(self) -> None:
                self.say(404, {"error": "Not found"})

            def say(self, status: int, body: dict) -> None:
                data = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, path: str, raw: bytes) -> tuple[int, dict]:
        if path == "/api/repos/create":
            self.created.append(json.loads(raw))
            return 200, {"url": f"{self.address}/me/pair"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/models/me/pair/preupload/main":
            asked = json.loads(raw)["files"]
            return 200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if path == "/api/models/me/pair/commit/main":
            for line in raw.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    self.files[part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            return 200, {"commitUrl": f"{self.address}/me/pair/commit/{'a' * 40}", "commitOid": "a" * 40}
        return 404, {"error": path}

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder) -> Path:
    recipe = WaltzRecipe.model_validate(
        {
            "name": "tiny",
            "world": {"train_prompts": 30, "heldout_prompts": 2},
            "model": {"base": str(tiny_folder), "rank": 2},
            "protocol": {"answer_tokens": 6, "feedback_tokens": 8},
            "learning": {"steps": 1, "prompts": 3, "samples": 2},
        }
    )
    path = tmp_path_factory.mktemp("runs") / "run"
    with Run.create(path, recipe) as made, Progress() as progress:
        train(recipe, made, progress)
    return path


def export(run: Path, out: Path, name: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the hub's library reads HF_ENDPOINT once."""
    command = [sys.executable, "-m", "choreo", "export", str(run), "--out", str(out), "--push", name]
    environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "secret", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_every_file_of_the_export_arrives_in_a_private_repository(run, tmp_path):
    hub, out = Hub("secret"), tmp_path / "out"
    told = export(run, out, "me/pair", HF_ENDPOINT=hub.address)
    hub.close()
    assert told.returncode == 0, told.stderr
    written = {str(file.relative_to(out)): file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert hub.files == written
    assert {"README.md", "recipe.toml", "protocol.json", "feedback/README.md"} <= written.keys()
    assert "feedback/adapter_model.safetensors" in written
    assert b"(feedback/README.md)" in written["README.md"]
    (created,) = hub.created
    assert created["visibility"] == "private" and f"pushed: {hub.address}/me/pair/commit/" in told.stderr


def test_what_the_hub_refuses_is_said_in_one_line_and_what_was_written_stays(run, tmp_path, capsys):
    hub = Hub("another")
    told = export(run, tmp_path / "out", "me/pair", HF_ENDPOINT=hub.address)
    hub.close()
    assert told.returncode == 2 and "this account may not write there" in told.stderr, told.stderr
    assert (tmp_path / "out" / "feedback" / "README.md").is_file() and not hub.files
    assert main(["export", str(run), "--out", str(tmp_path / "other"), "--push", "pair"]) == 2
    assert "--push pair: expected OWNER/NAME" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
