"""What one run leaves behind: plain frozen data, without SWARM's classes, ready to be pickled or written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

HARMFUL = ("adversarial", "deceptive")  # the types that a detector ought to find


@dataclass(frozen=True, slots=True)
class Payoffs:
    """Parameters of the two pays (SWARM's names; rho, the share of the harm that a party bears itself)."""

    s_plus: float = 2.0
    s_minus: float = 1.0
    h: float = 2.0
    theta: float = 0.5
    rho_a: float = 0.0
    rho_b: float = 0.0
    w_rep: float = 1.0


@dataclass(frozen=True, slots=True)
class Interaction:
    """One proposal and what became of it.

    p: probability that it is beneficial, in [0, 1]; v_hat: the proxy score behind it, in [−1, 1].
    progress, engagement: in [−1, 1]; rework, rejections, misuse: counts. tau: transfer from initiator to counterparty;
    c_a, c_b: governance costs; r_a, r_b: changes of reputation; pay_initiator, pay_counterparty: as SWARM computed
    them, also for what was rejected, where nobody is paid. ground_truth: 1 beneficial, −1 harmful, None unknown or
    neither. answer: key of the answer that was offered, where trained agents play.
    """

    epoch: int
    step: int
    initiator: str
    counterparty: str
    initiator_type: str
    counterparty_type: str
    accepted: bool
    p: float
    v_hat: float = 0.0
    progress: float = 0.0
    rework: int = 0
    rejections: int = 0
    misuse: int = 0
    engagement: float = 0.0
    tau: float = 0.0
    c_a: float = 0.0
    c_b: float = 0.0
    r_a: float = 0.0
    r_b: float = 0.0
    pay_initiator: float = 0.0
    pay_counterparty: float = 0.0
    ground_truth: int | None = None
    answer: str = ""


@dataclass(frozen=True, slots=True)
class FlaggedPair:
    """Two agents whom SWARM's detector flagged. correlation: of their benefits, the costs and transfers they bore."""

    a: str
    b: str
    score: float
    correlation: float
    interactions: int


@dataclass(frozen=True, slots=True)
class Collusion:
    """SWARM's CollusionReport over the whole run. risk: of the ecosystem, in [0, 1]; agents: risk of each."""

    risk: float
    pairs: tuple[FlaggedPair, ...]
    agents: Mapping[str, float]
    threshold: float  # an agent or a pair at or above it is flagged


@dataclass(frozen=True, slots=True)
class Security:
    """SWARM's SecurityReport over the whole run. threats: number by kind; agents: threat score of each.

    chains: contagion chains found; contained: those whose origin was in quarantine at the end.
    """

    threat_level: float
    threats: Mapping[str, int]
    contagion_depth: int
    chains: int
    contained: int
    agents: Mapping[str, float]
    threshold: float  # an agent at or above it is flagged
    quarantined: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SimulationRun:
    """One scenario under one seed. agents: type by name; reputations: at the end; seconds: of the simulation."""

    scenario_id: str
    scenario_digest: str
    seed: int
    epochs: int
    payoffs: Payoffs
    agents: Mapping[str, str]
    interactions: tuple[Interaction, ...]
    reputations: Mapping[str, float]
    collusion: Collusion | None  # None where there was no interaction to analyse
    security: Security | None
    versions: Mapping[str, str]
    seconds: float
