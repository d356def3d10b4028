"""Parts of choreo by their names: choreo's own, those of installed packages, and a user's own as `module:object`.

A recipe names its method, judge, estimator and environment. A name with a colon is an object of the user's:
`mine:Judge` of a module that Python can import from here, or `folder/mine.py:Judge` of a file. Installed packages add
names by entry points, in the group of each registry.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from choreo.errors import BadInput, first_line


@dataclass(frozen=True)
class Registry:
    """The parts of one kind.

    what: the kind, in messages ("estimator"). group: the entry points that add to it.
    module, attribute: where choreo's own stand, as a mapping from name to object. It is imported when first asked.
    """

    what: str
    group: str
    module: str
    attribute: str

    def ours(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = getattr(importlib.import_module(self.module), self.attribute)
        return found

    def names(self) -> list[str]:
        """Every name that needs no colon: choreo's own first, then those of installed packages."""
        installed = [point.name for point in metadata.entry_points(group=self.group)]
        return list(dict.fromkeys([*self.ours(), *installed]))

    def get(self, name: str) -> Any:
        """The object that `name` means. Raises BadInput where there is none."""
        if ":" in name:
            return load_object(name, self.what)
        if name in (ours := self.ours()):
            return ours[name]
        for point in metadata.entry_points(group=self.group):
            if point.name == name:
                return load_object(point.value, self.what)
        known = ", ".join(self.names())
        raise BadInput(f"no {self.what} {name!r}; there are {known}, or module:object for one of your own")


def load_object(name: str, what: str = "object") -> Any:
    """The object `name` means, as `module:object` or `file.py:object`. Raises BadInput where there is none."""
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise BadInput(f"{what} {name!r}: expected module:object, or file.py:object")
    try:
        module = _from_file(Path(where)) if where.endswith(".py") else _from_path(where)
    except Exception as error:  # the user's module may raise anything while it is imported
        raise BadInput(
            f"{what} {name!r}: {where} cannot be imported: {type(error).__name__}: {first_line(error)}"
        ) from error
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise BadInput(f"{what} {name!r}: {where} has no {attribute}")
        found = getattr(found, part)
    return found


def discover(package: str, attribute: str) -> dict[str, Any]:
    """What every module of `package` gives in its mapping `attribute`, joined; modules without one give nothing.

    A file in the package is all that it takes to add to it.
    """
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        found |= getattr(importlib.import_module(f"{package}.{module.name}"), attribute, {})
    return found


def _from_path(module: str) -> ModuleType:
    """A module that Python can import, or that lies in the folder in which the command runs."""
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    return importlib.import_module(module)


def _from_file(file: Path) -> ModuleType:
    """The module in `file`, imported once however often it is named. A process that pickles its objects finds it."""
    name = f"choreo_user_{file.resolve().stem}_{abs(hash(str(file.resolve()))):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise FileNotFoundError("there is no such file")
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
