"""Studies by the modules of a package: a module added there is a study more, and nothing else has to know of it."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType


def questions(package: Iterable[str]) -> dict[str, str]:
    """What each study of a package answers, by its name. Reads the first line of every module and imports none.

    package: the package's `__path__`. The line is a docstring's: the command, a colon, the answer.
    """
    found = {}
    for module in pkgutil.iter_modules(package):
        if not module.ispkg:
            folder = Path(module.module_finder.path)  # type: ignore[union-attr]  # of files, as all packages here are
            with (folder / f"{module.name}.py").open(encoding="utf-8") as file:
                _, _, answer = file.readline().strip().strip('"').partition(": ")
            found[module.name.replace("_", "-")] = answer
    return found


def load(package: str, name: str) -> ModuleType:
    """The module of the study `name`. Raises ValueError where the package has none of this name."""
    known = questions(importlib.import_module(package).__path__)
    if name not in known:
        raise ValueError(f"no study {name!r}; there are {', '.join(known)}")
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")
