"""Studies: questions that take many runs to answer. Every module of this package is one; `choreo study NAME` runs it.

To add a study, add a module here. The first line of its docstring is "`choreo study NAME`: " and what it answers, with
hyphens in NAME for underscores. It defines `run(study: Study) -> str`, which trains and measures what is missing,
writes the pages with `Study.write`, and returns the verdicts. What studies share is in `shared`; the studies on SWARM
are in `swarm`.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType


def questions() -> dict[str, str]:
    """What each study answers, by its name. Reads the first line of every module and imports none."""
    found = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.ispkg:
            folder = Path(module.module_finder.path)  # type: ignore[union-attr]  # of files, as all packages here are
            with (folder / f"{module.name}.py").open(encoding="utf-8") as file:
                _, _, answer = file.readline().strip().strip('"').partition(": ")
            found[module.name.replace("_", "-")] = answer
    return found


def load(name: str) -> ModuleType:
    """The module of a study. Raises ValueError where there is none of this name."""
    if name not in (known := questions()):
        raise ValueError(f"no study {name!r}; there are {', '.join(known)}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
