"""Annotations: the two that ship, SWARM's form and back, what is refused where, and drafts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from choreo.cli import main
from choreo.errors import BadInput
from choreo.swarm.annotations import SHIPPED, from_swarm, load_annotation, to_swarm, to_yaml
from choreo.swarm.draft import draft
from choreo.swarm.scenario import load_scenario

yaml = pytest.importorskip("yaml", reason="annotations are YAML; choreo-rl[swarm] brings PyYAML")

PAPER = """\
# A Treaty of Two Agents

arXiv:2501.01234v2

We show that a feedback agent reduces unsafe answers from 40 % to
5 % under jailbreaks. Nothing is claimed here at all. Our experiments
demonstrate that the feedback agent improves alignment performance.

The single judge is an LLM judge. Overrefusals fall without degrading quality, so results show unchanged refusals.
We find that mutual acceptance can lead to collusion between the feedback agent and the weak teachers.
Weak teachers, weak teachers and weak teachers talk. The sky improves.
"""


@pytest.mark.parametrize(("name", "arxiv_id"), [("waltz", "2510.08240"), ("macpo", "2410.07672")])
def test_the_curated_annotations_say_where_every_claim_stands(tmp_path, name, arxiv_id):
    annotation = load_annotation(name)
    assert (annotation.status, annotation.arxiv_id) == ("curated", arxiv_id)
    assert annotation.roles and annotation.risk_profile.failure_modes and len(annotation.claims) >= 5
    for claim in annotation.claims:
        assert claim.arm != claim.baseline and len(claim.evidence) > 10
        assert claim.testable == (claim.metric != "none") and (claim.testable or claim.note)
    for scenario in annotation.scenarios:
        load_scenario(scenario)
    file = tmp_path / "again.yaml"
    file.write_text(to_yaml(annotation), encoding="utf-8")
    assert load_annotation(file) == annotation


def test_swarms_form_holds_all_of_ours_and_leaves_open_what_swarm_does_not_say():
    for name in ("waltz", "macpo"):
        annotation = load_annotation(name)
        theirs = yaml.safe_load(yaml.safe_dump(to_swarm(annotation)))
        assert from_swarm(theirs) == annotation
        assert {claim["expected"] for claim in theirs["claims"]} <= {"positive", "negative", "zero"}
        assert {claim["metric"] for claim in theirs["claims"]} <= {"toxicity_rate", ""}  # only names that SWARM knows
    claim = {"claim": "Taxes lower toxicity.", "testable": True, "metric": "toxicity_rate", "expected": "negative"}
    other = {**claim, "metric": "average_quality", "parameters": {"n": 3}}
    foreign = from_swarm(
        {"paper_id": "x", "title": "X", "risk_profile": {"interaction_density": "low"}, "claims": [claim, other]}
    )
    assert foreign.status == "draft"
    first, second = foreign.claims
    assert (first.metric, first.direction, first.arm, first.baseline) == ("toxicity_rate", "lower", "?", "?")
    assert second.metric == "?"
    with pytest.raises(BadInput, match=r"theirs.yaml: risk_profile.interaction_density: missing"):
        from_swarm({"paper_id": "x", "title": "X"}, "theirs.yaml")


@pytest.mark.slow
def test_swarms_own_class_reads_what_we_write():
    pytest.importorskip("swarm.scenarios.loader", reason="swarm-safety is not installed: choreo-rl[swarm]")
    # swarm.research wants two packages for its web clients, which reading an annotation does not use.
    code = """
import sys, types, unittest.mock
for name in ("requests", "tenacity", "requests.adapters", "urllib3", "urllib3.util", "urllib3.util.retry"):
    try:
        __import__(name)
    except ImportError:
        sys.modules[name] = unittest.mock.MagicMock(RequestException=Exception)
from swarm.research.annotator import SWARM_METRICS, PaperAnnotation
import yaml
from choreo.swarm import annotations as ours
assert ours.SWARM_METRICS <= SWARM_METRICS
for name in ("waltz", "macpo"):
    annotation = ours.load_annotation(name)
    theirs = PaperAnnotation.from_yaml(yaml.safe_dump(ours.to_swarm(annotation)))
    assert theirs.arxiv_id == annotation.arxiv_id and len(theirs.claims) == len(annotation.claims)
    back = ours.from_swarm(theirs.to_dict())
    assert back.claims == annotation.claims and back.risk_profile == annotation.risk_profile
    assert back.scenarios == annotation.scenarios
    assert back.status == "draft" and not back.roles  # what SWARM has no place for
