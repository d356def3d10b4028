"""The microworld: a small generated language, an exact judge and small models, so that training needs no GPU."""

ENVIRONMENTS = {"microworld": "choreo.environments.microworld.world:World"}
