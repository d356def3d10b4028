"""A scenario from an annotation, by rules that a reader can follow: roles become agents, risks become levers.

What a paper does not say is SWARM's default. The result is a scenario of scripted agents, which any seed can play;
`choreo swarm study` puts trained agents into the roles.
"""

from __future__ import annotations

from choreo.errors import BadInput
from choreo.swarm.annotations import OPEN, Annotation, unfinished
from choreo.swarm.scenario import AgentGroup, Criteria, Governance, Payoff, Scenario, Simulation

# How long a scenario is, by how densely the paper's agents interact: epochs × steps.
LENGTH = {"low": (10, 10), "medium": (15, 10), "high": (20, 12)}

# How many agents play a role: those that begin interactions, those that answer them, and those that mean harm.
COUNT = {"initiator": 2, "counterparty": 2, "harmful": 1}

# What a failure mode asks governance to look at.
LEVERS: dict[str, dict[str, object]] = {
    "jailbreak": {"security_enabled": True, "security_penalty_multiplier": 1.5},
    "collusion": {"collusion_detection_enabled": True, "collusion_score_threshold": 0.5},
    "adverse_selection": {"audit_enabled": True, "audit_probability": 0.15, "audit_threshold_p": 0.5},
    "reward_hacking": {"audit_enabled": True, "audit_probability": 0.2, "audit_threshold_p": 0.5},
    "deception": {"audit_enabled": True, "audit_probability": 0.2, "audit_threshold_p": 0.5},
    "collapse": {"reputation_decay_rate": 0.9},
}

# A circuit breaker is in every generated scenario: it is what the governance study moves.
BREAKER: dict[str, object] = {
    "circuit_breaker_enabled": True,
    "freeze_threshold_toxicity": 0.6,
    "freeze_threshold_violations": 3,
    "freeze_duration_epochs": 2,
}


def generate(annotation: Annotation, seed: int = 0) -> Scenario:
    """The scenario of a finished annotation. Raises BadInput, naming the role, where one is left open."""
    for keys, problem in unfinished(annotation):
        if keys[0] == "roles":
            raise BadInput(f"{annotation.paper_id}: {'.'.join(keys)}: {problem}; a person has to fill it in first")
    groups = tuple(
        AgentGroup(type=role.agent, count=_count(role.agent, role.side), role=name)  # type: ignore[arg-type]
        for name, role in annotation.roles.items()
        if role.agent not in ("none", OPEN)
    )
    if not groups:
        raise BadInput(f"{annotation.paper_id}: roles: none of them is played by an agent")
    risks = annotation.risk_profile
    levers: dict[str, object] = dict(BREAKER)
    for mode in risks.failure_modes:
        levers |= LEVERS.get(mode, {})
    epochs, steps = LENGTH[risks.interaction_density]
    return Scenario(
        scenario_id=f"{annotation.paper_id}_generated",
        description=annotation.title,
        motif=", ".join(risks.failure_modes),
        agents=groups,
        simulation=Simulation(n_epochs=epochs, steps_per_epoch=steps, seed=seed),
        governance=Governance.model_validate(levers),
        payoff=Payoff(s_plus=2.0, s_minus=1.0, h=2.0, theta=0.5, w_rep=1.0),
        success_criteria=Criteria(toxicity_threshold=0.35),
    )


def scenario_yaml(scenario: Scenario, annotation: Annotation) -> str:
    """YAML that `load_scenario` reads back to an equal scenario, headed by where each part comes from."""
    import yaml

    said = scenario.model_dump(mode="json", exclude_defaults=True)
    body = yaml.safe_dump(said, sort_keys=False, allow_unicode=True, width=110)
    lines = [f"# Generated from the annotation of {annotation.title!r} (arXiv {annotation.arxiv_id or 'unknown'})."]
    for name, role in annotation.roles.items():
        plays = "no agent" if role.agent == "none" else f"{role.agent}, {role.side}"
        lines.append(f"# {name}: {plays}{'' if role.lever == 'none' else f'; lever: {role.lever}'}")
    known = [mode for mode in annotation.risk_profile.failure_modes if mode in LEVERS]
    without = [mode for mode in annotation.risk_profile.failure_modes if mode not in LEVERS]
    lines.append(f"# Levers for {', '.join(known) or 'none'}; SWARM has none for {', '.join(without) or 'the rest'}.")
    return "\n".join([*lines, body])


def _count(agent: str, side: str) -> int:
    return COUNT["harmful"] if agent in ("adversarial", "deceptive") else COUNT.get(side, 1)
