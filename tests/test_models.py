"""A folder that a user names and that holds no whole model: one line that names the file, exit code 2, nothing made."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from architectures import EXPERTS, experts, make
from macpo import recipe as macpo_recipe
from macpo import run_through
from safetensors.torch import load_file, save_file

from choreo.cli import main
from choreo.engine import checkpoint
from choreo.engine.agent import Team
from choreo.engine.decoder import Decoder
from choreo.errors import BadInput, opening
from choreo.judges.formats.wildguard import WildGuard
from choreo.judges.local import LocalJudge
from choreo.judges.offline.model import Weights
from choreo.methods.macpo import run as macpo_run
from choreo.methods.macpo.generation_cache import GenerationCache
from choreo.methods.macpo.trainer import train as train_macpo
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.trainer import restore, train
from choreo.models import model_folder
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress

W, C, T = "model.safetensors", "config.json", "tokenizer.json"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123\n"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return make("qwen", tmp_path_factory.mktemp("good"))


def weights(change: Callable[[dict], dict]) -> Callable[[Path], object]:
    return lambda f: save_file(change(load_file(f / W)), f / W, metadata={"format": "pt"})


def settings(name: str = C, **changed: object) -> Callable[[Path], object]:
    return lambda f: (f / name).write_text(json.dumps(json.loads((f / name).read_text()) | changed))


def instead(name: str, content: str | bytes) -> Callable[[Path], object]:
    """`content` in place of a file; of weights as safetensors too, where the file is another kind of them."""

    def go(f: Path) -> None:
        if name.endswith(".bin"):
            (f / W).unlink()
        (f / name).write_bytes(content.encode() if isinstance(content, str) else content)

    return go


def parts(f: Path) -> None:
    (f / W).rename(f / "model-00001-of-00002.safetensors")
    names = dict.fromkeys(load_file(f / "model-00001-of-00002.safetensors"), "model-00001-of-00002.safetensors")
    names["model.norm.weight"] = "model-00002-of-00002.safetensors"
    (f / model_folder.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "random": (instead(W, bytes(range(256)) * 9), f"{W}: no safetensors: its header cannot be read"),
    "page": (instead(W, "<!DOCTYPE html><html>Not found</html>"), f"{W}: no safetensors: it is a web page"),
    "lfs": (instead(W, LFS), f"{W}: no safetensors: it is a Git LFS pointer"),
    "empty": (instead(W, b""), f"{W}: no safetensors: it is empty"),
    "cut off": (lambda f: os.truncate(f / W, 90_000), f"{W}: is not whole: it has 90000 bytes"),
    "missing": (
        weights(lambda w: {n: v for n, v in w.items() if "layers.1.mlp.up" not in n}),
        "lack model.layers.1.mlp.up_proj.weight",
    ),
    "renamed": (weights(lambda w: {f"x.{n}": v for n, v in w.items()}), "lack lm_head.weight and 24 more"),
    "shape": (
        weights(lambda w: {n: v[:5].contiguous() if "up_proj" in n else v for n, v in w.items()}),
        f"{W}: model.layers.0.mlp.up_proj.weight has shape 5×32, and config.json means 64×32",
    ),
    "integers": (weights(lambda w: {n: v.to(torch.int8) for n, v in w.items()}), f"{W}: lm_head.weight is I8"),
    "none": (lambda f: (f / W).unlink(), "has no weights; expected model.safetensors"),
    "a folder": (lambda f: ((f / W).unlink(), (f / W).mkdir()), f"{W}: Is a directory"),
    "a loop": (lambda f: ((f / W).unlink(), (f / W).symlink_to(f / W)), f"{W}: Too many levels of symbolic links"),
    "no pickle": (instead("pytorch_model.bin", b"\x93" * 900), "pytorch_model.bin: holds no tensors, or code"),
    "evil": (instead("pytorch_model.bin", pickle.dumps({"a": Evil()})), "code beside them, which is not run"),
    "lost part": (parts, "index.json: names model-00002-of-00002.safetensors, and there is no such file"),
    "config": (instead(C, '{"model_type": '), f"{C}: not JSON: Expecting value"),
    "a list": (instead(C, "[1]"), f"{C}: expected a JSON object"),
    "unknown": (settings(model_type="nosuch"), f"{C}: The checkpoint you are trying to load has model type `nosuch`"),
    "own code": (settings(model_type="my", auto_map={"AutoConfig": "c.C"}), f"{C}: The repository"),
    "heads": (settings(num_attention_heads=0), f"{C}: num_attention_heads: expected a whole number of at least 1"),
    "layers": (settings(num_hidden_layers=0), f"{C}: Class validation error .*num_hidden_layers"),
    "vocabulary": (settings(vocab_size=None), f"{C}: Validation error for field 'vocab_size'"),
    "activation": (settings(hidden_act="nosuch"), f"{C}: means no causal language model: KeyError: 'nosuch'"),
    "width": (settings(hidden_size=10**12), f"{W}: lm_head.weight has shape 400×32"),
    "translator": (instead(C, '{"model_type": "t5"}'), f"{C}: t5 is an encoder-decoder"),
    "sees": (instead(C, '{"model_type": "vit"}'), f"{C}: vocab_size: expected a whole number"),
    "quantised": (settings(quantization_config={"quant_method": "gptq", "bits": 4}), "weights are quantised .gptq."),
    "generation": (instead("generation_config.json", "[1]"), "generation_config.json: expected a JSON object"),
    "end": (settings(eos_token_id=10**6), f"{C}: eos_token_id: 1000000 is no id below 400"),
    "no tokenizer": (lambda f: [p.unlink() for p in (*f.glob("token*"), *f.glob("chat*"))], "has no tokenizer; exp"),
    "tokenizer": (instead(T, "<html>"), f"{T}: not JSON: it is a web page"),
    "tokens": (instead(T, '{"model": {"type": "BPE"}}'), "its tokenizer cannot be loaded"),
    "ids": (
        lambda f: (
            settings(vocab_size=399)(f),
            weights(lambda w: {n: v[:399].contiguous() if v.shape[0] == 400 else v for n, v in w.items()})(f),
        ),
        "as id 399, and the model embeds ids below 399",
    ),
    "template": (instead("chat_template.jinja", b"\xff\xfe{{"), "its tokenizer cannot be loaded: 'utf-8' codec"),
}
NOT_FINITE = "model.layers.1.mlp.up_proj.weight holds numbers that are not finite"
ONLY_LOADED: dict[str, tuple[Callable[[Path], object], str]] = {
    "NaN": (
        weights(lambda w: {n: v * float("nan") if "layers.1.mlp.up" in n else v for n, v in w.items()}),
        NOT_FINITE,
    ),
    "infinity": (
        weights(lambda w: {n: v * float("inf") if "layers.1.mlp.up" in n else v for n, v in w.items()}),
        NOT_FINITE,
    ),
    "three heads on two": (
        lambda f: (
            settings(num_attention_heads=3)(f),
            weights(
                lambda w: {
                    n: v[:24].contiguous() if "q_proj" in n else v[:, :24].contiguous() if "o_proj" in n else v
                    for n, v in w.items()
                }
            )(f),
        ),
        "its model cannot be run: ",
    ),
}


def refused(capsys, *command: str) -> str:
    assert main([*command]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("choreo: ")
    return told.err


@pytest.mark.parametrize("name", FAULTS)
def test_a_broken_folder_is_one_line_in_a_plan_and_in_training(name, good, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(good, tmp_path / "model"))
    spoil, said = FAULTS[name]
    spoil(folder)
    for command in (["plan", "waltz"], ["train", "waltz", "--run", "run"]):
        err = refused(capsys, *command, "--set", f"model.base={folder}")
        assert str(folder) in err and re.search(said, err), err
    assert sorted(os.listdir()) == ["model"]  # no run, and no code was run


@pytest.mark.parametrize("name", ONLY_LOADED)
def test_what_only_loading_shows_is_refused_and_nothing_of_a_run_is_lost(name, good, tmp_path, capsys):
    folder = Path(shutil.copytree(good, tmp_path / "line\nbreak"))
    spoil, said = ONLY_LOADED[name]
    spoil(folder)
    from choreo import config

    with Run.create(tmp_path / "run", config.load("waltz")) as run:
        run.log(1, {"loss": 1.0})
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()}
    err = refused(
        capsys,
        "train",
        "waltz",
        "--set",
        f"model.base={json.dumps(str(folder))}",
        "--run",
        str(tmp_path / "run"),
        "--overwrite",
    )
    assert said in err
    with pytest.raises(BadInput, match=said):
        LocalJudge(WildGuard(), str(folder))
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run").iterdir()} == before


def test_every_door_says_it(good, tmp_path, capsys):
    """An evaluation of a model as it is, a second base, MACPO's agents, a judge that runs here; and no folder."""
    folder, rows = Path(shutil.copytree(good, tmp_path / "model")), tmp_path / "rows.jsonl"
    FAULTS["lfs"][0](folder)
    rows.write_text('{"prompt": "Hi", "answer": "Ho", "kind": "benign"}\n')
    out = tmp_path / "out"
    lfs = f"{folder}/{W}: no safetensors: it is a Git LFS pointer"
    for command in (
        ("eval", "--conversation", str(folder), "--suite", str(rows), "--judge", "offline", "--out", str(out)),
        (
            "eval",
            "--conversation",
            str(good),
            "--feedback",
            str(folder),
            "--suite",
            str(rows),
            "--judge",
            "offline",
            "--out",
            str(out),
        ),
        ("train", "waltz", "--set", f"model.feedback_base={folder}", "--run", str(out)),
        ("train", "macpo", "--set", f"agents.student={folder}", "--run", str(out)),
        ("plan", "macpo", "--set", f'agents.teachers=["{folder}"]'),
        ("judge", "answers", str(rows), "--judge", f"wildguard:{folder}"),
        ("plan", "waltz", "--set", "judge.kind=wildguard", "--set", f"judge.model={folder}"),
    ):
        assert lfs in refused(capsys, *command) and not out.exists()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, said in ((rows, "is a file"), (tmp_path / "loop", "a link to nothing"), (tmp_path, "without a config")):
        assert said in refused(capsys, "train", "waltz", "--set", f"model.base={path}", "--run", str(out))


