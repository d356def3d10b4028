"""Both methods on real architectures at tiny size, adapters and full weights, and the invariants of their gradients."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from architectures import EXPERTS, KINDS, experts, make
from peft import PeftModel
from transformers import AutoModelForCausalLM

from choreo.engine import agent as engine_agent
from choreo.engine.agent import Team
from choreo.engine.export import export
from choreo.engine.learner import Learner
from choreo.engine.local import LocalEngine
from choreo.engine.losses import PolicyLoss
from choreo.engine.policies import make_adaptable
from choreo.engine.requests import Request
from choreo.environments.microworld.world import World
from choreo.errors import BadInput
from choreo.methods.macpo import trainer as macpo
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.split import split_prompts, without_overflow
from choreo.methods.waltz import trainer as waltz
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.runs.bar import ProgressBar
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Sample

EVERY = [(name, train) for name in KINDS for train in ("lora", "full")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: make(name, tmp_path_factory.mktemp(name)) for name in KINDS}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def macpo_recipe(teacher: Path, student: Path, **sections) -> MacpoRecipe:
    return MacpoRecipe.model_validate(
        {
            "ceiling": False,
            "world": {"train_prompts": 30, "heldout_prompts": 2},
            "agents": {"teachers": (str(teacher),), "student": str(student), "rank": 2},
            "data": {"labels": 3, "prompts": 3},
            "tuning": {"epochs": 1, "negative_epochs": 1, "batch": 3, "lr": 1e-3},
            "rounds": {"count": 1, "epochs": 1, "batch": 3, "lr": 1e-3, "refusals": "any", "rehearse": 0},
            "writing": {"answer_tokens": 6},
            **sections,
        }
    )


def waltz_recipe(base: Path, protocol: dict | None = None, **model) -> WaltzRecipe:
    return WaltzRecipe.model_validate(
        {
            "world": {"train_prompts": 30, "heldout_prompts": 2},
            "model": {"base": str(base), "rank": 2, **model},
            "protocol": {"answer_tokens": 6, "feedback_tokens": 8, **(protocol or {})},
            "stages": {"stage1_share": 0.5},
            "learning": {"steps": 2, "prompts": 3, "samples": 2, "lr": 1e-2},
        }
    )


@pytest.mark.numeric
@pytest.mark.parametrize("name, train", EVERY)
def test_waltzrl_trains(name, train, folders, tmp_path):
    recipe = waltz_recipe(folders[name], train=train)
    with Run.create(tmp_path / "run", recipe) as run, Progress() as progress:
        pair = waltz.train(recipe, run, progress)
    rows = lines(tmp_path / "run")
    assert [row["stage"] for row in rows] == [1, 2]
    assert pair.team("feedback").version == {"conversation": 1, "feedback": 2}
    assert rows[0]["ratio/feedback"] < 1e-4 and rows[1]["ratio/conversation"] < 1e-4  # the sampler's π_old, to rounding
    assert abs(rows[0]["kl/feedback"]) < 1e-6 < rows[1]["kl/feedback"]


@pytest.mark.parametrize("name, train", EVERY)
def test_macpo_trains(name, train, folders, tmp_path):
    """Its teacher is of another architecture, with another tokenizer."""
    other = folders["llama" if name != "llama" else "qwen"]
    agents = {"teachers": (str(other),), "student": str(folders[name]), "rank": 2, "train": train}
    recipe = macpo_recipe(other, folders[name], agents=agents)
    with Run.create(tmp_path / "run", recipe) as run, Progress() as progress:
        *_, (number, loaded) = macpo.train(recipe, run, progress)
    rows = lines(tmp_path / "run")
    assert number == 1 and [row["agent"] for row in rows if row["round"] == 1] == ["student+", "teacher-1+"]
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in rows)
    assert loaded.student.team.version == {"student+": 2, "student-": 2}


def samples(team: Team, seed: int = 3) -> list[Sample]:
    """On-policy samples on contexts with common beginnings."""
    rng = random.Random(seed)
    beginning = tuple(rng.randrange(10, 300) for _ in range(8))
    contexts = [beginning + tuple(rng.randrange(10, 300) for _ in range(n)) for n in (1, 4, 4, 9)]
    engine = LocalEngine(team, pad_id=0, end_id=1)
    requests = [Request(context, (seed, i)) for context in contexts for i in range(3)]
    done = engine.sample("conversation", requests, max_new_tokens=7)
    pairs = [(request.context, c.ids) for request, c in zip(requests, done, strict=True)]
    scores = engine.score(None, pairs)
    return [
        Sample(
            "conversation",
            request.context,
            c.ids,
            c.logprobs,
            "",
            0.0,
            {},
            score,
            tuple(rng.gauss(0, 1) for _ in c.ids),
        )
        for request, c, score in zip(requests, done, scores, strict=True)
    ]


def gradient(team: Team, given: list[Sample], micro_tokens: int = 10**6) -> torch.Tensor:
    learner = Learner(team, "conversation", lr=1e-3, micro_tokens=micro_tokens)
    return torch.cat([g.flatten().float() for g in learner.gradient(given, PolicyLoss(kl=0.1))])


def agitated(folder: Path, **settings) -> Team:
    team = Team.load(folder, seed=3, **{"rank": 4, **settings})
    generator = torch.Generator().manual_seed(5)
    for agent in team.agents.values():
        for name, value in agent.parameters.items():
            if settings.get("train") == "full" or name.endswith("lora_B"):
                value.data += 0.02 * torch.randn(value.shape, generator=generator)
    return team


@pytest.mark.numeric
@pytest.mark.parametrize("name, train", EVERY)
def test_gradients_do_not_depend_on_micro_batches_sharing_or_recomputation(name, train, folders):
    team = agitated(folders[name], train=train)
    given = samples(team)
    whole = gradient(team, given)
    assert whole.norm() > 1e-3
    team.full_attention, team.window = False, None
    plain = gradient(team, given, micro_tokens=1)
    again = gradient(agitated(folders[name], train=train, recompute=True), given, micro_tokens=100)
    for other in (plain, again):
        torch.testing.assert_close(other, whole, rtol=1e-3, atol=2e-5 * whole.abs().max().item())


@pytest.mark.numeric
@pytest.mark.parametrize("name", KINDS)
def test_adapters_beside_a_bfloat16_base_are_learnt_in_float32(name, folders):
    """The gradient is that of merged weights in float32 to the precision of bfloat16, and a tiny step is not lost."""
    exact = agitated(folders[name])
    given = samples(exact)
    rough = agitated(folders[name], dtype="bfloat16")
    a, b = gradient(exact, given), gradient(rough, given)
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.98
    before = [value.detach().clone() for value in rough.agents["conversation"].parameters.values()]
    assert {value.dtype for value in before} == {torch.float32}
    Learner(rough, "conversation", lr=1e-7).update(samples(rough), PolicyLoss())
    after = rough.agents["conversation"].parameters.values()
    assert all(not torch.equal(x, y) for x, y in zip(before, after, strict=True))


@pytest.mark.numeric
def test_full_weights_over_bfloat16_are_kept_in_float32(folders):
    team = Team.load(folders["llama"], train="full", dtype="bfloat16")
    metrics = Learner(team, "feedback", lr=1e-7).update(
        [dataclasses.replace(sample, agent="feedback") for sample in samples(team)], PolicyLoss()
    )
    assert metrics["grad_norm"] > 0
    own = team.agents["feedback"].parameters["model.layers.0.mlp.up_proj.weight"]
    base = team.decoder.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    assert own.dtype == torch.float32 and base.dtype == torch.bfloat16
    assert not torch.equal(own, base.float()) and torch.equal(own.bfloat16(), base)


def test_adapters_go_where_the_recipe_says(folders):
    endings = ("q_proj", "v_proj", "query_key_value")  # of several architectures at once, as MACPO's teachers are
    for name, expected in {"llama": 4, "gemma": 4, "neox": 2}.items():
        assert len(Team.load(folders[name], targets=endings).agents["feedback"].targets) == expected
    with pytest.raises(BadInput, match="no linear layer called c_attn; it has dense, dense_4h_to_h"):
        Team.open(folders["neox"], targets=("c_attn",))


@pytest.mark.numeric
@pytest.mark.parametrize("name", KINDS)
def test_adapters_beside_a_float32_base_are_merged_ones_to_rounding(name, folders, monkeypatch):
    """As a wide base has them: the same gradient, and what is sampled has the log-probabilities that are scored."""
    merged = agitated(folders[name])
    monkeypatch.setattr(engine_agent, "BESIDE", 1)
    beside = agitated(folders[name])
    assert any("lora_A" in weight for weight in beside.weights("conversation"))
    assert not any("lora_A" in weight for weight in merged.weights("conversation"))
    given = samples(merged)
    a, b = gradient(merged, given), gradient(beside, given)
    torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5 * a.abs().max().item())
    written = samples(beside)
    scored = LocalEngine(merged, pad_id=0, end_id=3).score("conversation", [(s.context, s.ids) for s in written])
    for sample, told in zip(written, scored, strict=True):
        assert sample.logprobs == pytest.approx(told, abs=3e-5)


@pytest.mark.numeric
@pytest.mark.parametrize("name", EXPERTS)
def test_every_expert_is_adapted_as_peft_adapts_it(name, tmp_path):
    """Logits and gradient are those of the exported adapter in PEFT, and of merged weights; what was sampled has the
    log-probabilities that transformers gives. Before anything is learnt all is as the base."""
    folder, ids = experts(name, tmp_path / "base"), torch.tensor([[5, 6, 7, 8, 9, 40, 41, 42]])
    base = AutoModelForCausalLM.from_pretrained(folder).eval()
    fresh = Team.load(folder, rank=2)
    for team in (fresh, Team.load(folder, rank=2, dtype="bfloat16")):
        begun, reference = (team.run(team.weights(who), {"input_ids": ids})[0] for who in ("conversation", None))
        assert torch.equal(begun, reference)
    assert torch.equal(logits(fresh, ids), base(ids).logits[0])

    team = agitated(folder)
    policy = team.agents["conversation"]
    adapted = {layer.weight for layer in policy.targets}
    stacks = {name for name, value in base.named_parameters() if value.dim() == 3}
    assert len(stacks) > 1 and stacks <= adapted and not any("router" in w or "gate.weight" in w for w in adapted)
    export(team, "conversation", tmp_path / "adapter")
    export(team, "conversation", tmp_path / "whole", merged=True)
    tuned = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True).eval()
    whole = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()
    ours, theirs = logits(team, ids), tuned(ids).logits[0]
    assert (ours - logits(team, ids, None)).abs().max() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=0, atol=3e-5)
    torch.testing.assert_close(ours, whole(ids).logits[0], rtol=0, atol=3e-5)

    (ours * (probe := torch.randn(ours.shape, generator=torch.Generator().manual_seed(1)))).sum().backward()
    (theirs * probe).sum().backward()
    peft = {name.replace(".default", ""): p.grad for name, p in tuned.named_parameters() if p.grad is not None}
    of_ours = {name: p.grad for name, p in policy.parameters.items()}
    assert len(peft) == len(of_ours)
    norms = [sorted(g.norm().item() for g in gradients.values()) for gradients in (peft, of_ours)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)

    for sample in samples(team):
        with torch.no_grad():
            rows = whole(torch.tensor([sample.context + sample.ids])).logits[0].log_softmax(-1)
        told = rows[len(sample.context) - 1 : -1].gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(sample.logprobs), told, rtol=0, atol=3e-5)

    make_adaptable(team.decoder.model, policy.targets)  # A and B beside the weights, as over a bfloat16 base
    torch.testing.assert_close(logits(team, ids), ours, rtol=0, atol=3e-5)


def logits(team: Team, ids: torch.Tensor, agent: str | None = "conversation") -> torch.Tensor:
    hidden, head = team.run(team.weights(agent), {"input_ids": ids})
    return head.logits(hidden)


def test_a_device_that_is_not_here_is_said(folders):
    missing = next(d for d in ("mps", "cuda") if not getattr(torch, d).is_available())
    with pytest.raises(BadInput, match=f'device = "{missing}": there is none here'):
        Team.open(folders["llama"], device=missing)


def test_what_overflows_the_positions_is_left_out_and_said(folders, tmp_path, capsys):
    recipe = waltz_recipe(folders["qwen"], {"answer_tokens": 150, "feedback_tokens": 8})
    pair = Pair(recipe)
    with Progress([ProgressBar()]) as progress:
        prompts = World(recipe.world).training()["harmful"]
        said = (("user", prompts[0].text * 40), ("assistant", "No."))
        before = dataclasses.replace(prompts[0], earlier=said)
        long = [dataclasses.replace(prompts[0], text=prompts[0].text * 40), before, *prompts]
        assert pair.fitting(long, "training", progress) == prompts
        assert "training: 2 of" in capsys.readouterr().err
        with pytest.raises(BadInput, match="no prompt fits: the shortest"):
            pair.fitting(long[:1], "training", progress)
    with pytest.raises(BadInput, match="overflow the model's 1024 positions"):
        pair.agents["feedback"].engine.sample("feedback", [Request((5,) * 1012, (0,))], max_new_tokens=13)


@pytest.mark.numeric
def test_rows_that_overflow_some_members_model_are_left_out_and_counted(folders):
    recipe = macpo_recipe(folders["llama"], folders["qwen"])
    loaded, data = macpo.MacpoAgents.load(recipe), split_prompts(recipe)
    assert without_overflow(recipe, data, loaded) == data
    labelled = dataclasses.replace(data.labelled[0], chosen=data.labelled[0].chosen * 100)
    prompt = dataclasses.replace(data.unlabelled[1], text=data.unlabelled[1].text * 40)
    longer = dataclasses.replace(
        data, labelled=(labelled, *data.labelled[1:]), unlabelled=(data.unlabelled[0], prompt, data.unlabelled[2])
    )
    kept = without_overflow(recipe, longer, loaded)
    assert kept.labelled == data.labelled[1:] and kept.unlabelled == (data.unlabelled[0], data.unlabelled[2])
    assert kept.counts == {"overflow a model's positions": 2}
    with pytest.raises(BadInput, match="every unlabelled prompt overflows"):
        without_overflow(recipe, dataclasses.replace(longer, unlabelled=(prompt,)), loaded)
