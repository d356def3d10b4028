"""What a WaltzRL step computes, for `choreo plan`."""

from __future__ import annotations

import math
from collections.abc import Sequence

from choreo.methods.passes import Lengths, Pass
from choreo.methods.waltz.cotraining.settings import ATTACKER
from choreo.methods.waltz.recipe import WaltzRecipe, learners, stage1_steps
from choreo.types import CONVERSATION, FEEDBACK

PART = 32  # games of a warm start that are one batch


def agents_on(roles: Sequence[str]) -> str:
    """The agents on one model, in words."""
    return "both" if len(roles) > 1 else roles[0]


def waltz_passes(recipe: WaltzRecipe, lengths: Lengths) -> list[Pass]:
    """The passes of the warm start and of all steps, where every review asks for a revision.

    An answer has the prompt before it; a review the prompt and the answer; the revision in round t the prompt and t
    rounds of answer and feedback. Each learning agent has one sample a game: the first answer and the last revision
    with probability ½ each, and any of the reviews. π_ref is scored where there is a KL, π_old where a server samples.
    Stage 1, in which the feedback agent learns alone, is taken to last as long as it may.
    """
    protocol, learning = recipe.protocol, recipe.learning
    on = {role: agents_on(roles) for roles in recipe.model.shared().values() for role in roles}
    games, steps, written = learning.prompts * learning.samples, learning.steps, lengths.written
    answer, review = float(protocol.answer_tokens), float(protocol.feedback_tokens)
    first = lengths.answer + lengths.prompt
    a_round = (answer + review) * written + lengths.revise
    reviewed = lengths.review + lengths.prompt + answer * written
    last = first + protocol.rounds * a_round

    found = []

    def played(games: float, times: float, distinct: float) -> None:
        """`times` batches of whole games."""
        found.append(Pass(on[CONVERSATION], "sample", games, first, answer, times, distinct, written))
        for t in range(1, protocol.rounds + 1):
            found.append(Pass(on[FEEDBACK], "sample", games, reviewed, review, times, None, written))
            found.append(Pass(on[CONVERSATION], "sample", games, first + t * a_round, answer, times, None, written))

    played(games, steps, learning.prompts)
    contexts = {CONVERSATION: (first + last) / 2, FEEDBACK: reviewed}
    scored = (learning.beta > 0) + (not recipe.engine.local)
    for role, times in learning_steps(recipe).items():
        if role == FEEDBACK and not protocol.rounds:
            continue
        new = answer if role == CONVERSATION else review
        if scored:
            found.append(Pass(on[role], "score", games, contexts[role], new, times * scored, None, written))
        found.append(Pass(on[role], "learn", games, contexts[role], new, times * learning.epochs, None, written))
    warmup = recipe.warmup
    if warmup.on and not warmup.run:
        updates = warmup.epochs * math.ceil(warmup.rows / warmup.batch)
        found.append(Pass(on[FEEDBACK], "learn", warmup.batch, reviewed, review, updates, None, written))
        if warmup.own:
            found.append(Pass(on[CONVERSATION], "sample", PART, first, answer, warmup.own / PART, None, written))
    if attack := recipe.attack:
        updates, tries = attack_updates(recipe), attack.intents * attack.samples
        words, rewritten = float(attack.prompt_tokens), attack.share * learning.prompts
        played(tries, updates, tries)
        found.append(Pass(ATTACKER, "sample", tries, first, words, updates, attack.intents, written))
        found.append(Pass(ATTACKER, "sample", rewritten, first, words, steps, None, written))
        found.append(Pass(ATTACKER, "learn", tries, first, words, updates, None, written))
        found.append(Pass(ATTACKER, "learn", attack.warmup_rows, first, words, attack.warmup_steps, None, written))
    return found


def attack_updates(recipe: WaltzRecipe) -> int:
    """How many updates the attacker beside the pair makes after its warm start; none where there is no attacker."""
    return recipe.attack.attacker_steps * recipe.attack.rounds(recipe.learning.steps) if recipe.attack else 0


def learning_steps(recipe: WaltzRecipe) -> dict[str, int]:
    """In how many steps each agent learns."""
    steps = recipe.learning.steps
    alone = stage1_steps(recipe) if recipe.stages.train == "both" else 0
    return {role: steps - alone * (role == CONVERSATION) for role in learners(recipe.stages, stage=2)}
