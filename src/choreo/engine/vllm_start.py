"""A vLLM server that choreo starts for a training: its command, its environment, its address."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from choreo.clients.server_process import free_port, running_server
from choreo.clients.vllm import VllmServer
from choreo.config.common import Weights
from choreo.config.rollouts import Rollouts

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM makes room for
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
OF_RANKS = {"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}  # not the server's


@contextmanager
def vllm_started(settings: Rollouts, base: Path, model: Weights, agents: int) -> Iterator[str]:
    """Starts a server for the base in a folder, with room for two versions of so many adapters. Gives its url, on
    loopback, once it answers, and ends it behind. Raises what `running_server` raises."""
    port = free_port()
    words = [*shlex.split(settings.command), str(base.absolute()), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--enable-lora", "--max-loras", str(agents), "--max-cpu-loras", str(2 * agents)]
    words += ["--max-lora-rank", str(next((most for most in RANKS if most >= model.rank), model.rank))]
    words += ["--dtype", model.dtype]
    words += ["--logprobs-mode", "processed_logprobs"] if model.temperature != 1 else []
    environment = {name: value for name, value in os.environ.items() if name not in OF_RANKS} | ENVIRONMENT
    url = f"http://127.0.0.1:{port}"
    server = VllmServer(url)
    try:
        with running_server(words, environment, server.answers):
            yield url
    finally:
        server.close()
