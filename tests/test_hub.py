"""Models by name: what is in the cache needs no network, and what is not is said with the way to get it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from choreo.cli import main
from choreo.errors import BadInput
from choreo.models.hub import fingerprint, is_name, is_whole
from choreo.models.resolve import base_folder


def cached(home: Path, name: str, files: Path) -> Path:
    """`files` as the hub's cache has a model that was fetched."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    return Path(shutil.copytree(files, repository / "snapshots" / ("a" * 40)))


def test_names_of_the_hub_and_other_names():
    assert is_name("meta-llama/Llama-3.1-8B-Instruct")
    assert not any(map(is_name, ("micro-llama", "a/b/c", "/a/b", "../models", "./mine", "")))


def test_a_model_in_the_cache_is_taken_from_there_offline(tiny_folder, tmp_path):
    """In a process of its own: the hub's library reads where its cache is once."""
    folder, bare = (cached(tmp_path, f"someone/{name}", tiny_folder) for name in ("tiny", "bare"))
    (bare / "model.safetensors").unlink()
    code = (
        "from choreo.models.resolve import base_folder; from choreo.errors import BadInput\n"
        "print(base_folder('someone/tiny'))\n"
        "print(base_folder('someone/bare', weights=False))\n"
        "try: base_folder('someone/other')\n"
        "except BadInput as error: print(error)"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found, without, missing = done.stdout.splitlines()
    assert Path(found) == folder and fingerprint(folder) == fingerprint(tiny_folder) != fingerprint(bare)
    assert Path(without) == bare and fingerprint(bare) == fingerprint(folder, weights=False)
    assert missing == (
        "model 'someone/other': not here, and the hub is not asked (HF_HUB_OFFLINE); "
        "get it with `hf download someone/other` where there is a network, or name a folder"
    )


def test_a_half_fetched_model_is_not_taken_for_a_whole_one(tiny_folder, tmp_path):
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    assert is_whole(folder)
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.json")
    assert not is_whole(folder)
    (tmp_path / "tokenizer.json").rename(folder / "tokenizer.json")
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    first, second = folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors"
    whole.rename(first)
    assert not is_whole(folder)  # the index was not fetched
    index.write_text(json.dumps({"weight_map": {"a": first.name, "b": second.name}}))
    assert not is_whole(folder)
    second.symlink_to(tmp_path / "blob")  # the cache's way: a link to a file that is still to come
    assert not is_whole(folder)
    (tmp_path / "blob").write_bytes(b"weights")
    assert is_whole(folder)
    index.write_text('{"weight')
    assert not is_whole(folder)


def test_a_half_fetched_model_is_asked_of_the_hub_again(tiny_folder, tmp_path):
    """Which is said offline, where the hub cannot be asked."""
    folder = cached(tmp_path, "someone/tiny", tiny_folder)
    (folder / "tokenizer.json").unlink()
    code = "from choreo.models.resolve import base_folder; base_folder('someone/tiny')"
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "model 'someone/tiny': not here, and the hub is not asked" in done.stderr


def test_a_mistyped_folder_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bases").mkdir()
    with pytest.raises(BadInput, match="neither a shipped one"):
        base_folder("bases/mine")


def test_the_command_line_says_it_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["train", "waltz", "--set", "model.base=nobody/nothing-at-all"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("choreo: model 'nobody/nothing-at-all': not here")
