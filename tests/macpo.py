"""MACPO at tiny size, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.trainer import train
from choreo.runs.folder import Run
from choreo.runs.progress import Progress

CLOCKS = {"seconds"}


def recipe(folder: Path, **sections) -> MacpoRecipe:
    settings = {
        "seed": 5,
        "ceiling": False,
        "world": {"train_prompts": 60, "heldout_prompts": 2, "reading": False},
        "agents": {"teachers": (str(folder), str(folder)), "student": str(folder), "rank": 2},
        "data": {"labels": 6, "prompts": 6},
        "tuning": {"epochs": 2, "batch": 3},
        "rounds": {"count": 1, "batch": 4},
        "writing": {"answer_tokens": 6},
    }
    merged = {
        name: {**settings.get(name, {}), **value} if isinstance(value, dict) else value
        for name, value in {**settings, **sections}.items()
    }
    return MacpoRecipe.model_validate(merged)


def run_through(made: MacpoRecipe, path: Path) -> MacpoAgents:
    with Run.create(path, made) as run, Progress() as progress:
        *_, (_, loaded) = train(made, run, progress)
    return loaded


def lines(path: Path) -> list[dict]:
    rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in CLOCKS} for row in rows]


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, list | tuple) else a == b
