"""Attacks, each in a file here, under its name in the file's ATTACKS.

An attack is a function from a `Case` to the prompt that is sent next (`choreo.attacks.base`). A user's own is named as
"mine.py:my_attack".
"""

from choreo.attacks.base import Attack
from choreo.registry import discover

ATTACKS: dict[str, Attack] = discover(__name__, "ATTACKS")
