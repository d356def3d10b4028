"""Training methods. Each has a folder here, or is a user's own; see `choreo.methods.base`."""

from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.waltz.recipe import WaltzRecipe

METHODS = {"waltz": WaltzRecipe, "macpo": MacpoRecipe}
