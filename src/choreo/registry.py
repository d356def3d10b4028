"""Parts of choreo by their names: choreo's own, those of installed packages, and a user's own as `module:object`.

A recipe names its method, judge, estimator, rewards, environment and data formats. A name with a colon is an object of
the user's: `mine:Judge` of a module that Python can import from here, or `folder/mine.py:Judge` of a file. Installed
packages add names by entry points, in the group of each registry.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any

from choreo.errors import BadInput, first_line

OWN = re.compile(r"(?P<where>.+):(?P<attribute>[^\W\d]\w*(?:\.[^\W\d]\w*)*)")


@dataclass(frozen=True)
class Registry:
    """The parts of one kind.

    what: the kind, in messages ("estimator"). group: the entry points that add to it.
    module, attribute: where choreo's own stand, as a mapping from name to object, or to the object's place as
    "module:object" where that is heavy to import. It is imported when first asked.
    complaint: what is wrong with an object that is not choreo's own, in a few words; "" where it is fine.
    """

    what: str
    group: str
    module: str
    attribute: str
    complaint: Callable[[Any], str] = lambda found: ""

    def ours(self) -> Mapping[str, Any]:
        """Choreo's own parts, by name."""
        found: Mapping[str, Any] = getattr(importlib.import_module(self.module), self.attribute)
        return found

    def names(self) -> list[str]:
        """Every name that needs no colon: choreo's own first, then those of installed packages."""
        installed = [point.name for point in metadata.entry_points(group=self.group)]
        return list(dict.fromkeys([*self.ours(), *installed]))

    def expected(self, others: Sequence[str] = ()) -> str:
        """What a name may be, for messages and help. others: names that mean something besides the parts here."""
        named = ", ".join(map(repr, [*others, *self.names()]))
        return f"one of {named}, or module:object for your own" if named else "module:object of your own"

    def get(self, name: str) -> Any:
        """The object that `name` means. Raises BadInput where there is none, or it is not what is expected."""
        if name in (ours := self.ours()):
            found = ours[name]
            return load_object(found, self.what) if isinstance(found, str) else found
        if ":" in name:
            return self._fit(name, load_object(name, self.what))
        for point in metadata.entry_points(group=self.group):
            if point.name == name:
                return self._fit(name, load_object(point.value, self.what))
        known = ", ".join(self.names()) or "none"
        raise BadInput(f"no {self.what} {name!r}; there are {known}, or module:object for one of your own")

    def _fit(self, name: str, found: Any) -> Any:
        if wrong := self.complaint(found):
            raise BadInput(f"{self.what} {name!r}: {wrong}")
        return found


def load_module(file: Path, what: str = "file") -> ModuleType:
    """The module in a user's file. what: the kind of thing, in messages. Raises BadInput where there is none, or it
    raises while it is imported."""
    return _loaded(str(file), lambda: _from_file(file), f"{what} {str(file)!r}")


def load_object(name: str, what: str = "object") -> Any:
    """The object that `name` means, as `module:object` or `file.py:object`.

    what: the kind of object, in messages. Raises BadInput where there is no such module, file or object, or its module
    raises while it is imported.
    """
    match = OWN.fullmatch(name)
    if match is None:
        raise BadInput(f"{what} {name!r}: expected module:object, or file.py:object")
    where, attribute = match["where"], match["attribute"]
    file = _file_of(where)
    found: Any = _loaded(where, lambda: _from_file(file) if file else _from_path(where), f"{what} {name!r}")
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise BadInput(f"{what} {name!r}: {where} has no {attribute}")
        found = getattr(found, part)
    return found


def is_own(name: str) -> bool:
    """Whether `name` is an object of the user's, and no name of a registry."""
    return OWN.fullmatch(name) is not None


def anchored(name: str) -> str:
    """`name` such that it means the same object from every folder: a file here, or a module that is a file here, by
    its whole path. Other names, such as those of installed modules, stay as they are."""
    match = OWN.fullmatch(name)
    if match is None:
        return name
    file = _file_of(match["where"])
    return f"{file.absolute()}:{match['attribute']}" if file and file.is_file() else name


def made_by(found: Any, arguments: Mapping[str, Any]) -> str:
    """Why `found` cannot be called with these named arguments, in a few words; "" where it can."""
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # some built-in objects do not tell
        return ""
    try:
        signature.bind(**arguments)
    except TypeError as error:
        return f"{first_line(error)}; it takes {signature}"
    return ""


