"""Which rows a judge is trained on and which it is measured on: held-out prompts, and a model or an attack left out."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from choreo.data.answers import LabelledAnswer
from choreo.errors import BadInput

PROMPTS, MODEL, FAMILY = "unseen prompts", "and unseen model", "and unseen attack family"


@dataclass(frozen=True, slots=True)
class Trial:
    """One training, and what it is measured on. way: what the judge has not seen. train, test: indices of rows."""

    name: str
    way: str
    train: tuple[int, ...]
    test: tuple[int, ...]


def trials(
    rows: Sequence[LabelledAnswer], holdout: float, left_out: Sequence[str] = (), every_fold: bool = False
) -> list[Trial]:
    """The trainings of a judge. The first one makes the judge that is written.

    holdout: the share of groups (prompts, behaviours) that is held out, between 0 and ½.
    left_out: models and attack families; each is left out of one more training, and measured on its held-out prompts.
    every_fold: every other share of that size is held out of one more training too, so that all rows are measured.

    Raises BadInput for a name that no row has, or a training with nothing to learn from or to measure.
    """
    models, methods = {row.model for row in rows} - {""}, {row.method for row in rows} - {""}
    for name in left_out:
        if name not in models | methods:
            raise BadInput(
                f"--leave-out {name}: no such model or attack; there are {', '.join(sorted(models | methods))}"
            )
    folds = round(1 / holdout)
    fold = [fold_of(row.group, folds) for row in rows]
    measured = range(folds) if every_fold else range(1)
    found = [_trial(f"fold-{k}", PROMPTS, rows, fold, k, "") for k in measured]
    for name in dict.fromkeys(left_out):
        way, slug = MODEL if name in models else FAMILY, _slug(name)
        found += [_trial(f"without-{slug}-{k}", way, rows, fold, k, name) for k in measured]
    return [trial for trial in found if trial.test or trial is found[0]]


def fold_of(group: str, folds: int) -> int:
    """By the text of the group alone, so that no row changes its fold when others are added or removed."""
    return zlib.crc32(group.encode()) % folds


def _slug(name: str) -> str:
    """A name for a folder; names that differ in other characters than letters and digits have different ones."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", name)
    return plain if plain == name else f"{plain}-{zlib.crc32(name.encode()):08x}"


def _trial(name: str, way: str, rows: Sequence[LabelledAnswer], fold: Sequence[int], k: int, without: str) -> Trial:
    known = [i for i, row in enumerate(rows) if row.refusal is not None or row.harm is not None]
    train = tuple(i for i in known if fold[i] != k and without not in (rows[i].model or None, rows[i].method or None))
    test = tuple(i for i in known if fold[i] == k and (not without or without in (rows[i].model, rows[i].method)))
    if not train:
        raise BadInput(f"nothing is left to train on ({way}{f', {without}' if without else ''}): give more rows")
    return Trial(name, way, train, test)
