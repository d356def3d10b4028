"""Prompts by a trained attacker (`choreo train attacker`), which the user names as the writer."""

from __future__ import annotations

from choreo.attacks.base import Case, WriterQuestion
from choreo.methods.rewriting.words import rewritten


def by_policy(case: Case) -> WriterQuestion:
    """The prompt itself is all that the attacker is asked; it writes another with every try."""
    return WriterQuestion(case.prompt.text, lambda reply: rewritten(case.prompt, reply))


ATTACKS = {"trained": by_policy}
