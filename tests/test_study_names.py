"""Studies are found by their files: adding one touches nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from choreo import studies
from choreo.cli import main
from choreo.errors import BadInput
from choreo.studies.shared.arms import MEASURED_OF, _is_of


def test_a_module_in_the_package_is_a_study(tmp_path, monkeypatch):
    known = studies.questions()
    (tmp_path / "pair_size.py").write_text('"""`choreo study pair-size`: does a pair need size? Two bases."""\n')
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path)])
    assert studies.questions() == known | {"pair-size": "does a pair need size? Two bases."}
    assert studies.load("pair-size").__doc__.startswith("`choreo study pair-size`")
    with pytest.raises(BadInput, match=r"no study 'pair'; there are macpo-baselines, .* or FILE\.py of your own"):
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


def test_a_study_of_ones_own_is_a_file_and_its_page_says_where_it_was_edited(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    mine = Path("mine.py")
    mine.write_text(
        "SEEDS = (7, 8)\n\ndef run(study):\n    study.train(())\n    return study.write('Mine', 'Why.', ())\n"
    )
    code = sha256(mine.read_bytes()).hexdigest()
    assert main(["study", "mine.py"]) == 0
    assert json.loads(Path("runs/mine/study.json").read_text())["code"] == code
    page = Path("runs/mine/study.md").read_text()
    assert "Seeds 7, 8;" in page and f"in mine.py, SHA-256 {code[:16]}…." in page and "exploratory" not in page
    begun = json.loads(Path("runs/mine/study.json").read_text()) | {"code": "0" * 64, "settings": ["learning.steps=9"]}
    Path("runs/mine/study.json").write_text(json.dumps(begun))
    assert main(["study", "mine.py", "--resume", "--set", "learning.lr=0.1"]) == 0
    assert json.loads(Path("runs/mine/study.json").read_text())["settings"] == ["learning.steps=9", "learning.lr=0.1"]
    capsys.readouterr()
    assert main(["study", "--list"]) == 0
    assert "\nmine                 0 runs, 0:00 of training" in capsys.readouterr().out
    assert "edited after the first run began, so every verdict is exploratory" in Path("runs/mine/study.md").read_text()
    assert json.loads(Path("runs/mine/study.json").read_text())["code"] == "0" * 64
    Path("empty.py").write_text("x = 1\n")
    for name, why in (
        ("empty.py", "has no function run(study)"),
        ("none.py", "no such file"),
        ("mine", "no study 'mine'"),
    ):
        assert main(["study", name, "--run", "other"]) == 2 and why in capsys.readouterr().err
    assert not Path("other").exists()


def test_measures_of_another_checkpoint_are_not_taken_for_a_runs_own(tmp_path):
    file = tmp_path / "measured.json"
    assert not _is_of(file, "a1")
    file.write_text('{"f1": {}}')
    assert _is_of(file, "a1")  # an older choreo did not say
    file.write_text(json.dumps({"f1": {}, MEASURED_OF: "a1"}))
    assert _is_of(file, "a1") and _is_of(file, None) and not _is_of(file, "b2") and not _is_of(file, "")


def test_mistakes_of_a_users_study_are_found_before_anything_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    begin = "from choreo import Arm, compare_arms, contrasts\nSEEDS, ALSO, MEASURE, PAIRS = (1, 2), {}, 'F1', ['ba']\n"
    run = "def run(study):\n    study.write('T', 'I', compare_arms(study, ARMS, contrasts(PAIRS, MEASURE), ALSO))\n"
    for number, (line, why) in enumerate(
        {
            "ARMS = (Arm('a'), Arm('b'), Arm('a'))": "two arms have one name",
            "ARMS = (Arm('a'), Arm('b', settings='learning.lr=1e-3'))": "arm b: settings: expected several texts",
            "ARMS = (Arm('a'), Arm('b', first=0))": "arm b: first: expected a whole number of 1 or more, got 0",
            "ARMS = (Arm('a'), Arm('b', settings=('learning.lrr=1',)))": "arm b: --set learning.lrr=1: ",
            "ARMS = (Arm('a'), Arm('c'))": "a contrast names 'b'; there are the arms a, c",
            "ARMS = ()": "a contrast names 'b'; there are the arms (none)",
            "ARMS, ALSO = (Arm('a'), Arm('b')), {'start': ('d', 'base')}": "also names 'd'; there are the arms a, b",
            "ARMS, MEASURE = (Arm('a'), Arm('b')), 'ARS'": "no measure 'ARS'; there are ASR, ORR, F1, ",
            "ARMS, SEEDS = (Arm('a'), Arm('b')), (1, 1)": "SEEDS: expected different whole numbers",
        }.items()
    ):
        Path(f"mine{number}.py").write_text(f"{begin}{line}\n{run}")
        assert main(["study", f"mine{number}.py"]) == 2
        assert why in (told := capsys.readouterr().err) and told.count("\n") == 1, told
        assert not Path("runs").exists()
    Path("empty").mkdir()
    assert main(["study", "mine0.py", "--run", "empty", "--resume"]) == 2
    assert "no study to go on with" in capsys.readouterr().err
