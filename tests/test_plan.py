"""`choreo plan`: what it foresees is what is loaded, and nothing is loaded for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from architectures import KINDS, make

from choreo import config
from choreo.cli import main
from choreo.config.common import Weights
from choreo.engine.agent import Team
from choreo.experiment import machine, sizing


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> Path:
    """The configuration of an 8B Llama, and nothing else."""
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("eight")
    LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory) -> list[str]:
    """The settings that name files of prompts in place of those of waltz-8b."""
    folder, settings = tmp_path_factory.mktemp("prompts"), []
    for kind in ("harmful", "benign", "general"):
        rows = [json.dumps({"prompt": f"{kind} prompt number {i}", "kind": kind}) for i in range(60)]
        (folder / f"{kind}.jsonl").write_text("\n".join(rows))
        settings += ["--set", f"prompts.train.{kind}.file={folder / kind}.jsonl"]
    return settings


def planned(capsys, *command: str) -> dict:
    assert main(["plan", *command, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_an_8b_pair_of_adapters_fits_where_whole_models_do_not(eight, prompts, capsys):
    base = ("waltz-8b", *prompts, "--set", f"model.base={eight}", "--memory", "80")
    adapters, whole = planned(capsys, *base), planned(capsys, *base, "--set", "model.train=full")
    [model] = adapters["models"]
    assert model["parameters"] == 8_030_261_248 and model["trained_per_agent"] == 41_943_040
    assert model["memory"]["base"] == 2 * 8_030_261_248
    assert adapters["fits"] is True and whole["fits"] is False
    # Float32 copies and two moments of two agents, in bytes: 2 · (4 + 8) for each parameter.
    assert sum(whole["models"][0]["memory"].values()) == (2 + 24) * 8_030_261_248
    assert adapters["steps"] == 200 and adapters["tokens"] == 200 * 32 * (512 + 256 + 512)


def test_a_judge_in_this_process_takes_its_place(eight, prompts, capsys):
    base = ("waltz-8b", *prompts, "--set", f"model.base={eight}", "--memory", "80", "--set", "judge.kind=wildguard")
    here, there = (
        planned(capsys, *base, "--set", f"judge.model={eight}", "--set", f"judge.url={url}")
        for url in ("", "http://localhost:8000/v1")
    )
    assert here["judges"] == [[str(eight), 4 * 8_030_261_248]] and there["judges"] == []  # it names no precision
    assert here["memory"]["needed"] - there["memory"]["needed"] == 4 * 8_030_261_248


def test_a_plan_says_so_in_words(eight, prompts, capsys):
    assert main(["plan", "waltz-8b", *prompts, "--set", f"model.base={eight}", "--memory", "16"]) == 0
    told = capsys.readouterr().out
    assert "8.03G parameters" in told and "does not fit; what helps" in told and "200" in told


@pytest.mark.parametrize("name", KINDS)
def test_what_is_planned_is_what_is_loaded(name, tmp_path):
    folder = make(name, tmp_path)
    for how in (Weights(rank=2), Weights(train="full"), Weights(rank=2, targets=("v_proj", "query_key_value"))):
        model = sizing.Model.read(str(folder), how)
        team = Team.load(folder, seed=0, **how.loading() | {"device": "cpu"})
        assert model.parameters == sum(p.numel() for p in team.decoder.parameters())
        assert sizing.trainable(model, how) == sum(p.numel() for p in team.agents["feedback"].parameters.values())


@pytest.mark.slow
def test_a_plan_says_which_share_of_a_model_adapters_reach(tmp_path, capsys):
    """Of a mixture of experts the routers are left alone; of any model, what `targets` leaves out."""
    folder = make("moe", tmp_path)
    base = ("waltz", "--set", f"model.base={folder}", "--set", "model.rank=2")
    [model] = planned(capsys, *base)["models"]
    whole = 2 * (2 * 32 * 32 + 2 * 16 * 32 + 4 * 3 * 16 * 32)  # attention, and four experts of three matrices, by hand
    assert model["adapters"] | {"said": ""} == {
        "reached": whole,
        "of": whole + 2 * 4 * 32,
        "share": whole / (whole + 2 * 4 * 32),
        "beyond": ["gate"],
        "said": "",
    }
    each = (2 * (32 + 32) + 2 * (32 + 16)) + 4 * ((32 + 32) + (16 + 32))
    assert model["trained_per_agent"] == 2 * 2 * each
    assert main(["plan", *base]) == 0
    assert "    adapters reach 98.6 % of the weights in its layers, and not gate\n" in capsys.readouterr().out
    [model] = planned(capsys, *base, "--set", 'model.targets=["down_proj"]')["models"]
    assert model["adapters"]["reached"] == 2 * 4 * 16 * 32 and "q_proj" in model["adapters"]["beyond"]
    for more in (["--set", "model.train=full"], ["--set", "model.base=micro-llama"]):
        assert "adapters" not in planned(capsys, *base, *more)["models"][0]


@pytest.mark.slow
def test_training_says_so_too(tmp_path, capsys):
    small = (
        "learning.steps=1",
        "learning.prompts=3",
        "learning.samples=2",
        "protocol.answer_tokens=4",
        "protocol.feedback_tokens=4",
        "world.train_prompts=30",
        "world.heldout_prompts=1",
        "model.rank=2",
    )
    base = make("moe", tmp_path / "base")
    command = ["train", "waltz", "--run", str(tmp_path / "run"), "--json", "--set", f"model.base={base}"]
    assert main([*command, *(word for setting in small for word in ("--set", setting))]) == 0
    told = capsys.readouterr()
    assert f"{base}: adapters reach 98.6 % of the weights in its layers, and not gate\n" in told.err
    assert json.loads(told.out)["adapters"][str(base)]["beyond"] == ["gate"]


def test_the_shipped_macpo_is_planned_without_its_bases_weights(capsys):
    found = planned(capsys, "macpo", "--memory", "8")
    assert [model["agents_of"] for model in found["models"]] == ["student", "teacher-1", "teacher-2", "teacher-3"]
    assert found["fits"] is True and found["steps"] == 1880 + 3 * 752 + 188  # start, three rounds, ceiling: by hand
    assert planned(capsys, "macpo", "--set", "ceiling=false")["steps"] == 1880 + 3 * 752


@pytest.mark.parametrize(
    "name, change, each",
    [
        ("macpo", [], 2 * 56 + 3 * 4 * 56 + 4 * 56),  # start; three rounds of four writers; negatives once
        ("self-rewarding", [], 56 + 3 * 4 * (56 + 3 * 96)),  # drafts, each reviewed three times
        ("confident-loss", [], 56 + 3 * 56),  # its own answers before every epoch but the first
        ("consensus", [], 3 * 56),  # every teacher once
        ("macpo", ["--set", "rounds.negatives=prompt"], 56 + 3 * 4 * 56 + 4 * 2 * 56),  # a first answer, and another
    ],
)
def test_what_macpo_writes_is_counted_by_hand(name, change, each, capsys):
    assert planned(capsys, name, "--set", "ceiling=false", *change)["tokens"] == 3000 * each


def test_a_model_that_is_not_here_is_bad_input(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["plan", "macpo-7b"]) == 2
    assert "not here, and the hub is not asked" in capsys.readouterr().err


def test_a_recipe_for_a_real_model_says_which_file_it_wants(capsys):
    assert main(["train", "waltz-8b"]) == 2
    assert "harmful.jsonl: " in capsys.readouterr().err


def test_recipes_for_real_models_have_the_published_learning():
    waltz, macpo = config.load("waltz-8b"), config.load("macpo-7b")
    assert (waltz.learning.lr, waltz.learning.clip, waltz.learning.beta) == (5e-7, 0.2, 0.01)
    assert waltz.learning.prompts * waltz.learning.samples == 32
    assert (waltz.rewards.dir, waltz.rewards.alpha, waltz.rewards.gamma) == ("published", 0.65, 0.1)
    assert (macpo.tuning.lr, macpo.rounds.lr, macpo.rounds.beta, macpo.rounds.sft) == (5e-5, 1e-5, 0.1, 0.2)
    for recipe in (waltz, macpo):  # real models are not judged by the microworld, nor measured on it
        assert recipe.judge.kinds() == {"wildguard"} and (recipe.prompts.heldout or recipe.prompts.train)
    assert (macpo.agents.targets, macpo.agents.rank, macpo.agents.alpha) == (("q_proj", "v_proj"), 8, 16.0)


def test_bfloat16_is_advised_where_the_cpu_has_it_and_the_model_is_large():
    able, unable = {"avx512_bf16": True}, {"avx512_bf16": False, "avx2": True}
    said = sizing.quicker("m", 135_000_000, Weights(), able)
    assert said.startswith("m: this CPU") and 'dtype = "bfloat16"' in said
    assert sizing.quicker("m", 135_000_000, Weights(), unable) == ""
    assert sizing.quicker("m", 3_000_000, Weights(), able) == ""
    assert sizing.quicker("m", 135_000_000, Weights(dtype="bfloat16"), able) == ""


CARD = ("--peak", "1000", "--utilisation", "0.5", "--bandwidth", "2000", "--link", "100")


def test_a_pair_on_a_card_on_four_and_what_does_not_fit(eight, prompts, capsys):
    base = ("waltz-8b", *prompts, "--set", f"model.base={eight}", "--memory", "80", *CARD, "--price", "2")
    one = planned(capsys, *base)["cost"]
    assert one["devices"] == {"train": 1, "sample": 0, "judge": 1} and one["traffic"]["gradients"] == 0
    assert one["money"] == pytest.approx(2 * 2 * sum(one["seconds"].values()) / 3600)
    assert one["device"]["measured"] is False
    served = ("--set", "engine.rollouts=vllm", "--set", 'engine.url=["http://a:1","http://b:1","http://c:1"]')
    four = planned(capsys, *base, *served, "--gpus", "2", "--nodes", "2")["cost"]
    assert four["devices"] == {"train": 4, "sample": 3, "judge": 1}
    updates = 200 + 170  # the conversation agent does not learn in stage 1
    assert four["traffic"]["gradients"] == pytest.approx(updates * 1.5 * 4 * 41_943_040)
    assert four["traffic"]["adapters"] == updates * 3 * 4 * 41_943_040
    twice = planned(capsys, *base, *served, "--gpus", "2", "--nodes", "2", "--set", "learning.epochs=2")["cost"]
    assert twice["traffic"]["gradients"] == pytest.approx(2 * four["traffic"]["gradients"])
    assert twice["traffic"]["adapters"] <= 2 * 200 * 3 * 4 * 41_943_040  # once a step, not once an update
    assert four["seconds"]["learn"] < one["seconds"]["learn"] / 3
    started = ("--set", "engine.rollouts=vllm", "--set", "engine.command=no-such-program serve")  # it may be there
    assert planned(capsys, *base, *started)["cost"]["devices"] == {"train": 1, "sample": 1, "judge": 1}
    whole = planned(capsys, *base, "--set", "model.train=full")
    assert whole["fits"] is False and whole["cost"]["seconds"] is None and whole["cost"]["money"] is None


@pytest.mark.parametrize(
    "settings",
    [
        ("learning.prompts=200", "world.train_prompts=20"),
        ("protocol.answer_tokens=600",),
        ('prompts.train={"mine": {"file": "HARMFUL"}}', "judge.kind=offline"),
        ("judge.kind=offline", "judge.weights=nothing.json"),
        ("model.base=nothing",),
        ("prompts.train.mine.file=nothing.jsonl", "judge.kind=offline"),
    ],
)
def test_a_plan_refuses_what_training_refuses(settings, prompts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    harmful = prompts[1].partition("=")[2]
    words = [word for setting in settings for word in ("--set", setting.replace("HARMFUL", harmful))]
    said = []
    for command in ("plan", "train"):
        assert main([command, "waltz", *words]) == 2
        said.append(capsys.readouterr().err)
    assert said[0] == said[1] != ""


def test_a_plan_loads_no_weights(tmp_path, capsys):
    """Half of a file of weights is missing: its header is there, which is all that a plan reads."""
    folder = make("llama", tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(len(whole) // 2)
        file.write(b"\xff" * (len(whole) - len(whole) // 2))  # numbers that are not finite
    words = ["waltz", "--set", f"model.base={folder}", "--set", "model.rank=2"]
    assert planned(capsys, *words)["fits"] is True
    assert main(["train", *words, "--run", str(tmp_path / "run")]) == 2
    assert "not finite" in capsys.readouterr().err


@pytest.mark.slow
def test_constants_are_measured_and_read(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(machine, "WIDTHS", (64, 128))  # a CPU without bfloat16 takes ten seconds for one of 2048
    monkeypatch.setattr(machine, "SECONDS", 0.05)
    file = tmp_path / "machine.json"
    assert main(["bench", "machine", "--out", str(file)]) == 0
    assert "GFLOP/s by width" in capsys.readouterr().out
    found = planned(capsys, "waltz", "--machine", str(file))["cost"]
    assert found["device"]["measured"] is True and 0 < found["seconds"]["learn"] < 1e6
    half = planned(capsys, "waltz", "--machine", str(file), "--written", "0.5")["cost"]
    assert half["seconds"]["learn"] < found["seconds"]["learn"]
    assert main(["bench", "machine", "--out", str(file)]) == 2
    assert "is there already" in capsys.readouterr().err
    file.write_text("{}")
    assert main(["plan", "waltz", "--machine", str(file)]) == 2
    assert f"{file}: not what" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (("--peak", "989"), "--peak goes with --utilisation; nothing is assumed"),
        (("--price", "2"), "--price needs a time"),
        (("--link", "2"), "--link goes with"),
        ((*CARD, "--machine", "m.json"), "give one of them"),
        (("--written", "2"), "--written: expected a share"),
        (("--gpus", "0"), "--gpus: expected a whole number"),
    ],
)
def test_a_card_is_described_whole_or_not(words, said, capsys):
    assert main(["plan", "waltz", *words]) == 2
    assert said in capsys.readouterr().err
