"""Gives an empty environment the packages that a wheel asks for, as links to those that are installed here.

    python tests/linked_packages.py ENVIRONMENT WHEEL

`make package` installs the wheel into ENVIRONMENT afterwards, without an index. An environment made like this takes a
second; downloading PyTorch would take minutes. It has exactly what the wheel declares, with the dependencies of these
packages, so a dependency that the wheel forgot is missing there too.
"""

from __future__ import annotations

import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def requirements(wheel: Path) -> list[Requirement]:
    """What the wheel asks for, extras included; a requirement of an extra has a marker."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    return [Requirement(line) for line in lines]


def closure(wanted: list[Requirement]) -> dict[str, Distribution]:
    """The installed distributions that `wanted` needs here, and all that those need. Raises if one is missing."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    left = [(requirement, "") for requirement in wanted]
    while left:
        requirement, extra = left.pop()
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        try:
            package = distribution(requirement.name)
        except PackageNotFoundError:
            raise SystemExit(f"{requirement} is not installed: run make .venv/.installed-dev") from None
        for wants in ("", *requirement.extras):
            if (requirement.name.lower(), wants) not in seen:
                seen.add((requirement.name.lower(), wants))
                left += [(Requirement(line), wants) for line in package.requires or ()]
        found[package.name] = package
    return found


def link(packages: dict[str, Distribution], site: Path) -> None:
    """Links every top-level file and folder of `packages` into the folder `site`."""
    for package in packages.values():
        for top in {path.parts[0] for path in package.files or () if path.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(package.locate_file(top))).resolve())


if __name__ == "__main__":
    environment, wheel = Path(sys.argv[1]), Path(sys.argv[2])
    (site,) = environment.glob("lib/python*/site-packages")
    packages = closure(requirements(wheel))
    link(packages, site)
    print(f"{len(packages)} packages of {wheel.name} linked into {site}")
