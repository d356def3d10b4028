"""A vLLM server that choreo starts for a training: its command, its environment, its address."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from choreo.clients.server_process import free_port, running_server
from choreo.clients.vllm import VllmServer
from choreo.config.common import Weights
from choreo.config.rollouts import Rollouts
from choreo.errors import BadInput

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of adapters, that vLLM makes room for
ENVIRONMENT = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
}
OF_RANKS = re.compile("((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|TORCHELASTIC_.*)")
"""Variables that tell a rank of its place among others (torchrun), and would tell the server so."""


def command_of(settings: Rollouts) -> list[str]:
    """The words of the command. Raises BadInput where there is no such program."""
    words = shlex.split(settings.command)
    if shutil.which(words[0]) is None:
        raise BadInput(
            f"engine.command: {words[0]}: no such program; install vLLM, or name a server that runs already with "
            "engine.url"
        )
    return words


@contextmanager
def vllm_started(
    settings: Rollouts, base: Path, model: Weights, agents: int, stopping: Callable[[], bool]
) -> Iterator[str]:
    """Starts a server for the base in a folder, with room for two versions of so many adapters. Gives its url, on
    loopback, once it answers, and ends it behind. stopping: whether to wait for that no longer. Raises what
    `running_server` raises."""
    port = free_port()
    words = [*command_of(settings), str(base.absolute()), "--host", "127.0.0.1", "--port", str(port)]
    words += ["--enable-lora", "--max-loras", str(agents), "--max-cpu-loras", str(2 * agents)]
    words += ["--max-lora-rank", str(next((most for most in RANKS if most >= model.rank), model.rank))]
    words += ["--dtype", model.dtype]
    words += ["--logprobs-mode", "processed_logprobs"] if model.temperature != 1 else []
    environment = {name: value for name, value in os.environ.items() if not OF_RANKS.fullmatch(name)} | ENVIRONMENT
    url = f"http://127.0.0.1:{port}"
    server = VllmServer(url)
    try:
        with running_server("the vLLM server", words, environment, server.answers, stopping):
            yield url
    finally:
        server.close()
