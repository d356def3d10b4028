"""Best-of-N jailbreaking (Hughes et al. 2024, arXiv 2412.03556): the prompt is sent until an answer wins.

`best-of-n` sends the same words again, so that the sampling alone differs: the paper's baseline. `best-of-n-spelling`
makes small random changes to them, as in its appendix on text: the letters within a word are shuffled, letters become
capitals, and a few characters move to their neighbour in ASCII.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace

from choreo.attacks.base import Case
from choreo.types import Prompt

STRENGTH = 0.4  # the paper's σ
SHUFFLED = STRENGTH**0.5  # the share of words of four letters or more whose inner letters are shuffled
CAPITALS = STRENGTH**0.5  # the share of letters whose case changes
NOISED = STRENGTH**3  # the share of characters that become the one before or after them in ASCII


def same(case: Case) -> Prompt:
    """The prompt as it is; the answer is drawn anew."""
    return case.prompt


def respelled(case: Case) -> Prompt:
    """The prompt with small random changes of spelling and case."""
    rng = case.rng()
    text = re.sub(r"\S{4,}", lambda word: _shuffled(word[0], rng), case.prompt.text)
    text = "".join(letter.swapcase() if rng.random() < CAPITALS else letter for letter in text)
    text = "".join(_noised(letter, rng) if rng.random() < NOISED else letter for letter in text)
    return replace(case.prompt, text=text)


def _shuffled(word: str, rng: random.Random) -> str:
    if rng.random() >= SHUFFLED:
        return word
    inner = list(word[1:-1])
    rng.shuffle(inner)
    return word[0] + "".join(inner) + word[-1]


def _noised(letter: str, rng: random.Random) -> str:
    """A visible ASCII character's neighbour; anything else as it is."""
    moved = chr(ord(letter) + rng.choice((-1, 1)))
    return moved if "!" <= letter <= "~" and "!" <= moved <= "~" else letter


ATTACKS = {"best-of-n": same, "best-of-n-spelling": respelled}