def test_a_checkpoint_and_weights_of_a_judge_that_are_none(tmp_path):
    (tmp_path / "step").mkdir()
    for content in (b"", b"\x80" * 99, pickle.dumps([Evil()])):
        for file, read in ((tmp_path / "step" / "state.pt", checkpoint.load), (tmp_path / "w.npz", Weights.load)):
            file.write_bytes(content)
            with pytest.raises(BadInput, match=file.name):
                read(file.parent if file.suffix == ".pt" else file)
    with pytest.raises(BadInput, match="No such file"):
        checkpoint.load(tmp_path / "nowhere")


def put(state: dict, place: str, value: object) -> None:
    *path, last = place.split("/")
    for name in path:
        state = state[int(name) if isinstance(state, list | tuple) else name]
    if value is None:
        del state[last]
    else:
        state[last] = value


def spoiled(run: Path, place: str, value: object) -> tuple[int, Path]:
    """The run's last checkpoint with another value (None: nothing) at a place."""
    step, path = max(checkpoints(run).items())
    state = checkpoint.load(path)
    put(state, place, value)
    torch.save(state, path / "state.pt")
    return step, path


UP = "weights/model.layers.0.self_attn.q_proj.lora_B"
UNFIT_WALTZ = {
    "recent": 3,
    "stage": "one",
    "values": None,
    "values/shared/head/1.bias": torch.zeros(2),
    "agents/feedback": None,
    "agents/feedback/agent": [],
    f"agents/feedback/agent/{UP}": torch.zeros(32, 9),
    f"agents/feedback/agent/{UP}x": torch.zeros(1),
    "agents/feedback/agent/version": "7",
    "agents/feedback/optimizer/param_groups": [],
    "agents/feedback/optimizer/param_groups/0/betas": None,
}
UNFIT_MACPO = {
    "phases": [],
    "book": None,
    "book/page": [["an", "early", "row"]],
    "agents/student": None,
    "agents/student/agents/student-": None,
    f"agents/student/agents/student+/{UP}": 4,
}


