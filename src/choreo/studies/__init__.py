"""Studies: questions that take many runs to answer. Every module of this package is one; `choreo study NAME` runs it.

To add a study, add a module here. The first line of its docstring is "`choreo study NAME`: " and what it answers, with
hyphens in NAME for underscores. It defines `run(study: Study) -> str`, which trains and measures what is missing,
writes the pages with `Study.write`, and returns the verdicts. `SEEDS`, where a study has them, are those that it was
registered with (docs/studies/registered.md); `SETTINGS` hold for all its runs, unless --set says otherwise. What
studies share is in `shared`; the studies on SWARM are in `swarm`.
"""

from __future__ import annotations

from types import ModuleType

from choreo.studies.shared import discovery


def questions() -> dict[str, str]:
    """What each study answers, by its name. Imports none of them."""
    return discovery.questions(__path__)


def load(name: str) -> ModuleType:
    """The module of a study. Raises ValueError where there is none of this name."""
    return discovery.load(__name__, name)
