"""Prompts under system messages of callers: which prompts of a step are given one, and what is measured under others.

A message only comes to stand before a prompt here (`Prompt.under`), as in the server. What a context is made of is
for `agents.local.context_of` alone, wherever the pair plays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from choreo.data.system_messages import SystemMessage, load_system_messages
from choreo.errors import BadInput
from choreo.methods.waltz.chance import uniform
from choreo.methods.waltz.figures import figures_of_part
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.types import AGAIN, Episode, Prompt


def trained_messages(recipe: WaltzRecipe) -> list[SystemMessage]:
    """The system messages to train under; none where the recipe names no file. Raises BadInput."""
    return load_system_messages(file).rows if (file := recipe.system_messages.train) else []


def heldout_messages(recipe: WaltzRecipe) -> list[SystemMessage]:
    """The system messages to measure under; none where the recipe names no file. Raises BadInput."""
    return load_system_messages(file).rows if (file := recipe.system_messages.heldout) else []


def check_messages(recipe: WaltzRecipe, prompts: Sequence[Prompt], has_room: Callable[[Prompt], bool]) -> None:
    """Raises BadInput for a training message under which none of the training prompts has room, and for a held-out one
    that is trained on: given to prompts, or of their own."""
    settings = recipe.system_messages
    for message in trained_messages(recipe):
        if not any(has_room(prompt.under(message.text)) for prompt in prompts):
            raise BadInput(f"{settings.train}:{message.line}: content: no training prompt has room under this message")
    check_apart(recipe)
    own = {_words(prompt.turns[0][1]) for prompt in prompts if prompt.told}
    for message in heldout_messages(recipe):
        if _words(message.text) in own:
            raise BadInput(f"{settings.heldout}:{message.line}: is also that of a training prompt")


def check_apart(recipe: WaltzRecipe) -> None:
    """Raises BadInput for a held-out message that is in the file of those to train under too."""
    settings = recipe.system_messages
    lines = {_words(message.text): message.line for message in trained_messages(recipe)}
    for message in heldout_messages(recipe):
        if (line := lines.get(_words(message.text))) is not None:
            raise BadInput(f"{settings.heldout}:{message.line}: is also trained on ({settings.train}:{line})")


def under_some(
    batch: Sequence[tuple[Prompt, int]],
    messages: Sequence[SystemMessage],
    share: float,
    key: tuple[int | str, ...],
    has_room: Callable[[Prompt], bool],
) -> list[tuple[Prompt, int]]:
    """The (prompt, sample index) of a batch, each prompt under any of `messages` with probability `share`, drawn by
    (key, prompt id): all samples of a prompt have the same, whatever else is in the batch.

    A prompt with a system message of its own keeps it. One that has no room under what was drawn stays as it is.
    """

    def given(prompt: Prompt) -> Prompt:
        if not messages or prompt.told or uniform(*key, prompt.id) >= share:
            return prompt
        told = prompt.under(messages[int(uniform(*key, prompt.id, "which") * len(messages))].text)
        return told if has_room(told) else prompt

    found = {prompt.id: given(prompt) for prompt, _ in batch}
    return [(found[prompt.id], sample) for prompt, sample in batch]


def once_more(prompts: Sequence[Prompt], messages: Sequence[SystemMessage]) -> list[Prompt]:
    """The prompts once more, each under one of `messages`, reported under a suite of its own; without those that have
    a system message already. Which one follows from the prompt's id alone, so that runs can be compared by prompt."""
    if not messages:
        return []
    plain = [prompt for prompt in prompts if not prompt.told]
    chosen = [messages[int(uniform("heldout system message", prompt.id) * len(messages))] for prompt in plain]
    return [
        replace(prompt.under(message.text), id=f"{prompt.id}+system-{message.line}", suite=f"{prompt.suite}{AGAIN}")
        for prompt, message in zip(plain, chosen, strict=True)
    ]


def told_figures(episodes: Sequence[Episode[Any]]) -> dict[str, float]:
    """`figures_of_part` of a step's judged games under a system message."""
    return figures_of_part("system_messages", [game for game in episodes if game.prompt.told], episodes)


def digest_of(messages: Sequence[SystemMessage]) -> str:
    """16 hex digits that change when any of the messages does, or their order."""
    return blake2b(repr([message.text for message in messages]).encode(), digest_size=8).hexdigest()


def _words(text: str) -> str:
    return " ".join(text.casefold().split())
