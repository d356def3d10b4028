"""A SWARM scenario: who plays, under which governance, for how long, and what would count as success.

The keys are SWARM's (swarm-safety 1.9.0), so that a scenario can be compared with the published ones. Those that
are listed here are all there are: SWARM ignores a key it does not know, and its loader drops levers that its engine
has (moderator, refinery), so nothing is handed to that loader. Defaults are SWARM's; a test compares them.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from choreo.config.checking import check
from choreo.config.common import AboveZero, Fraction, Natural, NonNegative, Positive, Section
from choreo.swarm.reading import find_yaml, load_yaml

if TYPE_CHECKING:
    from swarm.scenarios.loader import ScenarioConfig

SHIPPED = Path(__file__).with_name("scenarios")


class AgentGroup(Section):
    """Some agents of one of SWARM's scripted types."""

    type: Literal[
        "honest",
        "opportunistic",
        "deceptive",
        "adversarial",
        "adaptive_adversary",
        "modeling_adversary",
        "cautious",
        "cautious_reciprocator",
        "threshold_dancer",
    ]
    count: Positive = 1
    role: str = Field("", description="the part of a paper that they play; SWARM itself knows no parts")


class Governance(Section):
    """The levers. Each group has a switch; without it the rest of the group does nothing."""

    transaction_tax_rate: Fraction = Field(0.0, description="share of p·2 − (1−p)·1, where it is positive")
    transaction_tax_split: Fraction = Field(0.5, description="the initiator's share of the tax")
    reputation_decay_rate: Fraction = Field(1.0, description="reputation is multiplied by it every epoch")
    vote_normalization_enabled: bool = False
    max_vote_weight_per_agent: AboveZero = 10.0
    bandwidth_cap: Natural = Field(10, description="does nothing in 1.9.0")
    staking_enabled: bool = False
    min_stake_to_participate: NonNegative = 0.0
    stake_slash_rate: Fraction = Field(0.1, description="does nothing in 1.9.0")

    circuit_breaker_enabled: bool = False
    freeze_threshold_toxicity: Fraction = Field(0.7, description="mean 1 − p of an initiator's last ten interactions")
    freeze_threshold_violations: Positive = 3
    freeze_duration_epochs: Positive = 2

    audit_enabled: bool = False
    audit_probability: Fraction = 0.1
    audit_penalty_multiplier: NonNegative = 2.0
    audit_threshold_p: Fraction = 0.5

    collusion_detection_enabled: bool = False
    collusion_frequency_threshold: AboveZero = Field(2.0, description="z of a pair's number of interactions")
    collusion_correlation_threshold: Fraction = 0.7
    collusion_min_interactions: Positive = 3
    collusion_score_threshold: Fraction = 0.5
    collusion_penalty_multiplier: NonNegative = 1.0
    collusion_realtime_penalty: bool = False
    collusion_realtime_rate: NonNegative = 0.1
    collusion_clear_history_on_epoch: bool = False

    security_enabled: bool = False
    security_injection_threshold: Fraction = 0.3
    security_manipulation_threshold: Fraction = 0.5
    security_laundering_trust_gap: NonNegative = 0.3
    security_contagion_velocity: AboveZero = Field(2.0, description="interactions per minute of the computer's clock")
    security_min_chain_length: Annotated[int, Field(ge=2)] = 3
    security_min_interactions: Positive = 5
    security_penalty_threshold: Fraction = 0.3
    security_quarantine_threshold: Fraction = 0.7
    security_penalty_multiplier: NonNegative = 1.0
    security_realtime_penalty: bool = False
    security_realtime_threshold: Fraction = 0.5
    security_realtime_rate: NonNegative = 0.2
    security_clear_history_on_epoch: bool = False

    moderator_enabled: bool = False
    moderator_review_probability: Fraction = 0.5
    moderator_penalty_multiplier: NonNegative = 1.0
    moderator_threshold_p: Fraction = 0.5
    refinery_enabled: bool = False
    refinery_p_threshold: Fraction = Field(0.5, description="what has a lower p is not accepted")


class Payoff(Section):
    """S = p·s_plus − (1−p)·s_minus is shared, E = (1−p)·h is the harm; rho is the share of E that a party bears."""

    s_plus: NonNegative = 2.0
    s_minus: NonNegative = 1.0
    h: NonNegative = 2.0
    theta: Fraction = Field(0.5, description="the initiator's share of S")
    rho_a: Fraction = 0.0
    rho_b: Fraction = 0.0
    w_rep: Annotated[float, Field(ge=0, le=100)] = 1.0


class RateLimits(Section):
    posts_per_epoch: Natural = 10
    interactions_per_step: Natural = 5
    votes_per_epoch: Natural = 50
    tasks_per_epoch: Natural = 3
    bounties_per_epoch: Natural = 3
    bids_per_epoch: Natural = 5


