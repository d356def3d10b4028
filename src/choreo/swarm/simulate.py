"""One run of SWARM, in this process. This module imports SWARM; `run` gives every run a process of its own.

SWARM seeds Python's global random module, and a second run in the same process would draw from where the first left
it wherever an agent uses that module.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from swarm.agents.base import BaseAgent
from swarm.core.observable_generator import ObservableGenerator
from swarm.core.orchestrator import Orchestrator
from swarm.core.proxy import ProxyComputer
from swarm.env.feed import Feed, Post
from swarm.metrics.collusion import CollusionDetector
from swarm.metrics.security import SecurityAnalyzer
from swarm.models.interaction import SoftInteraction
from swarm.scenarios.loader import create_agents

from choreo.swarm.extra import swarm_versions
from choreo.swarm.records import Collusion, FlaggedPair, Interaction, Payoffs, Security, SimulationRun
from choreo.swarm.scenario import Governance, Scenario, scenario_digest, swarm_config


@dataclass(frozen=True)
class SwarmAgents:
    """Agents in place of SWARM's scripted ones, and how the quality of an interaction is observed and scored."""

    agents: Sequence[BaseAgent]
    observables: ObservableGenerator | None = None
    proxy: ProxyComputer | None = None


def simulate(
    scenario: Scenario, seed: int, make_agents: Callable[[Scenario, int], SwarmAgents] | None = None
) -> SimulationRun:
    """Plays the scenario to its end. make_agents: the agents from (scenario, seed); without it they are scripted."""
    config = swarm_config(scenario, seed)
    made = make_agents(scenario, seed) if make_agents else SwarmAgents(())
    orchestrator = Orchestrator(
        config.orchestrator_config, proxy_computer=made.proxy, observable_generator=made.observables
    )
    orchestrator.state.rate_limits = config.rate_limits
    for agent in made.agents if make_agents else create_agents(config.agent_specs, seed=seed):
        orchestrator.register_agent(agent)
    _rank_in_one_go(orchestrator.feed)

    theirs: list[SoftInteraction] = []
    ours: list[Interaction] = []
    state = orchestrator.state
    types = {name: agent.agent_type.value for name, agent in state.agents.items()}

    def collect(interaction: SoftInteraction, pay_initiator: float, pay_counterparty: float) -> None:
        theirs.append(interaction)
        when = (state.current_epoch, state.current_step)
        ours.append(_record(interaction, when, types, pay_initiator, pay_counterparty))

    orchestrator.on_interaction_complete(collect)
    start = time.perf_counter()
    epochs = orchestrator.run()
    seconds = time.perf_counter() - start
    reputations = {name: agent.reputation for name, agent in state.agents.items()}
    governance = orchestrator.governance_engine
    quarantined = tuple(sorted(governance.get_quarantined_agents())) if governance else ()
    return SimulationRun(
        scenario_id=scenario.scenario_id,
        scenario_digest=scenario_digest(scenario),
        seed=seed,
        epochs=len(epochs),
        payoffs=Payoffs(**scenario.payoff.model_dump()),
        agents=types,
        interactions=tuple(ours),
        reputations=reputations,
        collusion=_collusion(theirs, list(types), scenario.governance),
        security=_security(theirs, reputations, quarantined, scenario.governance),
        versions=swarm_versions(),
        seconds=seconds,
    )


def _record(
    i: SoftInteraction, when: tuple[int, int], types: dict[str, str], pay_initiator: float, pay_counterparty: float
) -> Interaction:
    truth = i.ground_truth if i.ground_truth is not None else i.metadata.get("ground_truth")
    return Interaction(
        epoch=when[0],
        step=when[1],
        initiator=i.initiator,
        counterparty=i.counterparty,
        initiator_type=types[i.initiator],
        counterparty_type=types[i.counterparty],
        accepted=i.accepted,
        p=i.p,
        v_hat=i.v_hat,
        progress=i.task_progress_delta,
        rework=i.rework_count,
        rejections=i.verifier_rejections,
        misuse=i.tool_misuse_flags,
        engagement=i.counterparty_engagement_delta,
        tau=i.tau,
        c_a=i.c_a,
        c_b=i.c_b,
        r_a=i.r_a,
        r_b=i.r_b,
        pay_initiator=pay_initiator,
        pay_counterparty=pay_counterparty,
        ground_truth=truth,
        answer=i.metadata.get("answer", ""),
    )