def takes(*positional: str, named: Sequence[str] = ()) -> Callable[[Any], str]:
    """A complaint (see `Registry`) about what is no function of these arguments.

    positional: names of the arguments that are given by place, for the message. named: those that are given by name.
    """
    form = f"({', '.join([*positional, *(['*', *named] if named else [])])})"

    def complaint(found: Any) -> str:
        if not callable(found):
            return f"expected a function of {form}, got {type(found).__name__}"
        try:
            signature = inspect.signature(found)
            signature.bind(*positional, **dict.fromkeys(named))
        except TypeError:
            return f"expected a function of {form}, got one of {signature}"
        except ValueError:  # some built-in functions do not tell
            return ""
        return ""

    return complaint


def origin(name: str, found: Any) -> dict[str, str]:
    """Where an object of the user's comes from, for the record: its name, and in "source" the SHA-256 of the file that
    the name points to and, behind a "+", of the one in which the object stands, where that is another."""
    digests = dict.fromkeys(map(file_digest, _files_of(name, found)))
    return {"object": name} | ({"source": "+".join(digests)} if digests else {})


def code_digest(name: str) -> str:
    """The "source" of what `name` means, as `origin` has it; "" without a file. Raises BadInput as `load_object`."""
    return origin(name, load_object(name)).get("source", "")


def _files_of(name: str, found: Any) -> list[Path]:
    """The files of an object of the user's, none of choreo's own: an object may be of one of choreo's classes."""
    where = name.rpartition(":")[0]
    named = _file_of(where) or getattr(sys.modules.get(where), "__file__", None)
    made = found if inspect.isclass(found) or inspect.isroutine(found) else type(found)
    try:
        stands = inspect.getsourcefile(made)
    except TypeError:
        stands = None
    files = [Path(file).resolve() for file in (named, stands) if file]
    return [file for file in files if file.is_file() and Path(__file__).parent not in file.parents]


def file_digest(file: Path) -> str:
    """SHA-256 of a file of the user's, as it was when it was imported: what counts is what runs."""
    return _SOURCES.get(str(file.resolve())) or sha256(file.read_bytes()).hexdigest()


def discover(package: str, attribute: str, *, folders: bool = False) -> dict[str, Any]:
    """What every module of `package` gives in its mapping `attribute`, joined; modules without one give nothing.

    A file in the package is all that it takes to add to it. folders: only packages inside it are looked at.
    """
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if module.ispkg or not folders:
            found |= getattr(importlib.import_module(f"{package}.{module.name}"), attribute, {})
    return found


def _loaded(where: str, load: Callable[[], ModuleType], named: str) -> ModuleType:
    """What `load` imports from `where`. Raises BadInput, which begins with `named`, where that fails."""
    try:
        return load()
    except BadInput:  # it says itself what it needs
        raise
    except (Exception, SystemExit) as error:  # the user's module may raise anything while it is imported
        reason, kind = first_line(error), type(error).__name__
        if not isinstance(error, _NoFile) and not reason.startswith(kind):
            reason = f"{kind}: {reason}"
        raise BadInput(f"{named}: {where} cannot be imported: {reason}{_line_in(error, where)}") from error


_IMPORTING = threading.RLock()
_SOURCES: dict[str, str] = {}  # by file of the user's: the SHA-256 of what was imported


class _NoFile(Exception):
    pass


def _file_of(where: str) -> Path | None:
    """The file that is meant by what stands before the colon: itself, or a module of one file here, which comes before
    an installed one of its name. None: Python finds the module by its name."""
    if where.endswith(".py"):
        return Path(where)
    here = Path(f"{where}.py")
    return here if here.is_file() else None


def _from_path(module: str) -> ModuleType:
    """A module that Python can import, or a package that lies in the folder in which the command runs."""
    _importable(Path.cwd())
    return importlib.import_module(module)


def _from_file(file: Path) -> ModuleType:
    """The module in `file`, imported once however often it is named. It may import what lies beside it.

    Its name follows from its path, so that another process that imports the same file finds the same module.
    """
    path = str(file.resolve())
    name = f"choreo_user_{file.stem}_{blake2b(path.encode(), digest_size=8).hexdigest()}"
    with _IMPORTING:  # another thread would get a module that is half imported
        return sys.modules[name] if name in sys.modules else _executed(name, path)


def _executed(name: str, path: str) -> ModuleType:
    file = Path(path)
    spec = util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not file.is_file():
        raise _NoFile("there is no such file")
    _importable(file.parent)
    _SOURCES[path] = sha256(file.read_bytes()).hexdigest()
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _importable(folder: Path) -> None:
    """Modules in `folder` can be imported from now on. It comes last, so that it hides nothing."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _line_in(error: BaseException, where: str) -> str:
    """The last line of the user's file that was running when `error` was raised; "" where it was not reached."""
    trace, line = error.__traceback__, 0
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename).name in (Path(where).name, f"{where.rpartition('.')[2]}.py"):
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" (line {line})" if line else ""
