"""Studies on SWARM: generated scenarios, the runs that a study takes, and studies from end to end on tiny agents."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from choreo import config
from choreo.cli import main
from choreo.errors import BadInput
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import train
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.swarm.annotations import load_annotation, to_yaml

yaml = pytest.importorskip("yaml", reason="choreo-rl[swarm] brings PyYAML")


def test_a_probe_is_fitted_on_so_many_steps_and_no_more():
    pytest.importorskip("torch")
    from choreo.studies.swarm.shared.answers import spaced

    assert [len(spaced(range(n), 200)) for n in (0, 1, 200, 201, 399, 400, 401, 1000)] == [
        0,
        1,
        200,
        101,
        200,
        200,
        134,
        200,
    ]
    assert list(spaced(range(5), 2)) == [0, 3]


# ---- generated scenarios ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["waltz", "macpo"])
def test_a_generated_scenario_passes_its_own_validation(tmp_path, capsys, name):
    from choreo.swarm.generate import generate
    from choreo.swarm.scenario import load_scenario

    assert main(["swarm", "generate", name, "--seed", "7"]) == 0
    file = tmp_path / "made.yaml"
    file.write_text(capsys.readouterr().out, encoding="utf-8")
    made, annotation = load_scenario(file), load_annotation(name)
    assert made == generate(annotation, 7) and made.simulation.seed == 7
    played = {role for role, part in annotation.roles.items() if part.agent != "none"}
    assert {group.role for group in made.agents} == played
    assert all(group.type == annotation.roles[group.role].agent for group in made.agents)
    levers = made.governance
    assert levers.circuit_breaker_enabled and levers.collusion_detection_enabled == (name == "macpo")
    assert levers.security_enabled == (name == "waltz")


def test_a_draft_has_to_be_finished_before_it_becomes_a_scenario(tmp_path, capsys):
    paper, draft = tmp_path / "p.txt", tmp_path / "p.yaml"
    paper.write_text("# T\n\nWe show that a weak teacher improves. " + "The weak teacher talks. " * 3)
    assert main(["swarm", "annotate", str(paper)]) == 0
    draft.write_text(capsys.readouterr().out)
    assert main(["swarm", "generate", str(draft)]) == 2
    assert "roles.weak teacher.agent: is '?'; a person has to fill it in first" in capsys.readouterr().err


# ---- runs that a study takes ----


def test_trainings_of_one_study_repeat_one_recipe():
    from choreo.studies.swarm.shared.recipes import refuse_unlike

    one = WaltzRecipe()
    again = one.model_copy(update={"seed": 1, "name": "again"})
    split = one.model_copy(update={"world": one.world.model_copy(update={"split_seed": 5})})
    refuse_unlike({Path("a"): one, Path("b"): again, Path("c"): split})
    longer = again.model_copy(update={"learning": one.learning.model_copy(update={"steps": 7})})
    with pytest.raises(BadInput, match=r"^b: differs from a in learning.steps;"):
        refuse_unlike({Path("a"): one, Path("b"): longer})
    with pytest.raises(BadInput, match=r"^b: has the seed and the split of a;"):
        refuse_unlike({Path("a"): one, Path("b"): one.model_copy(update={"name": "copied"})})


def test_only_macpo_as_it_ships_goes_without_a_prefix(tmp_path):
    pytest.importorskip("torch")
    from choreo.studies.swarm import macpo

    def named(name="macpo", **tables):
        return macpo.way(MacpoRecipe.model_validate({"name": name, **tables}))

    assert named() == named("mine", seed=4, world={"split_seed": 3}, ceiling=False, watch={"stop": True}) == ""
    assert named(agents={"teachers": ("weak-qwen",)}) == "k1_"
    assert named(rounds={"positives": "self", "teachers_learn": False}) == "no_mutual_positives_frozen_teachers_"
    assert (
        named(rounds={"refusals": "as-labelled", "rehearse": 1}) == "as_labelled_rehearsal_"
        and named(rounds={"keep": 3}) == "no_filter_"
    )
    assert named("spin", rounds={"positives": "weak", "negatives": "self"}) == "spin_"
    assert named(rounds={"beta": 0.2}) == "macpo_" and named("hot-sft", tuning={"lr": 0.1}) == "hot_sft_"
    assert named("big", agents={"teachers": ("nano-llama", "micro-llama")}, rounds={"negatives": "none"}) == (
        "no_hard_negatives_big_"
    )
    run = tmp_path / "run"
    (run / "checkpoints" / "step-000001").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "recipe.toml").write_text('method = "macpo"\nname = "x"\n[rounds]\nreference = "sft"\n')
    with pytest.raises(BadInput, match=r"its rounds.reference is 'sft', and this study scores against the base alone"):
        macpo.arms([run], tmp_path, None)


def test_damaged_files_of_a_study_are_named(tmp_path):
    from choreo.studies.swarm.shared import folder, results

    played, finished = tmp_path / "played.jsonl", tmp_path / "results.json"
    for text in ('{"digest": "x"}\n', "[]\n", '{"digest": "x", "seed": 0, "figures": 3}\n', '{"dig\n{}\n', "\u00ff\n"):
        played.write_text(text, encoding="latin-1")
        with pytest.raises(BadInput, match=r"played.jsonl: is damaged"):
            folder.play_all(tmp_path, [], [], None, 1)
    for text in ("", "[]", "{}", '{"results": []}', '{"results": {"x": {"g": {"0": 3}}}}'):
        finished.write_text(text)
        with pytest.raises(BadInput, match=r"results.json: not what a SWARM study writes") as error:
            results.load(tmp_path)
        assert "\n" not in str(error.value)


# ---- a study from end to end --------------------------------------------------------------------

MINE = """
scenario_id: mine
agents: [{type: honest, count: 2}, {type: adversarial, count: 1}]
simulation: {n_epochs: 3, steps_per_epoch: 6, seed: 1}
governance: {transaction_tax_rate: 0.05, collusion_detection_enabled: true}
"""


@pytest.fixture
def simulator():
    pytest.importorskip("swarm.core.orchestrator", reason="swarm-safety is not installed: choreo-rl[swarm]")


@pytest.mark.slow
def test_governance_from_a_scenario_to_a_cited_page_and_on_after_a_stop(tmp_path, capsys, simulator):
    mine, out = tmp_path / "mine.yaml", tmp_path / "out"
    mine.write_text(MINE)
    command = ["swarm", "study", "governance", str(mine), "--out", str(out), "--seeds", "0-2", "--json"]
    assert main(command) == 0
    said, err = capsys.readouterr()
    report = json.loads(said.splitlines()[-1])
    assert f"plan: sha256 {report['plan']['digest']}" in err.splitlines()[0]
    assert report["seeds"] == [0, 1, 2] and len(report["arms"]) == 8 and len(report["citations"]) == 3
    assert {c["verdict"] for c in report["claims"]} <= {"supported", "refuted", "inconclusive", "not testable"}
    assert {c["scope"] for c in report["claims"]} == {""}  # another seed is another world of scripted agents
    rows = (out / "played.jsonl").read_text().splitlines()
    page, text = (out / "study.html").read_text(), (out / "study.md").read_text()
    for words in ("2604.19752", "swarm-ai-safety/swarm", "swarm-ai-research/swarm", report["plan"]["digest"]):
        assert words in page and words in text
    assert not re.search(r'(src|href)="https?:', page) and page.count("<svg ") == 3 and "<image" not in page
    # A run killed in the middle: what is there is kept, what is missing is played, and all comes out the same.
    (out / "played.jsonl").write_text("\n".join([*rows[:5], rows[5][:40]]))  # the sixth line is torn
    (out / "results.json").unlink()
    assert main(["swarm", "report", str(out)]) == 2
    assert "holds no finished SWARM study" in capsys.readouterr().err
    assert main(command) == 2 and "already exists" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again == report and len((out / "played.jsonl").read_text().splitlines()) == len(rows)
    assert main([*command, "--resume"]) == 0  # and once more: the torn line is in nobody's way
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == report
    # Other seeds than planned: the first plan's hash stays, and every verdict is exploratory.
    assert main(["swarm", "study", "governance", str(mine), "--out", str(out), "--seeds", "0-1", "--resume"]) == 0
    capsys.readouterr()
    assert main(["swarm", "report", str(out), "--json"]) == 0
    later = json.loads(capsys.readouterr().out)
    assert later["plan"]["digest"] == report["plan"]["digest"] and later["plan"]["changes"] == ["seeds changed"]
    assert all(c["exploratory"] for c in later["claims"])


@pytest.fixture
def short(monkeypatch):
    """Generated scenarios of a few steps."""
    from choreo.swarm import generate

    for density in generate.LENGTH:
        monkeypatch.setitem(generate.LENGTH, density, (2, 5))


@pytest.mark.slow
def test_a_trained_pair_is_put_among_users_and_attackers(tmp_path, capsys, simulator, short):
    run, out = tmp_path / "pair", tmp_path / "out"
    small = (
        "learning.steps=1",
        "learning.prompts=6",
        "learning.samples=2",
        "world.heldout_prompts=5",
        "world.train_prompts=60",
    )
    recipe = config.load("waltz", small)
    with Run.create(run, recipe) as made, Progress() as progress:
        train(recipe, made, progress)
    command = ["swarm", "study", "waltz", str(run), "--out", str(out), "--seeds", "0,1", "--json"]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    plain = {"no_feedback", "trained_alone", "adaptive", "adaptive_untrained", "always_on", "moderator", "refinery"}
    assert plain | {"adaptive (rework .2)", "adaptive, breaker 0.35, security on"} <= set(report["arms"])
    found = {arm: {name: mean["value"] for name, mean in row.items()} for arm, row in report["arms"].items()}
    assert found["always_on"]["ftr"] > found["adaptive"]["ftr"]
    assert all(0 <= row["harm_accepted"] <= 1 and row["undetermined"] >= 0 for row in found.values())
    assert found["moderator"]["asr"] == found["no_feedback"]["asr"]
    assert found["refinery"]["acceptance_rate"] < found["no_feedback"]["acceptance_rate"]
    last = report["claims"][-1]
    assert not last["testable"] and last["verdict"] == "not testable"
    assert {c["scope"] for c in report["claims"] if c["difference"]} == {"about this run and these prompts"}
    assert report["calibration"]["pair/adaptive"]["n"] > 0
    assert len(list((out / "answers").iterdir())) == 5
    text = (out / "study.md").read_text()
    assert "How good the judge of p is" in text and "Brier" in text and "What the exact judge says" in text
    assert "| toxicity | the same by the exact judge |" in text and "| ASR | left open | ORR |" in text


@pytest.mark.slow
def test_a_student_is_put_before_its_teachers_round_by_round(tmp_path, capsys, simulator, short):
    run, out = tmp_path / "crew", tmp_path / "out"
    small = (
        'agents.teachers=["nano-llama", "nano-llama"]',
        "agents.student=nano-llama",
        "ceiling=false",
        "data.labels=12",
        "data.prompts=12",
        "tuning.epochs=1",
        "rounds.count=1",
        "world.heldout_prompts=5",
        "world.train_prompts=60",
        "world.reading=false",
    )
    assert main(["train", "macpo", "--run", str(run), *(x for s in small for x in ("--set", s))]) == 0
    capsys.readouterr()
    assert main(["swarm", "study", "macpo", str(run), "--out", str(out), "--seeds", "0,1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(report["arms"]) == {"macpo_round_0", "macpo_round_1"}  # altered, so it is not the published MACPO
    assert all(0 <= report["arms"][arm]["poor_accepted"]["value"] <= 1 for arm in report["arms"])
    assert {c["verdict"] for c in report["claims"]} == {"not testable"}
    assert report["claims"][0]["why"] == "no run gives round_3 and round_0"
    assert len(list((out / "answers").iterdir())) == 4  # the student and its twin, after the start and round 1
    assert main(["swarm", "study", "waltz", str(run), "--out", str(tmp_path / "other")]) == 2
    assert "is a run of macpo, and this study takes runs of waltz" in capsys.readouterr().err


def test_claims_of_ones_own_are_about_arms_that_are_played(tmp_path):
    from choreo.studies.swarm import governance, waltz
    from choreo.studies.swarm.shared.study import annotated_claims, refuse_unknown_arms

    file = tmp_path / "mine.yaml"
    file.write_text(to_yaml(load_annotation("waltz")), encoding="utf-8")
    claims = annotated_claims("waltz", waltz, file)
    assert claims == load_annotation("waltz").claims and annotated_claims("waltz", waltz, None) == ()
    known = ["no_feedback", "adaptive", "adaptive_untrained", "always_on", "refinery"]
    refuse_unknown_arms(file, claims, known)
    with pytest.raises(BadInput, match=r"claims.3.baseline: no run gives 'refinery'"):
        refuse_unknown_arms(file, claims, known[:-1])
    with pytest.raises(BadInput, match="study governance has claims of its own"):
        annotated_claims("governance", governance, file)
    file.write_text(file.read_text().replace("status: curated", "status: draft"))
    with pytest.raises(BadInput, match="has no finished claims"):
        annotated_claims("waltz", waltz, file)


def test_bad_input_to_a_study_is_one_line(tmp_path, capsys, simulator):
    for argv, said in (
        (["study", "waltz", "--out", str(tmp_path / "a")], "give one run folder or more"),
        (["study", "waltz", str(tmp_path / "no"), "--out", str(tmp_path / "a")], "no such run folder"),
        (["study", "governance", "nothing", "--out", str(tmp_path / "a")], "no shipped scenario has this name"),
        (
            ["study", "governance", "waltz_draft", "waltz_draft", "--out", str(tmp_path / "a")],
            "waltz_draft: scenario_id is waltz_draft, as in waltz_draft; each scenario of a study needs one of its own",
        ),
        (["study", "governance", "--seeds", "3", "--out", str(tmp_path / "a")], "give 2 or more, better ten"),
        (["study", "governance", "--seeds", "4-2"], "--seeds: expected different whole numbers"),
        (["generate", "walz"], "did you mean 'waltz'"),
    ):
        assert main(["swarm", *argv]) == 2
        assert said in (err := capsys.readouterr().err) and err.count("\n") == 1
