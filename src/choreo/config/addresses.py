"""How a user names a model behind a server, and which hosts are this machine."""

from __future__ import annotations

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})  # hosts that others cannot reach


def model_at_url(named: str) -> tuple[str, str] | None:
    """(model, url) of MODEL@URL, as qwen3:8b@http://localhost:11434/v1; None for what names no server."""
    model, at, rest = named.rpartition("@http")
    return (model, f"http{rest}") if at else None
