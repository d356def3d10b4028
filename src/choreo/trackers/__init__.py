"""Trackers: where a run's figures are shown beside those of other runs. Each is a file here.

A file says the names of its trackers and where they stand, since their libraries are optional:
TRACKERS = {"name": "module:object"}. A user's own is a class as `choreo.trackers.base.Tracker` describes, and a recipe
names it: track.to = ["mine.py:MyTracker"].
"""

from choreo.registry import discover

TRACKERS: dict[str, str] = discover(__name__, "TRACKERS")
