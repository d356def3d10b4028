"""Stands in for the command `vllm serve`: `python vllm_command.py PID_FILE FOLDER OPTIONS…`."""

from __future__ import annotations

import argparse
import os
import threading
from pathlib import Path

from vllm_server import VllmStandIn

parser = argparse.ArgumentParser()
parser.add_argument("pid_file", type=Path)
parser.add_argument("folder", type=Path)
parser.add_argument("--host", choices=["127.0.0.1"], required=True)
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--enable-lora", action="store_true", required=True)
parser.add_argument("--max-loras", type=int, choices=[2], required=True)
parser.add_argument("--max-cpu-loras", type=int, choices=[4], required=True)
parser.add_argument("--max-lora-rank", type=int, choices=[8], required=True)
parser.add_argument("--dtype", choices=["float32"], required=True)

if __name__ == "__main__":
    given = parser.parse_args()
    assert os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1" and not {"RANK", "TORCHELASTIC_USE_AGENT_STORE"} & {
        *os.environ
    }
    given.pid_file.write_text(str(os.getpid()))
    with VllmStandIn(given.folder, port=given.port):
        threading.Event().wait()
