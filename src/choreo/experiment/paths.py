"""The paths of a recipe as its run keeps them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from choreo import config
from choreo.errors import BadInput
from choreo.files import columns, shipped, toml, utf8
from choreo.judges.trained.folder import JUDGE_FILE
from choreo.models.resolve import BASES, is_here
from choreo.registry import anchored, code_digest, is_own

# The settings of a recipe that may name a part of the user's own, as file.py:object.
PARTS = {"method", "backend", "environment", "estimator", "kind", "format", "conversation", "feedback"}
# Settings that a user's own class is called with. What they mean is for the class to say.
OPTIONS = {"options", "environment_options"}
# The settings that name files or runs, those that may name the folder of a model, and a file with a template.
FILES = {"file", "wrap", "weights", "cache", "gold.labels", "warmup.run", "target"}
FILES |= {"system_messages.train", "system_messages.heldout"}
TEMPLATES = {"template", "feedback_template", "student_template"}  # a file, or the name of one that the tokenizer has
MODELS = {"base", "feedback_base", "student", "teachers", "model"}


def code_of(recipe: config.Recipe) -> dict[str, str]:
    """The digest of the code of every part of the user's own that a recipe names (`code_digest`), by its name."""
    settings = toml.leaves(recipe.model_dump()).items()
    named = {value for keys, value in settings if keys[-1] in PARTS and OPTIONS.isdisjoint(keys)}
    return {name: code_digest(name) for name in sorted(filter(is_own, named))}


def rooted(recipe: config.Recipe) -> config.Recipe:
    """The recipe with absolute paths, wherever it names files and folders that are here: its run can then be resumed,
    measured, served and exported from anywhere. Shipped bases and files, and models of the hub or a server, keep their
    names.
    [judge.options] and [environment_options] stay as they are: their paths are relative to where the command runs."""

    def local(model: str) -> bool:
        here = is_here(model) or (Path(model) / JUDGE_FILE).is_file()
        return not (BASES / model / "config.json").is_file() and here

    def template(value: str) -> bool:
        """A file that is here, or what can be nothing else. The name of one that the tokenizer has may have a dot."""
        return Path(value).is_file() or Path(value).name != value or value.endswith(".jinja")

    def walk(value: Any, key: str = "", above: str = "") -> Any:
        if key in OPTIONS:
            return value
        if isinstance(value, dict):  # of a judge with a url, and of a backend, the model is as the server names it
            return {
                k: inner if k == "model" and (value.get("url") or key == "engine") else walk(inner, k, key)
                for k, inner in value.items()
            }
        if isinstance(value, tuple):
            return tuple(walk(inner, key) for inner in value)
        a_file = key in FILES or f"{above}.{key}" in FILES
        if (a_file or key in TEMPLATES) and (shipped.is_shipped(value) or columns.is_on_hub(value)):
            return value
        if value and (a_file or (key in MODELS and local(value)) or (key in TEMPLATES and template(value))):
            return str(Path(value).absolute())
        return anchored(value) if key in PARTS and isinstance(value, str) else value

    if not utf8.is_text(here := str(Path.cwd())):
        raise BadInput(f"{utf8.printable(here)}: a run cannot be made in a folder whose name is not UTF-8")

    return type(recipe).model_validate(walk(recipe.model_dump()))