@pytest.mark.slow
def test_a_checkpoint_that_does_not_fit_is_one_line_and_a_fault_of_ours_is_none(tiny_folder, tmp_path, monkeypatch):
    made = WaltzRecipe.model_validate(
        {
            "world": {"train_prompts": 30, "heldout_prompts": 1},
            "protocol": {"answer_tokens": 4, "feedback_tokens": 4},
            "model": {"base": str(tiny_folder), "rank": 2},
            "stages": {"stage1_share": 0.0},
            "learning": {"steps": 1, "prompts": 2, "samples": 1, "baseline": "shared"},
        }
    )
    with Run.create(tmp_path / "waltz", made) as run, Progress() as progress:
        train(made, run, progress)
    crews = macpo_recipe(tiny_folder, tuning={"epochs": 1, "negative_epochs": 1})
    loaded = run_through(crews, tmp_path / "macpo")

    def go_on(method: str) -> None:
        with Run.open(tmp_path / method) as run, Progress() as progress:
            train(made, run, progress) if method == "waltz" else next(train_macpo(crews, run, progress, loaded))

    for method, faults in (("waltz", UNFIT_WALTZ), ("macpo", UNFIT_MACPO)):
        file = max(checkpoints(tmp_path / method).items())[1] / "state.pt"
        whole = file.read_bytes()
        for place, value in faults.items():
            _, path = spoiled(tmp_path / method, place, value)
            with pytest.raises(BadInput, match=rf"^{path}: (is no checkpoint|was trained in other phases)") as told:
                go_on(method)
            assert "\n" not in str(told.value) and (place == "phases" or place.split("/")[-1] in str(told.value)), told
            if place.endswith(UP):
                with pytest.raises(BadInput, match=f"^{path}: is no checkpoint"):
                    restore(made, path) if method == "waltz" else macpo_run.restore(crews, path)
            file.write_bytes(whole)

    def broken(*_: object) -> None:
        raise KeyError("a fault of ours")

    for method, owner, name in (
        ("waltz", Team, "load_state_dict"),
        ("waltz", Decoder, "forward"),
        ("macpo", Team, "load_state_dict"),
        ("macpo", GenerationCache, "load_state_dict"),
    ):
        with monkeypatch.context() as patch, pytest.raises(KeyError, match="a fault of ours"):
            patch.setattr(owner, name, broken)
            go_on(method)


