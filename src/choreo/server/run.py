"""What `choreo serve` does: the pair of a run, or servers in its place, behind one address until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from choreo.clients.http import key_in
from choreo.config import MICROWORLD
from choreo.config.addresses import LOOPBACK
from choreo.config.rollouts import Rollouts, answering
from choreo.errors import BadInput
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import read_info
from choreo.server import keys as keyring
from choreo.server.app import application
from choreo.server.figures import log
from choreo.server.listening import HttpServer, listen
from choreo.server.session import Mode, Release, SessionAgent, SystemPolicy
from choreo.server.state import Server, Settings
from choreo.server.upstream import VARIABLES, Address, Upstream
from choreo.types import AGENTS, CONVERSATION, Limits

KEY_VARIABLE = "CHOREO_API_KEY"
OF_THE_MICROWORLD = "I tried and failed. How do I wreck the rag?"  # an example of its language

# For models behind servers: no recipe gives their limits.
LIMITS, TEMPERATURE = Limits(rounds=1, answer_tokens=1024, feedback_tokens=512), 0.6


@dataclass(frozen=True)
class Options:
    """The options of the command line.

    system: None leaves it to `system_policy_of`. overrides: who samples, as "engine.rollouts=llama.cpp".
    upstream: MODEL@URL, by agent. keys: a file; without one there is one key, from CHOREO_API_KEY or made at the start.
    """

    run: Path | None
    upstream: Mapping[str, str] = field(default_factory=dict)
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
    system: SystemPolicy | None = None
    release: Release = "whole"
    overrides: Sequence[str] = ()


def system_policy_of(options: Options) -> SystemPolicy:
    """What becomes of callers' system messages, by default: a run's conversation agent takes them as it was trained to,
    and none where it was trained under its own system prompt alone; any other model takes them.

    Raises BadInput where they are to be taken as in training, and the run was trained without any.
    """
    if options.run is None or CONVERSATION in options.upstream:
        if options.system == "train":
            raise BadInput("--system train: goes with a run's own conversation agent, and this one is behind a server")
        return options.system or "prepend"
    noted = read_info(options.run).get("system_messages", {}) if checkpoints(options.run) else {}
    trained = bool(noted)
    if options.system == "train" and not trained:
        raise BadInput(
            f"--system train: {options.run} was not trained under system messages of callers (system_messages.train in "
            "its recipe, or prompts that have one); --system prepend takes them all the same"
        )
    # A few prompts with a message of their own are no training under them: there it has to be asked for.
    return options.system or ("train" if noted.get("given") else "refuse")


def serve(options: Options) -> None:
    """Serves until SIGINT or SIGTERM, then finishes what is in play. SIGHUP reads the keys file again and takes up the
    run's newest checkpoint."""
    keys, secret = keys_of(options)
    addresses = {
        agent: Address.read(options.upstream[agent], VARIABLES[agent]) for agent in AGENTS if agent in options.upstream
    }
    sampler = answering(options.overrides)
    if options.run is None and options.overrides:
        raise BadInput("serve: --set goes with a run; without a run, both agents are on servers of their own")
    if options.run is None and len(addresses) < len(AGENTS):
        raise BadInput("serve: give a run, or both --conversation and --feedback")
    asyncio.run(_serve(options, keys, secret, addresses, sampler))


