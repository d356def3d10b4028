"""The numeric tests on other machines: each kernel that this CPU has, with one thread and with two.

Each machine is a run of pytest in a child process, whose environment tells PyTorch, MKL, oneDNN and OpenBLAS which
instructions to use. This machine as it is, with one thread and all that its CPU has, is what `make test` runs. A
machine that this CPU cannot be is skipped by name. `make machines` runs this file, and `make test` leaves it out.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

LEVELS = ("DEFAULT", "AVX2", "AVX512")  # as PyTorch calls them, each with all of those before it
MACHINES: dict[str, tuple[str, dict[str, str]]] = {  # name: the level that it needs, and its environment
    "no AVX": (
        "DEFAULT",
        {
            "ATEN_CPU_CAPABILITY": "default",
            "MKL_CBWR": "COMPATIBLE",
            "ONEDNN_MAX_CPU_ISA": "SSE41",
            "OPENBLAS_CORETYPE": "Nehalem",
            "OMP_NUM_THREADS": "1",
        },
    ),
    "AVX2, two threads": (
        "AVX2",
        {
            "ATEN_CPU_CAPABILITY": "avx2",
            "MKL_CBWR": "AVX2",
            "ONEDNN_MAX_CPU_ISA": "AVX2",
            "OPENBLAS_CORETYPE": "Haswell",
            "OMP_NUM_THREADS": "2",
            "OMP_WAIT_POLICY": "passive",
        },
    ),
}
NAMES = sorted({name for _, environment in MACHINES.values() for name in environment})


@pytest.mark.parametrize("machine", MACHINES)
def test_the_numeric_tests_pass_on(machine):
    needed, environment = MACHINES[machine]
    plain = {key: value for key, value in os.environ.items() if key not in NAMES and not key.startswith("PYTEST_")}
    if LEVELS.index(needed) > LEVELS.index(level(plain)):
        pytest.skip(f"this CPU has no {needed}")
    folder = Path(__file__).parent
    numeric = [file for file in sorted(folder.glob("test_*.py")) if "mark.numeric" in file.read_text(encoding="utf-8")]
    numeric.remove(Path(__file__))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "numeric", "-p", "no:xdist", *map(str, numeric)]
    done = subprocess.run(command, env=plain | environment, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{environment}\n{done.stdout[-20000:]}{done.stderr[-2000:]}"


def level(environment: dict[str, str]) -> str:
    """The highest of LEVELS that this CPU has: this process may itself be told to use less."""
    if "ATEN_CPU_CAPABILITY" not in os.environ:
        told = torch.backends.cpu.get_cpu_capability()
    else:
        code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
        asked = [sys.executable, "-c", code]
        told = subprocess.run(asked, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    return told if told in LEVELS else "DEFAULT"
