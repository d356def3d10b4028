"""A paper's claims, made testable: a contrast between two arms in one metric, with where the paper says so.

Two curated annotations ship (`papers/`). A draft may leave things open with "?"; a curated one may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from choreo.config.checking import check
from choreo.config.common import NonNegative, Section
from choreo.errors import BadInput
from choreo.files.toml import Keys, line_of
from choreo.swarm.reading import find_yaml, read_yaml

SHIPPED = Path(__file__).with_name("papers")
OPEN = "?"

# SWARM's metrics, what a trained pair is measured by beside them, and what its detectors report.
Metric = Literal[
    "toxicity_rate",
    "toxicity_rate_all",
    "quality_gap",
    "spread",
    "conditional_loss_initiator",
    "conditional_loss_counterparty",
    "acceptance_rate",
    "total_welfare",
    "net_social_welfare",
    "asr",
    "orr",
    "ftr",
    "harm_accepted",
    "ecosystem_collusion_risk",
    "ecosystem_threat_level",
    "none",
    "?",
]
# Those that SWARM's own annotations may name (swarm.research.annotator.SWARM_METRICS of 1.9.0) and we measure.
SWARM_METRICS = frozenset(
    {
        "toxicity_rate",
        "quality_gap",
        "total_welfare",
        "conditional_loss_initiator",
        "conditional_loss_counterparty",
        "spread",
    }
)
# SWARM states the sign of a mean, we state the sign of a difference; the words are carried over, the test is not.
_EXPECTED = {"lower": "negative", "higher": "positive", "same": "zero"}

Text = Annotated[str, Field(min_length=1)]


class RiskProfile(Section):
    interaction_density: Literal["low", "medium", "high"]
    failure_modes: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


class Claim(Section):
    claim: Text
    evidence: Text = Field(description="where in the paper it stands")
    metric: Metric
    arm: Text = Field(description="what the claim is about")
    baseline: Text = Field(description="what it is compared with")
    direction: Literal["lower", "higher", "same", "?"] = Field(description="of the arm beside the baseline")
    margin: NonNegative = Field(
        description="smallest difference that counts; for `same`, the largest that does not. In the metric's units"
    )
    testable: bool = True
    note: str = Field("", description="why it is not testable, or what a reader should know")


class Role(Section):
    """What plays a part of the paper in SWARM."""

    agent: Literal["honest", "opportunistic", "deceptive", "adversarial", "none", "?"]
    side: Literal["initiator", "counterparty", "none", "?"] = "none"
    lever: str = Field("none", description="the governance lever that stands for it, where it is no agent")


class Annotation(Section):
    paper_id: Text
    arxiv_id: Annotated[str, Field(pattern=r"^(\d{4}\.\d{4,5})?$")] = ""
    title: Text
    status: Literal["curated", "draft"]
    risk_profile: RiskProfile
    claims: tuple[Claim, ...]
    roles: dict[str, Role] = Field({})
    scenarios: tuple[str, ...] = ()


def load_annotation(name: str | Path) -> Annotation:
    """A shipped annotation by name, or the one in a YAML file. Raises BadInput with file, line, key, nearest name."""
    file = find_yaml(name, SHIPPED, "annotation")
    data, lines = read_yaml(file)
    return _checked(data, lambda keys: f"{file}:{line_of(lines, keys)}")


def _checked(data: Mapping[str, Any], where: Callable[[Keys], str]) -> Annotation:
    annotation = check(Annotation, data, where)
    for keys, problem in unfinished(annotation) if annotation.status == "curated" else ():
        raise BadInput(f"{where(keys)}: {'.'.join(keys)}: {problem}, and the annotation says that it is curated")
    return annotation


def unfinished(annotation: Annotation) -> Iterator[tuple[Keys, str]]:
    """What a person still has to fill in before an annotation is curated."""
    for number, claim in enumerate(annotation.claims):
        for name, value in claim.model_dump(include={"evidence", "metric", "arm", "baseline", "direction"}).items():
            if value == OPEN or (claim.testable and value == "none"):
                yield ("claims", str(number), name), f"is {value!r}"
        if not claim.testable and not claim.note:
            yield ("claims", str(number), "note"), "does not say why the claim is not testable"
    for role, played in annotation.roles.items():
        for name, value in played.model_dump().items():
            if value == OPEN:
                yield ("roles", role, name), f"is {value!r}"


def to_yaml(annotation: Annotation) -> str:
    """YAML that `load_annotation` reads back to an equal annotation."""
    import yaml

    fields = annotation.model_dump(mode="json")
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=110)


def to_swarm(annotation: Annotation) -> dict[str, Any]:
    """The annotation in the form of SWARM's PaperAnnotation: what its `from_dict` takes, and its YAML holds.

    A claim's `parameters` carry what SWARM has no place for. `roles` and `status` stand beside its own keys; SWARM
    reads past them, so they are lost where SWARM writes the annotation anew.
    """
    claims = []
    for claim in annotation.claims:
        known = claim.metric in SWARM_METRICS
        ours = claim.model_dump(include={"evidence", "metric", "arm", "baseline", "direction", "margin", "note"})
        claims.append(
            {
                "claim": claim.claim,
                "testable": claim.testable,
                "metric": claim.metric if known else "",
                "expected": _EXPECTED.get(claim.direction, "positive"),
                "parameters": ours,
            }
        )
    return {
        "paper_id": annotation.paper_id,
        "arxiv_id": annotation.arxiv_id,
        "title": annotation.title,
        "risk_profile": annotation.risk_profile.model_dump(mode="json"),
        "claims": claims,
        "swarm_scenarios": list(annotation.scenarios),
        "roles": {name: role.model_dump() for name, role in annotation.roles.items()},
        "status": annotation.status,
    }


def from_swarm(fields: Mapping[str, Any], where: str = "PaperAnnotation") -> Annotation:
    """The annotation that a PaperAnnotation's `to_dict` or YAML describes. Raises BadInput.

    One that we did not write is a draft: SWARM's claims name no arms and no margin, and its `expected` is about the
    sign of a mean.
    """
    directions = {expected: direction for direction, expected in _EXPECTED.items()}
    claims = []
    for theirs in fields.get("claims", ()):
        metric = theirs.get("metric") or OPEN
        ours = {
            "evidence": OPEN,
            "metric": metric if metric in SWARM_METRICS else OPEN,
            "arm": OPEN,
            "baseline": OPEN,
            "direction": directions.get(theirs.get("expected", ""), OPEN),
            "margin": 0.0,
            "note": "",
        }
        ours |= {name: value for name, value in theirs.get("parameters", {}).items() if name in ours}
        claims.append({"claim": theirs.get("claim", ""), "testable": theirs.get("testable", True), **ours})
    return _checked(
        {
            "paper_id": fields.get("paper_id", ""),
            "arxiv_id": fields.get("arxiv_id", ""),
            "title": fields.get("title", ""),
            "status": fields.get("status", "draft"),
            "risk_profile": fields.get("risk_profile", {}),
            "claims": claims,
            "roles": fields.get("roles", {}),
            "scenarios": fields.get("swarm_scenarios", []),
        },
        lambda keys: where,
    )
