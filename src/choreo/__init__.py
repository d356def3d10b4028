"""choreo trains language-model agents to align each other."""

__version__ = "0.2.0"  # the only place; pyproject.toml reads it
