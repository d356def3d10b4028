"""What passes a run on to the trackers that its recipe names."""

from __future__ import annotations

import secrets

from choreo import parallel
from choreo.runs.folder import Run
from choreo.trackers.base import Tracked, Tracking, require_trackers


def tracking(run: Run) -> list[Tracking]:
    """What passes the run on to the trackers that its recipe names. Raises BadInput where a library is missing.

    The run's id is noted in run.json, so that after a resume the tracker's run is the same.
    """
    track = run.recipe.track
    if not track.to:
        return []
    parallel.first(lambda: require_trackers(track.to))
    if "tracked" not in run.info:
        run.note(tracked=secrets.token_hex(6))
    recipe = run.recipe.model_dump(mode="json")
    told = Tracked(track.project, run.path.name, run.info["tracked"], run.path / "trackers", recipe, step=1)
    return [Tracking(track.to, track.episodes_every, told)]
