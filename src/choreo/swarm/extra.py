"""Whether the optional packages of `choreo-rl[swarm]` are there, and which versions took part."""

from __future__ import annotations

import platform
from importlib import metadata

import choreo
from choreo.errors import BadInput

PACKAGES = ("swarm-safety", "numpy", "pydantic", "scikit-learn", "scipy", "torch", "transformers")


def require(command: str, package: str = "swarm-safety") -> None:
    """Raises BadInput, naming the extra, where `package` is not installed.

    The name that is asked for is the distribution's: another package on the index is imported as `swarm` too.
    """
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        how = "in a checkout: pip install -e '.[swarm]' --constraint constraints.txt"
        raise BadInput(f"{command}: {package} is not installed ({how})") from None


def versions() -> dict[str, str]:
    """Version by package, and Python's; "none" of one that is not there."""
    return {
        "python": platform.python_version(),
        "choreo": choreo.__version__,
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
