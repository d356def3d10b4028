"""Texts for the card of an exported agent that are the same for every method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from choreo.config.common import MICROWORLD
from choreo.config.prompts import Prompts, Source
from choreo.config.recipe import Recipe


class CardUsage(NamedTuple):
    """Python for a card: `lines` make `messages`, each with "role" and "content", where {prompt} and {answer} stand for
    what is asked. part: of `Chat.messages`, "answer" or "review". tokens: an expression for the most new tokens.
    imports: of the standard library, that the lines take."""

    part: str
    lines: tuple[str, ...]
    tokens: str
    imports: tuple[str, ...] = ()


def learnt_from(recipe: Recipe, info: Mapping[str, Any]) -> str:
    """For a method that learns from a judge's verdicts on its training prompts."""
    counts, heldout = info.get("prompts", {}), recipe.prompts.heldout
    train = recipe.prompts.train if isinstance(recipe.prompts, Prompts) else {}
    if heldout:
        measured = of_files(heldout, counts.get("heldout"))
    elif train:
        measured = "those of their prompts that were kept out of training"
    else:
        measured = "prompts that are held out there"
    where = f"on {of_files(train, counts.get('train'))}" if train else f"in {environment(recipe)}"
    judge = judge_of(recipe, info)
    who = f"The gold judge `{gold_of(recipe, info)}`, which gave no reward," if recipe.gold else "The same judge"
    return f"It learnt {where}, by the verdicts of {judge}. {who} measured it, on {measured}."


def environment(recipe: Recipe) -> str:
    """Where the training prompts of `recipe` come from, in words of a card."""
    if recipe.environment != MICROWORLD:
        return f"the environment `{recipe.environment.rpartition('/')[2]}`"
    return f"choreo's microworld, a small generated language, on prompts of split {recipe.world.split_seed}"


def of_files(files: Mapping[str, Source], counts: Mapping[str, int] | None) -> str:
    """Prompts by the names of their files. counts: how many there are, by suite, where the run has noted it."""
    many = f"{sum(counts.values())} prompts" if counts else "prompts"
    return f"{many} from {', '.join(f'`{Path(source.file).name}`' for source in files.values())}"


def gold_of(recipe: Recipe, info: Mapping[str, Any]) -> str:
    """The name of the gold judge. info: what run.json holds."""
    assert recipe.gold is not None, "the recipe names no gold judge"
    return str(info.get("gold", {}).get("judge", recipe.gold.kind))


def judge_of(recipe: Recipe, info: Mapping[str, Any]) -> str:
    """The judge in words. info: what run.json holds."""
    if recipe.judge.kind == "exact":
        return f"the {'microworld' if recipe.environment == MICROWORLD else 'environment'}'s exact judge"
    name = info.get("judge", {}).get("judge", recipe.judge.kind)
    return f"the judge `{name}`, which can err"