async def _serve(
    options: Options,
    keys: Sequence[keyring.Key],
    secret: str | None,
    addresses: Mapping[str, Address],
    sampler: Rollouts,
) -> None:
    shared: dict[str, Any] = {
        "mode": options.mode,
        "opened": options.opened,
        "deadline": options.deadline,
        "queue": options.queue,
        "body": options.body,
        "log_text": options.log_text,
        "system": system_policy_of(options),
        "release": options.release,
    }
    if options.run is None:
        agents: dict[str, SessionAgent] = {
            a: Upstream(a, address, LIMITS.feedback_tokens) for a, address in addresses.items()
        }
        settings = Settings(
            options.model or addresses[AGENTS[0]].model,
            limits=LIMITS,
            temperature=TEMPERATURE,
            **shared,
        )
        await _until_stopped(Server(settings, agents, keys, fingerprint="upstream"), options, secret, None)
        return

    from choreo.server.pair import Resident, recipe_with_pair  # loads PyTorch, which servers of others need not

    if options.mode != "off" and recipe_with_pair(options.run).protocol.rounds < 1:
        raise BadInput(
            f"{options.run}: was trained without feedback (protocol.rounds = 0), so that no answer would be reviewed; "
            "say --mode off if that is what you want"
        )
    listen(options.host, options.port)[0].close()  # an address that is taken is said before the model is loaded
    pair = Resident(options.run, sampler, options.deadline)
    for remark in pair.remarks:
        log("template", "warning", why=remark)
    limits = pair.recipe.protocol.limits
    agents = dict(pair.agents)
    for agent, address in addresses.items():
        agents[agent] = Upstream(agent, address, limits.feedback_tokens, pair.encode, pair.recipe.protocol.wording)
    settings = Settings(
        options.model or options.run.resolve().name,
        limits=limits,
        temperature=pair.recipe.evaluation.temperature,
        **shared,
    )
    if pair.recipe.environment == MICROWORLD and not pair.recipe.from_files():
        settings = replace(settings, example=OF_THE_MICROWORLD)

    async def stop() -> None:
        await asyncio.to_thread(pair.close)

    server = Server(
        settings,
        agents,
        keys,
        alive=lambda: pair.worker.alive,
        waiting=lambda: pair.worker.counts()[1],
        fingerprint=pair.fingerprint,
        encode=pair.encode,
        stop=stop,
    )

    one_swap = asyncio.Lock()  # if two ran at once, the one with the older checkpoint might end last

    async def swap() -> None:
        try:
            async with one_swap:
                server.fingerprint = await asyncio.to_thread(pair.swap)
            log("swapped", fingerprint=server.fingerprint)
        except Exception as error:  # whatever is wrong with it, the old weights go on, if they are there
            log("swap failed", "error", why=str(error) if isinstance(error, BadInput) else repr(error))

    await _until_stopped(server, options, secret, swap)


def _read_keys(server: Server, file: Path) -> None:
    """Reads the keys again. A broken file changes nothing: it must not lock out every caller, nor let in a new one."""
    try:
        server.keys = keyring.load(file)
        log("keys", count=len(server.keys))
    except BadInput as error:
        log("keys failed", "critical", why=str(error))


async def _until_stopped(
    server: Server, options: Options, secret: str | None, swap: Callable[[], Coroutine[Any, Any, None]] | None
) -> None:
    """Runs the server until a signal ends it. swap: loads the run's newest checkpoint; None where there is no run."""
    http = HttpServer.of(
        application(server),
        lifespan="on",
        timeout_graceful_shutdown=int(options.deadline) + 1,
        limit_concurrency=2 * options.queue + 256,  # connections, slow and idle ones too: each takes memory
    )
    listener, address = listen(options.host, options.port)
    where: dict[str, Any] = {
        "address": address,
        "model": server.settings.model,
        "mode": server.settings.mode,
        "system": server.settings.system,
        "pid": os.getpid(),
    }
    loop = asyncio.get_running_loop()
    swaps: set[asyncio.Task[None]] = set()

    def hang_up() -> None:
        if options.keys is not None:
            _read_keys(server, options.keys)
        if swap is not None:
            task = asyncio.create_task(swap())
            swaps.add(task)
            task.add_done_callback(swaps.discard)
        elif options.keys is None:
            log("swap failed", "error", why="there is neither a run to take a checkpoint from nor a keys file")

    loop.add_signal_handler(signal.SIGHUP, hang_up)
    http.stop_on_signals()
    log("serving", **where)
    drawn = (f"#key={secret}", f" OPENAI_API_KEY={secret}") if secret is not None else ("", "")
    print(f"{address}/{drawn[0]}\nOPENAI_BASE_URL={address}/v1{drawn[1]}", flush=True)
    await http.serve(sockets=[listener])
    log("stopped")


def keys_of(options: Options) -> tuple[Sequence[keyring.Key], str | None]:
    """The keys, and the secret of a key that was drawn for this start, so that it can be shown.

    Raises BadInput where others can reach the address and there is no keys file: the operator has to decide what they
    may ask, and how often.
    """
    if options.keys is not None:
        return keyring.load(options.keys), None
    if options.host not in LOOPBACK:
        raise BadInput(f"--host {options.host}: others can reach it, so it needs --keys FILE (choreo key NAME)")
    given = key_in(KEY_VARIABLE)
    secret = given or keyring.new_key()
    return [keyring.own_key(secret)], None if given else secret
