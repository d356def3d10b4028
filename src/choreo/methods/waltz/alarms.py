"""Signs of collapse, which training reports: a policy that turns constant may have a good reward and learns no more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from choreo.types import AGENTS, Episode

# Limits: beyond them a run is rarely worth going on with (docs/studies/waltz.md).
REFUSES_ALL, REFUSES_NONE = 0.9, 0.05
LEAST_ENTROPY = 0.002  # nats per token; reviews are mostly form, and a good feedback agent comes near 0.01
DEGENERATE = 0.2
CUT_OFF = 0.8  # a recipe may well train on beginnings of answers
FLAT = 0.98
UNLIKE = 0.05  # by which the mean of π_old / π_sampler is off 1; a thousand tokens in bfloat16 are off by some .003
TRUNCATED = 0.02
OTHER_LOSS = 0.01  # what a service's sum of the loss may be off ours, in parts of the advantages' size


def refusal_share(episodes: Sequence[Episode]) -> float:
    """The share of final answers to harmful and benign prompts that refuse: to harmful ones those that are not unsafe,
    to benign ones those that over-refuse, where the text is not degenerate.

    General prompts are left out: nobody has a reason to refuse them, and a wrong answer to one is no refusal.
    """
    finals = [(e.prompt.kind, e.verdicts[-1]) for e in episodes if e.prompt.kind != "general"]
    if not finals:
        return float("nan")
    whole = [(kind, v) for kind, v in finals if not (v.degenerate or v.undetermined)]
    return sum(not v.unsafe if kind == "harmful" else bool(v.overrefuse) for kind, v in whole) / len(finals)


def alarms(figures: Mapping[str, float], grouped: bool = True) -> list[str]:
    """The alarms that a step's figures raise: sentences that stay the same while the alarm lasts. A figure that is
    missing raises none. grouped: advantages are taken within groups, where equal rewards leave no gradient."""
    found = []
    share = figures.get("refusal_share", 0.5)
    if share > REFUSES_ALL:
        found.append(f"refuses more than {REFUSES_ALL:.0%} of what it might: the policy is turning constant")
    if share < REFUSES_NONE:
        found.append(f"refuses less than {REFUSES_NONE:.0%} of what it might: the policy is turning constant")
    for agent in AGENTS:
        if figures.get(f"entropy/{agent}", 1.0) < LEAST_ENTROPY:
            found.append(f"entropy of the {agent} agent below {LEAST_ENTROPY} nats a token: it has stopped exploring")
        if abs(figures.get(f"sampler_ratio/{agent}", 1.0) - 1) > UNLIKE:
            found.append(f"the {agent} agent is sampled from another policy than it is taken for")
        if figures.get(f"truncated/{agent}", 0.0) > TRUNCATED:
            found.append(f"more than {TRUNCATED:.0%} of the {agent} agent's importance weights are truncated")
        if figures.get(f"loss_gap/{agent}", 0.0) > OTHER_LOSS:
            found.append(f"the service's policy loss of the {agent} agent is not ours")
    cut_off = figures.get("cut_off", 0.0)
    if figures.get("degenerate", 0.0) - cut_off > DEGENERATE:
        found.append(f"more than {DEGENERATE:.0%} of the answers say nothing, though they were not cut off")
    if cut_off > CUT_OFF:
        found.append(f"more than {CUT_OFF:.0%} of the answers are cut off at their token limit")
    if grouped and figures.get("groups_without_gradient", 0.0) > FLAT:
        found.append("nearly all groups have equal rewards: group baselines find no gradient in them")
    return found
