"""`python -m choreo.experiment.ship RUN NAME`: makes a finished run of a pair one that ships with choreo.

What is kept is what playing and measuring needs: the recipe, the figures, the dialogues that the report shows, and both
agents as they are after the last step, in half precision, without optimisers, with a card. The warm start is left out,
so the shipped pair has no `collaboration-warm` to be measured beside. It plays in float32, whatever it was trained in.
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
from choreo.experiment.export import figures, licence_of, licence_terms, limits
from choreo.files import durable
from choreo.files.shipped import is_shipped
from choreo.methods.base import method_of
from choreo.runs.checkpoints import last_checkpoint
from choreo.runs.folder import Run
from choreo.runs.shipped import PAIRS

KEPT = ("summary.json", "dialogues.json")


def ship(run: str | Path, out: Path) -> Path:
    """Writes the run folder `out` from the finished run. Returns `out`.

    Raises BadInput where the run is not finished, is not of a pair, or something is at `out`.
    """
    held = Run.read(run)
    if not held.finished or not method_of(held.recipe).has_pair:
        raise BadInput(f"{held.path}: only a finished run of a pair can ship")
    if held.recipe.engine.remote:
        raise BadInput(f"{held.path}: its weights are on {held.recipe.engine.backend}, and none is here")
    if out.exists():
        raise BadInput(f"{out}: already exists")
    step, newest = last_checkpoint(held.path)
    saved = checkpoint.load(newest)
    agents = {name: {"agent": _halved(state["agent"])} for name, state in saved["agents"].items()}
    state = {"step": step, "base": saved["base"], "frames": saved["frames"], "agents": agents}
    checkpoint.save(out / "checkpoints" / newest.name, state)
    recipe = held.recipe.model_dump()
    recipe["warmup"] = {}
    recipe["model"]["dtype"] = "float32"  # many CPUs compute bfloat16 slowly
    for part in ("train", "heldout"):  # files of this machine's do not ship
        if not is_shipped(recipe.get("system_messages", {}).get(part, "")):
            recipe.get("system_messages", {})[part] = ""
    durable.write_text(out / "recipe.toml", config.to_toml(config.make(recipe)))
    info = {name: held.info[name] for name in ("schema", "name", "method", "seeds", "versions", "started")}
    info |= {name: held.info[name] for name in ("system_messages",) if name in held.info}
    durable.write_json(out / "run.json", info)
    for name in KEPT:
        shutil.copyfile(held.path / name, out / name)
    durable.write_text(out / "README.md", card(held, out.name, step))
    return out


def card(run: Run, name: str, step: int) -> str:
    """README.md of a shipped pair: what it is, how it was made, what it was measured to be worth, and its limits."""
    recipe, method = run.recipe, method_of(run.recipe)
    named = list(recipe.bases())
    sections = [
        f"# {name}: a conversation agent and a feedback agent",
        f"The agents of a run of {method.title or method.name} (arXiv {method.paper}) by choreo on "
        f"`{' and '.join(named)}`, as they were after step {step}: adapters of half precision in the checkpoint here. "
        "The feedback agent reviews every answer of the conversation agent, and what it does not pass is revised.",
        f"## Run it\n\n    choreo serve {name}\n    choreo eval {name}",
        "## How it was made\n\nEvery setting is in `recipe.toml`, but for the warm start, which left nothing here but "
        f"what it made of the agents. It was trained and measured in {recipe.weights().dtype}, "
        "before its adapters were rounded. " + method.learnt_from(recipe, run.info),
        "## What it was measured to be worth\n\n" + figures(run.path),
        "## Limits\n\n" + limits(recipe),
        "## Licence\n\n" + " ".join(dict.fromkeys(licence_terms(licence_of(base)) for base in named)),
    ]
    return "\n\n".join(sections) + "\n"


def _halved(agent: dict[str, Any]) -> dict[str, Any]:
    weights = {name: value.to(torch.float16) for name, value in agent["weights"].items()}
    return {"version": agent["version"], "weights": weights}


def command() -> int:
    parser = argparse.ArgumentParser(prog="python -m choreo.experiment.ship", description=__doc__)
    parser.add_argument("made", type=Path, metavar="RUN")
    parser.add_argument("name", metavar="NAME", help="what it is called: choreo serve NAME")
    args = parser.parse_args()
    try:
        print(ship(args.made, PAIRS / args.name))
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(command())
