"""Scenarios: what is refused, where, and that SWARM is told what the file says and nothing else."""

from __future__ import annotations

import pytest

from choreo.errors import BadInput
from choreo.swarm.scenario import (
    SHIPPED,
    Governance,
    Network,
    Payoff,
    RateLimits,
    Scenario,
    changed,
    digest,
    load_scenario,
    to_swarm,
)

pytest.importorskip("yaml", reason="scenarios are YAML; choreo-rl[swarm] brings PyYAML")

NAMES = ("strict_governance", "security_evaluation", "collusion_detection", "waltz_draft", "macpo_draft")
SMALL = """\
scenario_id: mine
agents:
  - {type: honest, count: 2}
  - type: adversarial
simulation:
  n_epochs: 2
  steps_per_epoch: 3
  seed: 1
governance:
  audit_enabled: true
"""


@pytest.fixture
def swarm():
    return pytest.importorskip("swarm.scenarios.loader", reason="swarm-safety is not installed: choreo-rl[swarm]")


def refused(tmp_path, text):
    file = tmp_path / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as error:
        load_scenario(file)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(file), "mine.yaml")


def test_the_shipped_scenarios_are_the_three_published_ones_and_two_drafts():
    assert {path.stem for path in SHIPPED.glob("*.yaml")} == set(NAMES)
    for name in NAMES:
        assert load_scenario(name).scenario_id == name


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("audit_enabled", "audit_enabld", ":10: governance.audit_enabld: unknown key; did you mean 'audit_enabled'"),
        ("governance", "goverance", ":9: goverance: unknown key; did you mean 'governance'?"),
        ("count: 2", "number: 2", ":3: agents.0.number: unknown key; known: type, count"),
        ("type: adversarial", "type: adversary", ":4: agents.1.type: expected one of 'honest'"),
        ("count: 2", "count: two", ":3: agents.0.count: expected a whole number >= 1, got 'two'"),
        ("count: 2", "count: 2.0", ":3: agents.0.count: expected a whole number >= 1, got 2.0"),
        ("n_epochs: 2", "n_epochs: true", ":6: simulation.n_epochs: expected a whole number >= 1, got true"),
        ("n_epochs: 2", "n_epochs: 0", ":6: simulation.n_epochs: expected a whole number >= 1, got 0"),
        ("  seed: 1\n", "", ":5: simulation.seed: missing; expected a whole number >= 0"),
        ("audit_enabled: true", "audit_enabled: 1", ":10: governance.audit_enabled: expected true or false, got 1"),
        ("audit_enabled: true", "audit_probability: 1.5", "audit_probability: expected a number >= 0 and <= 1, got"),
        ("audit_enabled: true", "audit_probability: .nan", ":10: governance.audit_probability: expected a number"),
        ("audit_enabled: true", "audit_threshold_p: 1e-1", ":10: governance.audit_threshold_p: expected a number"),
        ("seed: 1", "seed: 1\n  seed: 2", ":9: seed: said twice in one table"),
        ("seed: 1", "seed: [1", ":9: not valid YAML"),
        ("scenario_id: mine", "scenario_id: 7", ":1: scenario_id: expected text in quotes, got 7"),
        ("scenario_id: mine", "7: mine", ":1: a key must be text, got '7'"),
        ("scenario_id: mine", "scenario_id: 2026-02-30", ": not valid YAML: day"),
        ("governance:\n  audit_enabled: true", "governance: &a {}\npayoff: *a", ":9: anchors and aliases"),
        ("governance:", "outputs: {event_log: x}\nx:", ":9: outputs: unknown key"),
        ("governance:", "payoff: {rho_a: 2}\ngovernance:", ":9: payoff.rho_a: expected a number >= 0 and <= 1"),
        ("governance:", "success_criteria: {max_toxicity: .3}\ngovernance:", ":9: success_criteria.max_toxicity"),
        ("governance:", "network: {topology: torus}\ngovernance:", ":9: network.topology: expected one of"),
        ("governance:", "network: {params: {q: 1}}\ngovernance:", ":9: network.params.q: unknown key; known"),
    ],
)
def test_a_mistake_is_named_with_file_line_key_and_the_nearest_name(tmp_path, old, new, said):
    assert old in SMALL
    assert said in refused(tmp_path, SMALL.replace(old, new))


