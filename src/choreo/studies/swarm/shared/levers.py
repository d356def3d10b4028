"""The governance that the studies vary: the circuit breaker's threshold × the security levers."""

from __future__ import annotations

from choreo.swarm.scenario import Scenario, with_levers

BREAKERS, SECURITY = (0.35, 0.6, 0.8), (False, True)
ROWS, COLUMNS = tuple(f"breaker {limit:g}" for limit in BREAKERS), ("off", "on")  # of a map of the six settings


def governed(scenario: Scenario, limit: float, security: bool) -> Scenario:
    """The scenario with its circuit breaker at `limit` (mean 1 − p), and the security levers on or off."""
    levers = {"circuit_breaker_enabled": True, "freeze_threshold_toxicity": limit, "security_enabled": security}
    return with_levers(scenario, **levers)


def setting(limit: float, security: bool) -> str:
    """The name of one of the six settings."""
    return f"breaker {limit:g}, security {'on' if security else 'off'}"


def grid(prefix: str) -> list[list[str]]:
    """The names of the six settings, each behind `prefix`: rows by breaker, columns by security."""
    return [[f"{prefix}{setting(limit, on)}" for on in SECURITY] for limit in BREAKERS]
