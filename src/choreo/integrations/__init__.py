"""The game inside other people's libraries: Inspect, lm-eval and verifiers. Each module needs an extra of its own."""
