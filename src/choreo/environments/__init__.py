"""Environments: where prompts come from, and who knows the right answers. Each is a folder here, or a user's own.

A folder's `__init__` says its name and where it stands: ENVIRONMENTS = {"name": "module:object"}.
"""

from choreo.registry import discover

ENVIRONMENTS: dict[str, str] = discover(__name__, "ENVIRONMENTS", folders=True)
