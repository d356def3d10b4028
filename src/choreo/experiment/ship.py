"""`python -m choreo.experiment.ship RUN NAME`: makes a finished run of a pair one that ships with choreo.

What is kept is what playing and measuring needs: the recipe, the figures, the dialogues that the report shows, and both
agents as they are after the last step, in half precision, without optimisers. The warm start is left out, so the
shipped pair has no `collaboration-warm` to be measured beside.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from choreo import config
from choreo.engine import checkpoint
from choreo.errors import BadInput
from choreo.files import durable
from choreo.methods.base import method_of
from choreo.runs.folder import Run, checkpoints
from choreo.runs.shipped import PAIRS

KEPT = ("summary.json", "dialogues.json")


def ship(run: str | Path, out: Path) -> Path:
    """Writes the run folder `out` from the finished run. Returns `out`.

    Raises BadInput where the run is not finished, is not of a pair, or something is at `out`.
    """
    held = Run.read(run)
    if not held.finished or not method_of(held.recipe).has_pair:
        raise BadInput(f"{held.path}: only a finished run of a pair can ship")
    if out.exists():
        raise BadInput(f"{out}: already exists")
    step, newest = max(checkpoints(held.path).items())
    saved = checkpoint.load(newest)
    agents = {name: {"agent": _halved(state["agent"])} for name, state in saved["agents"].items()}
    state = {"step": step, "base": saved["base"], "frames": saved["frames"], "agents": agents}
    checkpoint.save(out / "checkpoints" / newest.name, state)
    recipe = held.recipe.model_dump()
    recipe["warmup"] = {}
    durable.write_text(out / "recipe.toml", config.to_toml(config.make(recipe)))
    info = {name: held.info[name] for name in ("schema", "name", "method", "seeds", "versions", "started")}
    durable.write_json(out / "run.json", info)
    for name in KEPT:
        shutil.copyfile(held.path / name, out / name)
    return out


def _halved(agent: dict[str, Any]) -> dict[str, Any]:
    weights = {name: value.to(torch.float16) for name, value in agent["weights"].items()}
    return {"version": agent["version"], "weights": weights}


def command() -> int:
    parser = argparse.ArgumentParser(prog="python -m choreo.experiment.ship", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("name", metavar="NAME", help="what it is called: choreo serve NAME")
    args = parser.parse_args()
    try:
        print(ship(args.run, PAIRS / args.name))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command())
