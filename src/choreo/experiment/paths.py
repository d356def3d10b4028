"""The paths of a recipe as its run keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from choreo import config
from choreo.errors import BadInput
from choreo.files import utf8
from choreo.models.resolve import BASES

# The settings of a recipe that name files, those that may name the folder of a model, and a file with a template.
FILES = {"file", "wrap", "weights", "cache"}
TEMPLATES = {"template", "feedback_template"}  # a file, or the name of one that the tokenizer has
MODELS = {"base", "feedback_base", "student", "teachers", "model"}


def rooted(recipe: config.Recipe) -> config.Recipe:
    """The recipe with absolute paths, wherever it names files and folders that are here: its run can then be resumed,
    measured, served and exported from anywhere. Shipped bases, and models of the hub or a server, keep their names."""

    def local(model: str) -> bool:
        return not (BASES / model / "config.json").is_file() and (Path(model) / "config.json").is_file()

    def template(value: str) -> bool:
        """A file that is here, or what can be nothing else. The name of one that the tokenizer has may have a dot."""
        return Path(value).is_file() or Path(value).name != value or value.endswith(".jinja")

    def walk(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):  # of a judge with a url, the model is as its server names it
            return {k: inner if k == "model" and value.get("url") else walk(inner, k) for k, inner in value.items()}
        if isinstance(value, tuple):
            return tuple(walk(inner, key) for inner in value)
        if value and (key in FILES or (key in MODELS and local(value)) or (key in TEMPLATES and template(value))):
            return str(Path(value).absolute())
        return value

    def method(value: str) -> str:
        """The method of the recipe, `file.py:NAME` where it is a user's own."""
        file, colon, name = value.rpartition(":")
        return f"{Path(file).absolute()}:{name}" if colon and file.endswith(".py") else value

    if not utf8.is_text(here := str(Path.cwd())):
        raise BadInput(f"{utf8.shown(here)}: a run cannot be made in a folder whose name is not UTF-8")

    return type(recipe).model_validate(walk(recipe.model_dump() | {"method": method(recipe.method)}))
