"""Prompts by a trained attacker (`choreo train attacker`), which the user names as the writer."""

from __future__ import annotations

from dataclasses import replace

from choreo.attacks.base import Case, WriterQuestion
from choreo.types import Prompt


def by_policy(case: Case) -> WriterQuestion:
    """The prompt itself is all that the attacker is asked; it writes another with every try."""

    def read(reply: str) -> Prompt | None:
        return replace(case.prompt, text=reply.strip(), family="trained") if reply.strip() else None

    return WriterQuestion(case.prompt.text, read)


ATTACKS = {"trained": by_policy}
