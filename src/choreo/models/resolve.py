"""Finds the folder of a model by its name: a shipped base, a user's folder or GGUF file, `smollm2`, or a model on the
Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from choreo.errors import BadInput, opening
from choreo.models import gguf, hub, smollm2
from choreo.models.model_folder import is_there

BASES = Path(__file__).parent / "bases"


def base_folder(name: str, *, config_only: bool = False, weights: bool = True) -> Path:
    """The folder of the base `name`: a shipped base, a folder in Hugging Face format, a GGUF file, `smollm2`, or a
    model on the hub.

    A GGUF file is converted into a folder of its own when it is opened for the first time. config_only: of a model on
    the hub, only the configuration is needed. weights: False where only the tokenizer and the configuration are needed;
    nothing is fetched or converted for more. Raises BadInput where there is no such base, or where it cannot be
    downloaded or converted.
    """
    with opening(repr(name), "is no name of a folder"):
        for folder in (BASES / name, Path(name)):
            if is_there(folder / "config.json"):
                return folder
        used, file = is_there(Path(name)), gguf.is_gguf(name) and Path(name).is_file()
    if not weights and (file or name == smollm2.NAME):
        raise BadInput(f"base {name!r}: is weights; name a folder with a tokenizer, or a model on the hub (owner/name)")
    if file:
        return gguf.converted(Path(name))
    if name == smollm2.NAME:
        return smollm2.folder()
    if used:
        what = "a file" if Path(name).is_file() else "a folder without a config.json"
        raise BadInput(
            f"base {name!r}: is {what if Path(name).exists() else 'a link to nothing'}; expected a model in "
            "Hugging Face format, or a GGUF file (.gguf)"
        )
    if gguf.is_gguf(name):
        raise BadInput(f"base {name!r}: no such file")
    if hub.is_name(name) and not Path(name).parent.is_dir():
        return hub.snapshot(name, config_only=config_only, weights=weights)
    shipped = ", ".join(sorted(p.name for p in BASES.glob("*") if p.is_dir()))
    raise BadInput(
        f"base {name!r}: neither a shipped one ({shipped}) nor {smollm2.NAME}, nor a folder with a "
        "config.json (choreo world pretrain makes one), nor a GGUF file, nor a model on the hub (owner/name)"
    )


def other_base(named: str, recorded: object) -> str:
    """What to say of a checkpoint that was trained on another base than `named`. recorded: the fingerprint of that.

    A shipped base may have had the name before: micro-llama of choreo 0.1 is coins-llama.
    """
    shipped = (folder.name for folder in sorted(BASES.glob("*")) if hub.fingerprint(folder) == recorded)
    known = next((f'; that one is {name} (model.base = "{name}" in its recipe.toml)' for name in shipped), "")
    return f"was trained on another base than {named} is now{known}"


def is_here(name: str) -> bool:
    """Whether `name` is a folder with a model, or a GGUF file, of the user's own."""
    return (Path(name) / "config.json").is_file() or (gguf.is_gguf(name) and Path(name).is_file())


def is_ours(name: str) -> bool:
    """Whether choreo itself brings the model `name`: a shipped base, or `smollm2`."""
    return (len(Path(name).parts) == 1 and (BASES / name).is_dir()) or (name == smollm2.NAME and not is_here(name))