class NetworkShape(Section):
    edge_probability: Fraction = Field(0.5, description="random_erdos_renyi")
    k: Annotated[int, Field(ge=2)] = Field(4, description="small_world: neighbours")
    p: Fraction = Field(0.1, description="small_world: share of edges rewired")
    m: Positive = Field(2, description="scale_free: edges of a newcomer")


class Network(Section):
    topology: Literal["complete", "ring", "star", "random_erdos_renyi", "small_world", "scale_free"] = "complete"
    params: NetworkShape = NetworkShape()
    dynamic: bool = Field(False, description="edges grow with use and decay by epoch")
    edge_strengthen_rate: NonNegative = 0.1
    edge_decay_rate: Fraction = 0.05
    min_edge_weight: NonNegative = 0.1
    max_edge_weight: AboveZero = 1.0
    reputation_disconnect_threshold: float | None = None


class Simulation(Section):
    n_epochs: Positive
    steps_per_epoch: Positive
    seed: Natural
    schedule_mode: Literal["round_robin", "random", "priority"] = "round_robin"
    max_actions_per_step: Positive = 20
    observation_noise_probability: Fraction = 0.0
    observation_noise_std: NonNegative = 0.0


class Criteria(Section):
    """What `criteria` evaluates; a limit that is left out asks nothing."""

    min_epochs: Positive | None = None
    min_agents: Positive | None = None
    toxicity_threshold: Fraction | None = Field(None, description="at most this mean 1 − p of what was accepted")
    min_net_social_welfare: float | None = Field(None, description="Σ (S − E) of what was accepted, per epoch")
    max_ecosystem_threat_level: Fraction | None = None
    max_contagion_depth: Natural | None = None
    min_containment_effectiveness: Fraction | None = None
    min_flagged_pairs: Natural | None = None
    max_ecosystem_collusion_risk: Fraction | None = None
    min_penalty_total: NonNegative | None = None


class Scenario(Section):
    scenario_id: Annotated[str, Field(min_length=1)]
    description: str = ""
    motif: str = ""
    agents: Annotated[tuple[AgentGroup, ...], Field(min_length=1)]
    simulation: Simulation
    governance: Governance = Governance()
    payoff: Payoff = Payoff()
    rate_limits: RateLimits = RateLimits()
    network: Network | None = None
    success_criteria: Criteria = Criteria()


def load_scenario(name: str | Path) -> Scenario:
    """A shipped scenario by name, or the one in a YAML file. Raises BadInput with file, line, key, nearest name."""
    return load_yaml(Scenario, find_yaml(name, SHIPPED, "scenario"))


def with_levers(scenario: Scenario, **levers: Any) -> Scenario:
    """The scenario under other governance, checked like the first. Raises BadInput naming the lever."""
    levers = {**scenario.governance.model_dump(), **levers}
    governance = check(Governance, levers, lambda keys: f"{scenario.scenario_id}: governance")
    return scenario.model_copy(update={"governance": governance})


def scenario_digest(scenario: Scenario) -> str:
    """SHA-256 of everything in the scenario that a run depends on, defaults included; a seed is the run's own."""
    said = scenario.model_dump(exclude={"scenario_id", "description", "motif", "success_criteria"})
    del said["simulation"]["seed"]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def swarm_config(scenario: Scenario, seed: int) -> ScenarioConfig:
    """The scenario as SWARM wants it, built without its loader. Needs swarm-safety."""
    from swarm.core.orchestrator import OrchestratorConfig
    from swarm.core.payoff import PayoffConfig
    from swarm.env.network import NetworkConfig, NetworkTopology
    from swarm.env.state import RateLimits as SwarmLimits
    from swarm.governance.config import GovernanceConfig
    from swarm.scenarios.loader import ScenarioConfig

    network = None
    if scenario.network is not None:
        shape = scenario.network.params
        network = NetworkConfig(
            topology=NetworkTopology(scenario.network.topology),
            edge_probability=shape.edge_probability,
            k_neighbors=shape.k,
            rewire_probability=shape.p,
            m_edges=shape.m,
            **scenario.network.model_dump(exclude={"topology", "params"}),
        )
    return ScenarioConfig(
        scenario_id=scenario.scenario_id,
        description=scenario.description,
        motif=scenario.motif,
        orchestrator_config=OrchestratorConfig(
            **{**scenario.simulation.model_dump(), "seed": seed},
            scenario_id=scenario.scenario_id,
            payoff_config=PayoffConfig(**scenario.payoff.model_dump()),
            governance_config=GovernanceConfig(**scenario.governance.model_dump()),
            network_config=network,
            log_events=False,
        ),
        rate_limits=SwarmLimits(**scenario.rate_limits.model_dump()),
        agent_specs=[group.model_dump(exclude={"role"}) for group in scenario.agents],
        success_criteria=scenario.success_criteria.model_dump(exclude_none=True),
    )
