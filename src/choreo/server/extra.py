"""The packages that the server needs: those of choreo-rl[serve]."""

from __future__ import annotations

import importlib.util

from choreo.errors import BadInput


def require_server(command: str) -> None:
    """Raises BadInput, with how to install them, where the packages of choreo-rl[serve] are missing."""
    missing = [name for name in ("starlette", "uvicorn", "prometheus_client", "httpx2") if not _found(name)]
    if missing:
        raise BadInput(f"{command}: needs {', '.join(missing)}: pip install 'choreo-rl[serve]'")


def _found(name: str) -> bool:
    return importlib.util.find_spec(name) is not None
