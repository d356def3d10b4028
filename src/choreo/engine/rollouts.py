"""Who samples what is learnt from: the one place that knows which engines there are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from choreo.config.rollouts import Rollouts
from choreo.engine.local import LocalEngine


@contextmanager
def sampler_of(settings: Rollouts, own: LocalEngine) -> Iterator[LocalEngine]:
    """The engine of the settings over the team of `own`, ready to sample: `own` itself, or one that asks servers.

    Raises BadInput where a server cannot be used.
    """
    if settings.local:
        yield own
        return
    from choreo.engine.vllm import VllmEngine  # takes httpx2

    engine = VllmEngine(own, settings)
    try:
        engine.ready()
        yield engine
    finally:
        engine.close()
