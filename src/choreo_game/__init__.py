"""The plugin `choreo-game` of verifiers, which finds an environment as an importable module of the same name."""

from choreo.integrations.verifiers_env import GameEnv, GameHarness, GameTaskset

__all__ = ["GameEnv", "GameHarness", "GameTaskset"]
