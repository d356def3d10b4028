"""What `choreo serve` does: the pair of a run, or servers in its place, behind one address until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import uvicorn

from choreo import config
from choreo.config import WaltzRecipe
from choreo.errors import BadInput
from choreo.runs.folder import checkpoints, read_info
from choreo.serve import keys as keyring
from choreo.serve.app import Server, Settings
from choreo.serve.dance import Agent, Mode
from choreo.serve.figures import log
from choreo.serve.local import LocalAgent, Worker
from choreo.types import AGENTS
from choreo.waltz.trainer import Pair, restore

KEY_VARIABLE = "CHOREO_API_KEY"


@dataclass(frozen=True)
class Options:
    """What was typed. keys: a file; without one there is one key, from CHOREO_API_KEY or drawn at the start."""

    run: Path
    host: str = "127.0.0.1"
    port: int = 8000
    mode: Mode = "adaptive"
    model: str | None = None
    keys: Path | None = None
    opened: frozenset[str] = field(default_factory=frozenset)
    deadline: float = 30.0
    queue: int = 256
    body: int = 256 * 1024
    log_text: bool = False


def serve(options: Options) -> None:
    """Serves until SIGINT or SIGTERM, then finishes what is in play. SIGHUP takes up the run's newest checkpoint."""
    recipe = recipe_of(options.run)
    keys, secret = keys_of(options)
    pair, fingerprint = load(options.run, recipe)
    torch.set_num_threads(max(1, torch.get_num_threads() - 1))  # one for requests, where there is more than one
    worker = Worker(pair)
    settings = Settings(
        model=options.model or options.run.resolve().name, mode=options.mode, rounds=recipe.protocol.rounds,
        answer_tokens=recipe.protocol.answer_tokens, temperature=recipe.evaluation.temperature,
        opened=options.opened, deadline=options.deadline, queue=options.queue, body=options.body,
        log_text=options.log_text,
    )  # fmt: skip

    async def stop() -> None:
        await asyncio.to_thread(worker.close)

    server = Server(
        settings, agents_of(worker, pair, recipe), keys, alive=lambda: worker.alive,
        waiting=lambda: worker.counts()[1], fingerprint=fingerprint, stop=stop,
    )  # fmt: skip

    async def swap() -> None:
        try:
            fresh, server.fingerprint = await asyncio.to_thread(load, options.run, recipe)
            worker.swap(fresh)
            log("swapped", fingerprint=server.fingerprint)
        except BadInput as error:  # the old weights go on
            log("swap failed", "error", why=str(error))

    asyncio.run(_until_stopped(server, options, secret, swap))


async def _until_stopped(
    server: Server, options: Options, secret: str | None, swap: Callable[[], Awaitable[None]]
) -> None:
    uvicorn_config = uvicorn.Config(
        server.app(), host=options.host, port=options.port, log_level="warning", access_log=False, lifespan="on",
        timeout_graceful_shutdown=int(options.deadline) + 1, server_header=False,
    )  # fmt: skip
    listener = uvicorn_config.bind_socket() if options.port == 0 else None
    port = listener.getsockname()[1] if listener else options.port
    loop = asyncio.get_running_loop()
    swaps: set[asyncio.Task[None]] = set()

    def hang_up() -> None:
        task = asyncio.ensure_future(swap())
        swaps.add(task)
        task.add_done_callback(swaps.discard)

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    address = f"http://{options.host}:{port}"
    where = {"address": address, "model": server.settings.model, "mode": server.settings.mode, "pid": os.getpid()}
    log("serving", **where)
    if secret is not None:
        print(f"{address}/#key={secret}\nOPENAI_BASE_URL={address}/v1 OPENAI_API_KEY={secret}", flush=True)
    server_process = _Server(uvicorn_config)
    for stop in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(stop, server_process.stop)
    await server_process.serve(sockets=[listener] if listener else None)


class _Server(uvicorn.Server):
    """uvicorn's, but a signal ends it with code 0 once all is answered; a second one ends it at once."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def recipe_of(run: Path) -> WaltzRecipe:
    """Raises BadInput where `run` is no run of a pair."""
    read_info(run)
    recipe = config.load(run / "recipe.toml")
    if not isinstance(recipe, WaltzRecipe):
        raise BadInput(f"{run}: is a run of {recipe.method}; serve takes a pair that choreo train waltz made")
    return recipe


def load(run: Path, recipe: WaltzRecipe) -> tuple[Pair, str]:
    """The pair as the newest checkpoint has it, and what names it. A run without one serves the untrained pair."""
    step, folder = max(checkpoints(run).items(), default=(0, None))
    pair = restore(recipe, folder)
    return pair, f"step-{step:06d}/{pair.base}"


def agents_of(worker: Worker, pair: Pair, recipe: WaltzRecipe) -> Mapping[str, Agent]:
    positions = getattr(pair.team.decoder.model.config.get_text_config(), "max_position_embeddings", 2**31)
    return {
        agent: LocalAgent(
            worker, pair.chat, agent, feedback_tokens=recipe.protocol.feedback_tokens,
            temperature=recipe.evaluation.temperature, positions=positions,
        )
        for agent in AGENTS
    }  # fmt: skip


def keys_of(options: Options) -> tuple[Sequence[keyring.Key], str | None]:
    """The keys, and the secret of the one that was drawn for this start, to be shown.

    Raises BadInput for an address that others can reach without a keys file: somebody has to decide there what may be
    asked, and how often.
    """
    if options.keys is not None:
        return keyring.load(options.keys), None
    if options.host not in ("127.0.0.1", "::1", "localhost"):
        raise BadInput(f"--host {options.host}: others can reach it, so it needs --keys FILE (choreo key NAME)")
    given = os.environ.get(KEY_VARIABLE, "").strip()
    secret = given or keyring.new_key()
    return [keyring.own_key(secret)], None if given else secret
