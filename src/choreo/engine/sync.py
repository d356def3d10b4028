"""Whether a server has the weights that it was given, from the log-probabilities of what it drew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Sync:
    """How a server's log-probabilities agree with ours.

    gap: mean |log π_server − log π_now| over the tokens, in nats.
    share: how much of the change from the weights before to those now the server shows: 1 in sync, 0 with the weights
        before. NaN where nothing changed. error: the standard error of share.
    """

    gap: float
    share: float
    error: float

    @property
    def told(self) -> bool:
        """The server has the weights of now: the share is above a half, beyond three standard errors."""
        return bool(self.share - 3 * self.error > 0.5)

    @property
    def stale(self) -> bool:
        """The server has the weights before: the share is below a half, beyond three standard errors."""
        return bool(self.share + 3 * self.error < 0.5)


def compared(server: Sequence[float], now: Sequence[float], before: Sequence[float]) -> Sync:
    """log π of the same tokens, at least one: as the server says, under our weights of now, and under those before.

    share = Σ(s − b)(n − b) / Σ(n − b)², the least-squares fit of the server's change to ours.
    """
    s, n, b = (np.asarray(values, np.float64) for values in (server, now, before))
    residual, change = s - n, n - b
    power = float(change @ change)
    gap = float(np.abs(residual).mean())
    if power == 0:
        return Sync(gap, float("nan"), float("nan"))
    share = float((s - b) @ change) / power
    return Sync(gap, share, float(np.sqrt(np.square(residual).mean() / power)))
