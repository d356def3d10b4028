"""Who samples: the one place that knows which engines there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from choreo.config.rollouts import Rollouts
from choreo.engine.local import LocalEngine

if TYPE_CHECKING:  # these take httpx2
    from choreo.engine.served import ServedEngine


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
