"""Which prompts of a step the attacker writes anew, and which attacker does: pure functions over plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence

from choreo.methods.waltz.chance import uniform
from choreo.types import Prompt

ATTACKED = ("harmful", "benign")  # kinds of prompts


def attacked(prompts: Sequence[Prompt], share: float, key: tuple[int | str, ...]) -> list[Prompt]:
    """Those of a step's prompts that the attacker writes anew: of harmful and of benign ones each the share, rounded,
    drawn by (key, prompt id), whatever the order."""
    found = []
    for kind in ATTACKED:
        own = [prompt for prompt in prompts if prompt.kind == kind]
        ranked = sorted(own, key=lambda prompt: uniform(*key, prompt.id))
        found += ranked[: math.floor(share * len(own) + 0.5)]
    return found


def author(authors: Sequence[str], prompt: Prompt, key: tuple[int | str, ...]) -> str:
    """Which of the attackers, now and past, writes the prompt anew: each as likely as the others."""
    return authors[int(uniform(*key, prompt.id, "author") * len(authors))]
