"""GGUF files: converted once, whole or not at all, to the bit, and trained like any other model."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

gguf = pytest.importorskip("gguf", reason="needs choreo-rl[smollm2]")
pytest.importorskip("accelerate", reason="needs choreo-rl[smollm2]")

import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from tiny_gguf import stored, write  # noqa: E402

from choreo.cli import main  # noqa: E402
from choreo.config.judge import Judge  # noqa: E402
from choreo.errors import BadInput  # noqa: E402
from choreo.experiment.export import licence_of  # noqa: E402
from choreo.experiment.paths import rooted  # noqa: E402
from choreo.judges.resolve import choose  # noqa: E402
from choreo.methods.waltz.recipe import WaltzRecipe  # noqa: E402
from choreo.models import cache  # noqa: E402
from choreo.models.hub import fingerprint  # noqa: E402
from choreo.models.load import load_chat  # noqa: E402
from choreo.models.resolve import base_folder  # noqa: E402


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A cache and a working folder of the test's own."""
    monkeypatch.setenv("CHOREO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def left_in(folder: Path) -> list[str]:
    """What is in the cache beside locks."""
    return sorted(path.name for path in (folder / "cache" / "models").glob("*") if path.suffix != ".lock")


def test_weights_are_as_gguf_dequantises_them_and_texts_have_the_ids_of_the_original(here, capsys):
    made, words = write(here / "tiny.gguf")
    folder = base_folder("tiny.gguf")
    loaded = load_file(folder / "model.safetensors")
    expected = {
        name: gguf.dequantize(gguf.quantize(values, kind), kind)
        for name, values, kind in stored(dict(made.named_parameters())).values()
    }
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], torch.from_numpy(values.copy())) for name, values in expected.items())
    chat = load_chat(folder)
    for text in ("1. Paint it.\n\n22. Dry it.", "   7 lamps", "<|im_start|> ¿Cómo? 'll"):
        assert chat.tokenizer.encode(text) == words.encode(text), text
    assert chat.tokenizer.chat_template == words.chat_template
    assert chat.tokenizer.convert_ids_to_tokens(chat.end_id) == "<|im_end|>"
    assert licence_of("tiny.gguf") == "apache-2.0"
    assert len(capsys.readouterr().err.splitlines()) == 1  # no bars, no warnings


def test_a_second_opening_converts_nothing_whatever_the_file_is_called(here, capsys):
    write(here / "tiny.gguf")
    first = base_folder("tiny.gguf")
    state = (first / "model.safetensors").stat()
    assert "converting" in capsys.readouterr().err
    shutil.copy("tiny.gguf", "other name.GGUF")
    assert base_folder("tiny.gguf") == base_folder("other name.GGUF") == first
    assert (first / "model.safetensors").stat() == state and not capsys.readouterr().err
    known = fingerprint(first)
    shutil.rmtree(first)
    config = base_folder("tiny.gguf") / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "transformers_version": "9.9"}))
    assert fingerprint(config.parent) == known  # converted anew, by other versions, it is the same base
    assert left_in(here) == [first.name]


@pytest.mark.slow
def test_it_trains_a_step_and_is_exported_from_anywhere(here, monkeypatch, capsys):
    write(here / "tiny.gguf")
    settings = ["base=tiny.gguf", "rank=2"], ["train_prompts=30", "heldout_prompts=2"], ["answer_tokens=8"]
    sections = zip(("model", "world", "protocol"), settings, strict=True)
    chosen = [f"{section}.{setting}" for section, some in sections for setting in some]
    chosen += ["protocol.feedback_tokens=8", "learning.steps=1", "learning.prompts=3", "learning.samples=2"]
    assert main(["train", "waltz", *(part for one in chosen for part in ("--set", one)), "--run", "run"]) == 0
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert summary["bases"] == {str(here / "tiny.gguf"): fingerprint(base_folder("tiny.gguf"))}
    monkeypatch.chdir("/")
    assert main(["export", str(here / "run"), "--out", str(here / "out"), "--agent", "conversation"]) == 0
    card = (here / "out" / "conversation" / "README.md").read_text()
    assert f'from_pretrained(base_folder("{here / "tiny.gguf"}"))' in card and 'license: "apache-2.0"' in card
    write(here / "tiny.gguf", seed=1)  # another model by the same name
    capsys.readouterr()
    assert main(["export", str(here / "run"), "--out", str(here / "again")]) == 2
    assert "another base" in capsys.readouterr().err.splitlines()[-1]


def test_a_recipe_keeps_the_name_and_a_path_becomes_absolute(here):
    write(here / "tiny.gguf")
    bases = ["tiny.gguf", "smollm2", "micro-llama"]
    kept = [rooted(WaltzRecipe.model_validate({"model": {"base": base}})).model.base for base in bases]
    assert kept == [str(here / "tiny.gguf"), "smollm2", "micro-llama"]


