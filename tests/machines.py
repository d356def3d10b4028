"""The numeric tests on other machines: each kernel that this CPU has, with one thread and with two.

`make machines` runs it, and `make test` does. Each machine is a run of pytest in a child process, whose environment
tells PyTorch, MKL, oneDNN and OpenBLAS which instructions to use. A machine that this CPU cannot be is named and left
out.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LEVELS = ("DEFAULT", "AVX2", "AVX512")  # as PyTorch calls them, each with all of those before it
MACHINES: dict[str, tuple[str, dict[str, str]]] = {  # name: the level that it needs, and its environment
    "no AVX": ("DEFAULT", {
        "ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "SSE41",
        "OPENBLAS_CORETYPE": "Nehalem", "OMP_NUM_THREADS": "1",
    }),
    "AVX2": ("AVX2", {
        "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell", "OMP_NUM_THREADS": "1",
    }),
    "AVX-512": ("AVX512", {
        "ATEN_CPU_CAPABILITY": "avx512", "MKL_CBWR": "AVX512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
        "OPENBLAS_CORETYPE": "SkylakeX", "OMP_NUM_THREADS": "1",
    }),
    "PyTorch and MKL of other machines": ("AVX2", {
        "ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1",
    }),
    "this machine, two threads": ("DEFAULT", {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive"}),
}  # fmt: skip
NAMES = sorted({name for _, environment in MACHINES.values() for name in environment})


def level() -> str:
    """The highest of LEVELS that this CPU has."""
    told = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    plain = {name: value for name, value in os.environ.items() if name not in NAMES}
    found = subprocess.run([sys.executable, "-c", told], env=plain, capture_output=True, text=True, check=True)
    return found.stdout.strip() if found.stdout.strip() in LEVELS else "DEFAULT"


def main() -> int:
    """1 where a test fails on any machine; pytest's options may be given. As many run at once as there are cores."""
    here, failed = level(), []
    tests = sorted(Path(__file__).parent.glob("test_*.py"))
    numeric = [str(file) for file in tests if "mark.numeric" in file.read_text(encoding="utf-8")]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "numeric", "-p", "no:xdist", *sys.argv[1:], *numeric]

    def run(name: str) -> tuple[int, str, float]:
        plain = {key: value for key, value in os.environ.items() if key not in NAMES}
        began = time.monotonic()
        done = subprocess.run(command, env=plain | MACHINES[name][1], cwd=Path(__file__).parents[1], check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)  # fmt: skip
        return done.returncode, done.stdout, time.monotonic() - began

    there = [name for name, (needed, _) in MACHINES.items() if LEVELS.index(needed) <= LEVELS.index(here)]
    for name in MACHINES.keys() - there:
        print(f"SKIPPED {name}: this CPU has no {MACHINES[name][0]}", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, (code, told, seconds) in zip(there, pool.map(run, there), strict=True):
            print(f"== {name}: {' '.join(f'{k}={v}' for k, v in MACHINES[name][1].items())}\n{told}"
                  f"== {name}: {'failed' if code else 'passed'} in {seconds:.0f} s", flush=True)  # fmt: skip
            failed += [name] if code else []
    if failed:
        print(f"FAILED on {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