def test_what_is_whole_is_loaded_however_it_is_kept(good, tmp_path):
    """In parts, as a pickle of tensors alone, in lower precision, and with experts that are kept one by one."""
    whole, kept = model_folder.load(good, torch.float32).state_dict(), load_file(good / W)
    for form in ("parts", "pickled", "half"):
        folder = Path(shutil.copytree(good, tmp_path / form))
        (folder / W).unlink()
        if form == "parts":
            names = dict.fromkeys(kept, "model-00001-of-00002.safetensors") | {"lm_head.weight": "last.safetensors"}
            for file in set(names.values()):
                save_file({n: v for n, v in kept.items() if names[n] == file}, folder / file)
            (folder / model_folder.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
        elif form == "pickled":
            torch.save(kept, folder / model_folder.PICKLED)
        else:
            save_file({n: v.bfloat16() for n, v in kept.items()}, folder / W)
        found = model_folder.load(folder, torch.float32).state_dict()
        assert all(torch.equal(found[n], v.bfloat16().float() if form == "half" else v) for n, v in whole.items())
    for kind in EXPERTS:
        folder = experts(kind, tmp_path / kind)
        model_folder.load(folder, torch.float32)
        some = next(iter(n for n in load_file(folder / W) if "expert" in n))
        weights(lambda w, some=some: {n: v for n, v in w.items() if n != some})(folder)
        with pytest.raises(BadInput, match=str(folder)):
            model_folder.load(folder, torch.float32)


def test_an_error_of_another_library_is_one_line_and_our_own_are_not_hidden():
    with pytest.raises(BadInput, match=r"^here: is no file: Two things: the second$"), opening("here", "is no file"):
        raise RuntimeError("Two things:\n  the second\nand more")
    with pytest.raises(BadInput, match=r"^here: KeyError: 'x'$"), opening("here"):
        raise KeyError("x")
    with pytest.raises(BadInput, match=r"^own$"), opening("here"):
        raise BadInput("own")
    with pytest.raises(KeyboardInterrupt), opening("here"):
        raise KeyboardInterrupt
