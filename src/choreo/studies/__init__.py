"""Studies: questions that take many runs to answer. Every module of this package is one; `choreo study NAME` runs it.

A user's own study is a file, `choreo study mine.py` (docs/your-study.md). To add a study to choreo, add a module here.
The first line of its docstring is "`choreo study NAME`: " and what it answers, with hyphens in NAME for underscores.

A study defines `run(study: Study) -> str`, which trains and measures what is missing, writes the pages with
`Study.write`, and returns the verdicts. `SEEDS`, where it has them, are those that it was registered with
(docs/studies/registered.md); `SETTINGS` hold for all its runs, unless --set says otherwise. What studies share is in
`shared`; the studies on SWARM are in `swarm`.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from choreo.errors import BadInput
from choreo.registry import load_module
from choreo.studies.shared import discovery


def questions() -> dict[str, str]:
    """What each study answers, by its name. Imports none of them."""
    return discovery.questions(__path__)


def load(name: str) -> ModuleType:
    """The module of a study by its name, or of a user's own in FILE.py. Raises BadInput where there is none."""
    if name.endswith(".py"):
        module = load_module(Path(name), "study")
        if not callable(getattr(module, "run", None)):
            raise BadInput(f"study {name}: has no function run(study)")
        return module
    try:
        return discovery.load(__name__, name)
    except ValueError as error:
        raise BadInput(f"{error}, or FILE.py of your own") from None
