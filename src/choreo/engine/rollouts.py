"""Who samples: the one place that knows which engines there are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo import parallel
from choreo.config.common import Weights
from choreo.config.rollouts import Rollouts
from choreo.engine.local import LocalEngine

if TYPE_CHECKING:  # these take httpx2
    from choreo.engine.served import ServedEngine


@contextmanager
def served(
    settings: Rollouts, base: Path, model: Weights, agents: int, stopping: Callable[[], bool]
) -> Iterator[Rollouts]:
    """The settings with the url of the server that they want choreo to start, which runs meanwhile; else as they are.

    base: the folder of the base. model: how it is loaded here. agents: how many adapters it is to hold. stopping:
    whether to wait for it no longer. Of several ranks the first one starts it. Raises what `vllm_started` raises.
    """
    if not settings.starts:
        yield settings
        return
    from choreo.engine.vllm_start import vllm_started

    with ExitStack() as stack:
        url = parallel.first(lambda: stack.enter_context(vllm_started(settings, base, model, agents, stopping)))
        yield settings.model_copy(update={"url": (url,)})


@contextmanager
def sampler_of(settings: Rollouts, own: LocalEngine) -> Iterator[LocalEngine]:
    """The engine of the settings over the team of `own`, ready to sample: `own` itself, or one that asks servers.

    Raises BadInput where a server cannot be used.
    """
    if settings.local:
        yield own
        return
    engine = _asking(settings, own)
    try:
        engine.ready()
        yield engine
    finally:
        engine.close()


def _asking(settings: Rollouts, own: LocalEngine) -> ServedEngine[Any, Any]:
    if settings.rollouts == "vllm":
        from choreo.engine.vllm import VllmEngine

        return VllmEngine(own, settings)
    from choreo.engine.llama import LlamaEngine

    return LlamaEngine(own, settings)
