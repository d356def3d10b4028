"""Studies on the SWARM simulator. Every module of this package is one; `choreo swarm study NAME` runs it.

To add a study, add a module here. The first line of its docstring is "`choreo swarm study NAME`: " and what it answers.
It defines `REPORT`, a `ReportText`, and `design(what, cache, progress) -> Design`, its arms and claims. The plan, the
runs, the verdicts and the pages are in `shared`, as for every other study.
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
