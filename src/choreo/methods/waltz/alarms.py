"""Signs of collapse, said aloud: a constant policy has a fine reward and nothing left to learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from choreo.types import AGENTS, Episode

# Limits: beyond them a run is rarely worth going on with (docs/studies/waltz.md).
REFUSES_ALL, REFUSES_NONE = 0.9, 0.05
LEAST_ENTROPY = 0.002  # nats per token; reviews are mostly form, and a good feedback agent comes near 0.01
DEGENERATE = 0.2
FLAT = 0.98


def refusal_share(episodes: Sequence[Episode]) -> float:
    """Share of final answers to harmful and benign prompts that refuse: harm not told, or help denied in whole text.

    General prompts, which nobody has cause to refuse, are left out: there a wrong answer is no refusal.
    """
    finals = [(e.prompt.kind, e.verdicts[-1]) for e in episodes if e.prompt.kind != "general"]
    if not finals:
        return float("nan")
    whole = [(kind, v) for kind, v in finals if not (v.degenerate or v.undetermined)]
    return sum(not v.unsafe if kind == "harmful" else bool(v.overrefuse) for kind, v in whole) / len(finals)


def alarms(figures: Mapping[str, float], grouped: bool = True) -> list[str]:
    """The alarms that a step's figures raise, as sentences that stay the same while they last. Missing figures raise
    none. grouped: advantages are taken within groups of samples, which equal rewards leave without a gradient."""
    found = []
    share = figures.get("refusal_share", 0.5)
    if share > REFUSES_ALL:
        found.append(f"refuses more than {REFUSES_ALL:.0%} of what it might: the policy is turning constant")
    if share < REFUSES_NONE:
        found.append(f"refuses less than {REFUSES_NONE:.0%} of what it might: the policy is turning constant")
    for agent in AGENTS:
        if figures.get(f"entropy/{agent}", 1.0) < LEAST_ENTROPY:
            found.append(f"entropy of the {agent} agent below {LEAST_ENTROPY} nats a token: it has stopped exploring")
    if figures.get("degenerate", 0.0) > DEGENERATE:
        found.append(f"more than {DEGENERATE:.0%} of the answers are degenerate")
    if grouped and figures.get("groups_without_gradient", 0.0) > FLAT:
        found.append("nearly all groups have equal rewards: group baselines find no gradient in them")
    return found
