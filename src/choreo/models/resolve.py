"""Finds the folder of a model by its name: a shipped base, a user's folder, or a model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from choreo.errors import BadInput, opening
from choreo.models import hub

BASES = Path(__file__).parent / "bases"


def base_folder(name: str, *, config_only: bool = False) -> Path:
    """The folder of the base `name`: a shipped base, a folder in Hugging Face format, or a model on the hub.

    config_only: of a model on the hub, only the configuration is needed. Raises BadInput where there is no such base,
    or where it is on the hub and cannot be downloaded.
    """
    with opening(repr(name), "is no name of a folder"):
        for folder in (BASES / name, Path(name)):
            if _is_there(folder / "config.json"):
                return folder
        used = _is_there(Path(name))
    if used:
        what = "a file" if Path(name).is_file() else "a folder without a config.json"
        raise BadInput(
            f"base {name!r}: is {what if Path(name).exists() else 'a link to nothing'}; expected a model in "
            "Hugging Face format"
        )
    if hub.is_name(name) and not Path(name).parent.is_dir():
        return hub.snapshot(name, config_only=config_only)
    shipped = ", ".join(sorted(p.name for p in BASES.glob("*") if p.is_dir()))
    raise BadInput(
        f"base {name!r}: neither a shipped one ({shipped}) nor a folder with a "
        "config.json (choreo world pretrain makes one), nor a model on the hub (owner/name)"
    )


def _is_there(path: Path) -> bool:
    """Whether anything has that name, also a broken link."""
    return path.exists() or path.is_symlink()