print("read")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "read\n", done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("    direction: lower\n", "    dircetion: lower\n", "claims.0.dircetion: unknown key; did you mean"),
        ("metric: asr", "metric: acr", "claims.0.metric: expected one of 'toxicity_rate'"),
        ("margin: 0.05", "margin: -1", "claims.0.margin: expected a number >= 0, got -1"),
        ("direction: lower", 'direction: "?"', ":19: claims.0.direction: is '?', and the annotation says that it is c"),
        ("metric: asr", "metric: none", ":16: claims.0.metric: is 'none', and the annotation says that it is curated"),
        ("side: initiator", 'side: "?"', "roles.conversation agent.side: is '?', and"),
        ('"2510.08240"', "2510.08240", ":6: arxiv_id: expected text in quotes, got 2510.0824"),
        ("interaction_density: high", "interaction_density: huge", ":10: risk_profile.interaction_density: expected"),
        ("    note: an interaction here", "    #", "claims.8.note: does not say why the claim is not testable"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path, old, new, said):
    text = (SHIPPED / "waltz.yaml").read_text(encoding="utf-8")
    assert old in text
    file = tmp_path / "mine.yaml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BadInput) as error:
        load_annotation(file)
    assert str(error.value).startswith(f"{file}:") and said in str(error.value)
    with pytest.raises(BadInput, match="did you mean 'waltz'"):
        load_annotation("walz")


# ---- drafts -------------------------------------------------------------------------------------


def test_a_draft_quotes_its_claims_guesses_and_leaves_the_rest_open():
    made = draft(PAPER, "papers/treaty.txt")
    assert made == draft(PAPER, "papers/treaty.txt")
    assert (made.paper_id, made.arxiv_id, made.title) == ("treaty", "2501.01234", "A Treaty of Two Agents")
    found = [(claim.evidence, claim.metric, claim.direction) for claim in made.claims]
    assert found == [
        ("line 5", "asr", "lower"),
        ("line 6", "toxicity_rate_all", "lower"),  # "improves", of a metric in which less is better
        ("line 9", "orr", "same"),
        ("line 10", "ecosystem_collusion_risk", "?"),
    ]
    assert made.claims[0].claim == (
        "We show that a feedback agent reduces unsafe answers from 40 % to 5 % under jailbreaks."
    )
    assert made.status == "draft" and all(claim.arm == claim.baseline == "?" for claim in made.claims)
    assert made.risk_profile.failure_modes == ("collusion", "over_refusal", "jailbreak")
    assert made.risk_profile.assumptions == ("judge_is_right",)
    assert list(made.roles) == ["weak teacher", "feedback agent"]


def test_annotate_prints_a_draft_that_is_read_and_not_yet_curated(capsys, tmp_path):
    paper, file = tmp_path / "treaty.txt", tmp_path / "treaty.yaml"
    paper.write_text(PAPER)
    assert main(["swarm", "annotate", str(paper)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# A draft made by rules.")
    file.write_text(out)
    assert load_annotation(file) == draft(PAPER, str(paper))
    file.write_text(out.replace("status: draft", "status: curated"))
    with pytest.raises(BadInput, match="the annotation says that it is curated"):
        load_annotation(file)
    paper.write_text(" \n")
    assert main(["swarm", "annotate", str(paper)]) == 2
    assert capsys.readouterr().err == f"choreo: {paper}: holds no text\n"


@pytest.mark.parametrize("text", ["x", "\n\n#\n", "We show. " * 500, "A. B! C?\r\n\r\nD", "é" * 40 + " improves. Ω"])
def test_any_text_can_be_drafted_and_read_back(tmp_path, text):
    file = tmp_path / "odd.yaml"
    file.write_text(to_yaml(draft(text, "odd.txt")), encoding="utf-8")
    assert load_annotation(file) == draft(text, "odd.txt")