# The two reports are SWARM's own analysis of the whole run under the scenario's thresholds, made after the last epoch.
# The levers' reports end one epoch earlier, and there are none where a lever is off, so arms could not be compared.


def _collusion(theirs: list[SoftInteraction], agents: list[str], governance: Governance) -> Collusion | None:
    if not theirs:
        return None
    report = CollusionDetector(
        frequency_threshold=governance.collusion_frequency_threshold,
        benefit_correlation_threshold=governance.collusion_correlation_threshold,
        min_interactions_for_analysis=governance.collusion_min_interactions,
        collusion_score_threshold=governance.collusion_score_threshold,
    ).analyze(theirs, agents)
    pairs = tuple(
        FlaggedPair(pair.agent_a, pair.agent_b, pair.collusion_score, pair.benefit_correlation, pair.interaction_count)
        for pair in report.suspicious_pairs
    )
    risks = dict(report.agent_collusion_risk)
    return Collusion(report.ecosystem_collusion_risk, pairs, risks, governance.collusion_score_threshold)


def _security(
    theirs: list[SoftInteraction], reputations: dict[str, float], quarantined: tuple[str, ...], governance: Governance
) -> Security | None:
    if not theirs:
        return None
    analyzer = SecurityAnalyzer(
        injection_threshold=governance.security_injection_threshold,
        manipulation_threshold=governance.security_manipulation_threshold,
        laundering_trust_gap=governance.security_laundering_trust_gap,
        contagion_velocity_threshold=governance.security_contagion_velocity,
        min_chain_length=governance.security_min_chain_length,
    )
    analyzer.set_agent_trust_scores(reputations)
    report = analyzer.analyze(_at_once(theirs), list(reputations))
    return Security(
        threat_level=report.ecosystem_threat_level,
        threats=dict(Counter(threat.threat_type.value for threat in report.threat_indicators)),
        contagion_depth=report.contagion_depth,
        chains=len(report.contagion_chains),
        contained=sum(chain.origin_agent in quarantined for chain in report.contagion_chains),
        agents=dict(report.agent_threat_scores),
        threshold=governance.security_manipulation_threshold,
        quarantined=quarantined,
    )


def _at_once(interactions: list[SoftInteraction]) -> list[SoftInteraction]:
    """Copies a microsecond apart. SWARM measures contagion in interactions per minute of the computer's clock, so a
    busy machine would report less of it; this is what it reports where a run takes no time."""
    start = datetime(2000, 1, 1)
    return [
        interaction.model_copy(update={"timestamp": start + timedelta(microseconds=index)})
        for index, interaction in enumerate(interactions)
    ]


def _rank_in_one_go(feed: Feed) -> None:
    """Ranks posts as SWARM does, net votes + replies − age, with the age of all taken at one moment.

    SWARM asks the clock anew for every post, a million times a run: half of its time, and an order that depends on
    what else the machine is doing.
    """
    epoch = datetime.now()
    born: dict[str, float] = {}

    def score(post: Post) -> float:
        if post.is_hidden:
            return float("-inf")
        if post.post_id not in born:
            born[post.post_id] = (post.created_at - epoch).total_seconds() / 3600.0
        votes = post.upvotes - post.downvotes
        return votes + feed.reply_weight * post.reply_count + feed.age_decay * born[post.post_id]

    def ranked(limit: int = 50, include_replies: bool = False, include_hidden: bool = False) -> list[Any]:
        posts = [
            post
            for post in feed._posts.values()
            if (include_replies or post.parent_id is None) and (include_hidden or not post.is_hidden)
        ]
        posts.sort(key=score, reverse=True)
        return posts[:limit]

    feed.get_ranked_posts = ranked  # type: ignore[method-assign]