def test_what_is_no_yaml_mapping_is_refused(tmp_path):
    for text, said in (
        ("", ":1: expected keys and values, got nothing"),
        ("- a\n- b\n", ":1: expected keys and values"),
        ("a: 1\n---\nb: 2\n", ":2: not valid YAML"),
        (b"a: 1\nb: \xff\n", ":2: not UTF-8 text"),
        ("a: 1\nb: \x01\n", ":2: not valid YAML"),
        ("a: !!python/name:os.system x\n", ":1: not valid YAML"),
        ("a: " + "[" * 2000, "not valid YAML: nested too deeply"),
    ):
        assert said in refused(tmp_path, text)
    with pytest.raises(BadInput, match="did you mean 'waltz_draft'"):
        load_scenario("waltz_drft")
    with pytest.raises(BadInput, match="no such scenario file"):
        load_scenario(tmp_path / "none.yaml")


def test_governance_is_changed_by_levers_that_there_are():
    scenario = load_scenario("waltz_draft")
    other = changed(scenario, refinery_enabled=True)
    assert other.governance.refinery_enabled and not scenario.governance.refinery_enabled
    assert digest(other) != digest(scenario) == digest(load_scenario("waltz_draft"))
    with pytest.raises(BadInput, match=r"waltz_draft: governance: refinery_enable: .* 'refinery_enabled'"):
        changed(scenario, refinery_enable=True)


# ---- beside SWARM -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_what_swarm_is_told_is_what_its_own_loader_reads_in_the_file(swarm, name):
    ours = to_swarm(load_scenario(name), load_scenario(name).simulation.seed)
    theirs = swarm.load_scenario(SHIPPED / f"{name}.yaml")
    assert ours.orchestrator_config.model_dump() == {**theirs.orchestrator_config.model_dump(), "log_events": False}
    assert ours.rate_limits == theirs.rate_limits
    assert ours.success_criteria == theirs.success_criteria
    told = [(group["type"], group.get("count", 1)) for group in theirs.agent_specs]
    assert [(group["type"], group["count"]) for group in ours.agent_specs] == told


def test_defaults_are_swarms(swarm):
    from swarm.core.payoff import PayoffConfig
    from swarm.env.network import NetworkConfig
    from swarm.env.state import RateLimits as SwarmLimits
    from swarm.governance.config import GovernanceConfig

    theirs = GovernanceConfig().model_dump()
    assert Governance().model_dump() == {name: theirs[name] for name in Governance.model_fields}
    assert Payoff().model_dump() == {k: v for k, v in PayoffConfig().model_dump().items() if k != "sigmoid_k"}
    assert RateLimits().model_dump() == vars(SwarmLimits())
    network = to_swarm(Scenario(**SCENARIO, network=Network()), 1).orchestrator_config.network_config
    assert network == NetworkConfig()
    assert to_swarm(Scenario(**SCENARIO), 1).orchestrator_config.network_config is None


SCENARIO = {
    "scenario_id": "mine",
    "agents": ({"type": "honest", "count": 2},),
    "simulation": {"n_epochs": 1, "steps_per_epoch": 1, "seed": 1},
}


def test_swarm_itself_ignores_an_unknown_key_and_drops_levers_it_has(swarm, tmp_path):
    """The faults that strict reading and a conversion of our own are there for."""
    file = tmp_path / "mine.yaml"
    file.write_text(SMALL.replace("audit_enabled: true", "freeze_treshold_toxicity: 0.1\n  refinery_enabled: true"))
    theirs = swarm.load_scenario(file).orchestrator_config.governance_config
    assert theirs.freeze_threshold_toxicity == 0.7 and not theirs.refinery_enabled
    with pytest.raises(BadInput, match=r":10: governance.freeze_treshold_toxicity: .* 'freeze_threshold_toxicity'"):
        load_scenario(file)
    file.write_text(SMALL.replace("audit_enabled: true", "refinery_enabled: true"))
    assert to_swarm(load_scenario(file), 1).orchestrator_config.governance_config.refinery_enabled