def test_a_judge_may_be_a_gguf_file(here):
    write(here / "tiny.gguf", general__name="judge")
    judge = choose(Judge(kind="llama-guard-3", model="tiny.gguf"))
    assert judge.describe()["model"] == fingerprint(base_folder("tiny.gguf"))


def test_parts_are_one_model(here):
    write(here / "whole.gguf")
    write(here / "tiny.gguf", parts=8)
    parts = sorted(path.name for path in here.glob("tiny-*"))
    assert len(parts) > 2
    joined, whole = (load_file(base_folder(name) / "model.safetensors") for name in (parts[0], "whole.gguf"))
    assert joined.keys() == whole.keys() and all(torch.equal(joined[name], whole[name]) for name in whole)
    with pytest.raises(BadInput, match=f"is part 2 of {len(parts)}; name the first one, {parts[0]}"):
        base_folder(parts[1])
    (here / parts[1]).unlink()
    with pytest.raises(BadInput, match=f"{parts[1]} is missing"):
        base_folder(parts[0])


def test_the_scaling_of_positions_of_llama_3_is_kept_and_another_is_refused(here):
    """transformers reads a file without it, and would place far tokens elsewhere without a word."""
    from transformers import AutoConfig, LlamaForCausalLM

    rope = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    made, _ = write(here / "scaled.gguf", rope=rope)
    loaded = LlamaForCausalLM.from_pretrained(base_folder("scaled.gguf")).eval()
    assert loaded.config.rope_parameters == made.config.rope_parameters
    torch.testing.assert_close(loaded.model.rotary_emb.inv_freq, made.model.rotary_emb.inv_freq)
    write(here / "other.gguf", rope=rope | {"high_freq_factor": 9.0})
    with pytest.raises(BadInput, match="is not Llama 3's"):
        base_folder("other.gguf")
    write(here / "yarn.gguf", llama__rope__scaling__type="yarn")
    with pytest.raises(BadInput, match=r"does not read its scaling of positions \(yarn\)"):
        base_folder("yarn.gguf")
    assert AutoConfig.from_pretrained(base_folder("scaled.gguf")).rope_parameters["factor"] == 8.0


def test_what_cannot_be_read_is_one_line_and_leaves_nothing(here, capsys):
    write(here / "tiny.gguf")
    whole = (here / "tiny.gguf").read_bytes()
    (here / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    (here / "text.gguf").write_text("no model")
    write(here / "unknown.gguf", architecture="nobodys")
    for name, said in {
        "cut.gguf": "cut.gguf: is no whole GGUF file",
        "text.gguf": "text.gguf: is no GGUF file: it does not begin with GGUF",
        "unknown.gguf": "unknown.gguf: transformers cannot read it: GGUF model with architecture nobodys",
        "none.gguf": "base 'none.gguf': no such file",
    }.items():
        assert main(["plan", "waltz", "--set", f"model.base={name}"]) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if "converting" not in line]
        assert len(lines) == 1 and said in lines[0], lines
    assert left_in(here) == []


def test_without_its_packages_a_line_names_the_extra(here, monkeypatch):
    write(here / "tiny.gguf")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "accelerate", None)
        with pytest.raises(BadInput, match=r"needs accelerate: pip install 'choreo-rl\[smollm2\]'"):
            base_folder("tiny.gguf")
    folder = base_folder("tiny.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert base_folder("tiny.gguf") == folder  # what is converted needs them no longer


def test_an_unknown_way_to_split_texts_is_said(here, capsys):
    write(here / "tiny.gguf", tokenizer__ggml__pre="nobodys")
    base_folder("tiny.gguf")
    assert "! tiny.gguf: texts are split as for GPT-2, because 'nobodys'" in capsys.readouterr().err


WRITER = """
import sys, time
from pathlib import Path
from choreo.models import cache
def write(folder):
    with open("writers", "a") as file:
        file.write("x")
    (folder / "config.json").write_text("half")
    print("writing", flush=True)
    time.sleep(float(sys.argv[1]))
print(cache.keep("tiny", "a" * 64, write).name, flush=True)
"""


def writer(seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(seconds)], stdout=subprocess.PIPE, text=True)


def test_a_killed_conversion_leaves_nothing(here):
    process = writer(600)
    assert process.stdout.readline() == "writing\n"
    assert cache.kept("a" * 64) is None  # nobody sees it before it is whole
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert cache.kept("a" * 64) is None
    made = cache.keep("tiny", "a" * 64, lambda folder: (folder / "config.json").write_text("whole"))
    assert (made / "config.json").read_text() == "whole"
    assert left_in(here) == [made.name]  # what the killed process had written is gone


def test_of_two_processes_one_converts(here):
    both = [writer(0.5), writer(0.5)]
    names = [process.communicate()[0].splitlines()[-1] for process in both]
    assert names[0] == names[1] and (here / "writers").read_text() == "x"
