"""Signs of collapse, said aloud: a constant policy has a fine reward and nothing left to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from choreo.types import AGENTS, Episode

# Limits: beyond them a run is rarely worth going on with (docs/architecture.md, "Alarms").
REFUSES_ALL, REFUSES_NONE = 0.9, 0.05
LEAST_ENTROPY = 0.01  # nats per token
DEGENERATE = 0.2
FLAT = 0.98


def refusal_share(episodes: Sequence[Episode]) -> float:
    """Share of final answers that refuse: harmful requests not answered, benign ones turned down in whole text."""
    if not episodes:
        return float("nan")
    refused = 0
    for episode in episodes:
        verdict = episode.verdicts[-1]
        if verdict.degenerate or verdict.undetermined:
            continue
        refused += not verdict.unsafe if episode.prompt.kind == "harmful" else bool(verdict.overrefuse)
    return refused / len(episodes)


def alarms(figures: Mapping[str, float]) -> list[str]:
    """The alarms that a step's figures raise, as sentences. Missing figures raise none."""
    found = []
    share = figures.get("refusal_share", 0.5)
    if share > REFUSES_ALL:
        found.append(f"refuses {share:.0%} of all prompts: the policy is turning constant")
    if share < REFUSES_NONE:
        found.append(f"refuses only {share:.0%} of all prompts: the policy is turning constant")
    for agent in AGENTS:
        if figures.get(f"entropy/{agent}", 1.0) < LEAST_ENTROPY:
            found.append(f"entropy of the {agent} agent below {LEAST_ENTROPY} nats a token: it has stopped exploring")
    if figures.get("degenerate", 0.0) > DEGENERATE:
        found.append(f"{figures['degenerate']:.0%} of the answers are degenerate")
    if figures.get("groups_without_gradient", 0.0) > FLAT:
        found.append("nearly all groups have equal rewards: no gradient is left in them")
    return found
