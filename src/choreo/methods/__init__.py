"""Training methods. Each has a folder here, or is a user's own; `choreo.methods.base` says what a method is."""

from choreo.methods.attacker.method import ATTACKER
from choreo.methods.macpo.method import MACPO
from choreo.methods.waltz.method import WALTZ

METHODS = {method.name: method for method in (WALTZ, MACPO, ATTACKER)}
