"""Studies are found by their files: adding one touches nothing else."""

from __future__ import annotations

import subprocess
import sys

import pytest

from choreo import studies


def test_a_module_in_the_package_is_a_study(tmp_path, monkeypatch):
    known = studies.questions()
    (tmp_path / "pair_size.py").write_text('"""`choreo study pair-size`: does a pair need size? Two bases."""\n')
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path)])
    assert studies.questions() == known | {"pair-size": "does a pair need size? Two bases."}
    assert studies.load("pair-size").__doc__.startswith("`choreo study pair-size`")
    with pytest.raises(ValueError, match="no study 'pair'; there are macpo-baselines, "):
        studies.load("pair")


@pytest.mark.parametrize("name", studies.questions())
def test_every_study_says_its_name_and_question_and_can_be_run(name):
    module = studies.load(name)
    assert module.__doc__.startswith(f"`choreo study {name}`: ") and studies.questions()[name]
    assert callable(module.run)


def test_the_names_of_the_studies_load_none_of_them():
    code = "import sys; from choreo import studies; studies.questions(); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
