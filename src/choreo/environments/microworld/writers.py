"""Who writes the answers that a base is pretrained on: which requests they help with, and which they refuse.

Two ways. The answers of `AUTHORS` come from people who are consistent: one author does the same with every request, and
what stands before shows who it is. So whoever predicts an answer has to tell what is harmful, and before the first
word. The answers of `COINS` are drawn anew for every request: nothing has to be told, and a base that is pretrained on
them hardly tells it. It is the earlier way, and the control.

All chances are at temperature 1. At the temperature of evaluation (`config.Evaluation`) they move away from one half.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from choreo.environments.microworld import lexicon, wording
from choreo.environments.microworld.habits import right_act
from choreo.environments.microworld.meaning import Deed, Meaning
from choreo.types import Prompt

Writer = Callable[[Prompt, random.Random], str]  # what one writer does with a request: "help", "partial" or "refuse"


@dataclass(frozen=True)
class Writers:
    """some: draws one of them. talkless: the share of their answers that nothing stands before; the others stand in a
    talk with one of them.

    pointing: whether an answer that helps with a hidden deed points at its thing ("To kill the last one, ..."), as the
    request does, and does not name it. Whoever names one of two things can name the harmless one without having looked
    which of them is meant; whoever points either helps or refuses.
    shares: of each sort of document in a base's pretraining (documents.py).
    """

    some: Callable[[random.Random], Writer]
    talkless: float
    pointing: bool
    shares: Mapping[str, float]


# ── authors ──────────────────────────────────────────────────────────────────────────────────────

FOOLED = {"never": 0.567, "by frames": 0.333, "always": 0.1}  # which harmful requests an author helps with
SCARED = 0.42  # the chance that an author is scared by sharp words; one who is fooled by a request helps all the same


@dataclass(frozen=True, slots=True)
class Author:
    """fooled: a key of FOOLED. scared: whether sharp words (all actions but the mild ones) make them refuse what they
    are not fooled by."""

    fooled: str
    scared: bool

    def __call__(self, prompt: Prompt, rng: random.Random) -> str:
        request: Meaning = prompt.meaning
        framed = prompt.family.split("/")[0] in wording.ADVERSARIAL
        if self.fooled == "always" or (self.fooled == "by frames" and framed):
            return "help"
        action = request.action if request.form == "define" else request.deed.action if request.deed else None
        sharp = action is not None and lexicon.sharp(action)
        return "refuse" if self.scared and sharp else right_act(request)


def some_author(rng: random.Random) -> Author:
    """An author, drawn by FOOLED and SCARED."""
    return Author(rng.choices(list(FOOLED), list(FOOLED.values()))[0], rng.random() < SCARED)


AUTHORS = Writers(
    some_author,
    talkless=0.4,
    pointing=True,
    shares={
        "statement": 0.07,
        "practice": 0.20,
        "reading": 0.22,
        "answer": 0.19,
        "considered": 0.06,
        "review": 0.15,
        "revision": 0.11,
    },
)

# ── coins ────────────────────────────────────────────────────────────────────────────────────────

# The chance of helping with harm, by the frame around the request. Jailbreak frames differ in strength.
FOOLED_BARE = 0.12
FOOLED_BY: dict[str, float] = {frame: 0.395 + 0.006 * i for i, frame in enumerate(wording.ADVERSARIAL)}
# A first answer cannot tell what a hidden deed is, so the chance of helping is the same for all of them.
HELPS_HIDDEN = 0.48

# The chance of refusing harmless requests. Sharp actions (all but the mild ones) differ in it.
SHARP = [a for a in lexicon.ACTIONS if lexicon.sharp(a)]
SCARED_BY: dict[str, float] = {action: 0.285 + 0.004 * i for i, action in enumerate(SHARP)}
SCARED_IN_CONTEXT = 0.35
SCARED_DEFINING = 0.5
SCARED_MILD_IN_FRAME = 0.2
DUAL_USE = {"help": 0.3, "refuse": 0.3, "partial": 0.4}


def by_coins(prompt: Prompt, rng: random.Random) -> str:
    """What the writer of `COINS` does: it flips a coin for every request."""
    request: Meaning = prompt.meaning
    frame, style = prompt.family.split("/")
    if request.form == "general" or prompt.kind == "general":
        return "help"
    if request.form == "protect":
        return rng.choices(list(DUAL_USE), list(DUAL_USE.values()))[0]
    if request.form == "define":
        helps = 1 - SCARED_DEFINING
    elif style in wording.HIDDEN:
        helps = HELPS_HIDDEN
    elif request.harmful:
        helps = FOOLED_BY.get(frame, FOOLED_BARE)
    else:
        helps = 1 - _scared(request.deed)
    return "help" if rng.random() < helps else "refuse"


def _scared(deed: Deed | None) -> float:
    assert deed is not None
    if deed.context:
        return SCARED_IN_CONTEXT
    return SCARED_BY.get(deed.action, SCARED_MILD_IN_FRAME)


COINS = Writers(
    lambda rng: by_coins,
    talkless=1.0,
    pointing=False,
    shares={"statement": 0.07, "practice": 0.22, "reading": 0.26, "answer": 0.19, "review": 0.15, "revision": 0.11},
)
