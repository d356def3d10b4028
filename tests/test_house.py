"""The house: imports go downwards, files stay small, help loads nothing heavy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import choreo

ROOT = Path(choreo.__file__).parents[2]
PACKAGE = ROOT / "src" / "choreo"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. A part may import itself and whatever lies on a lower floor, never its neighbours.
FLOORS = (
    {"errors", "types"},
    {"registry"},
    {"files"},
    {"config"},
    {"text", "runs"},
    {"models"},
    {"clients"},
    {"judges", "data"},
    {"engine"},
    {"environments"},
    {"agents", "algorithms"},
    {"game"},
    {"evaluation"},
    {"report"},
    {"methods"},
    {"experiment"},
    {"server", "swarm"},
    {"studies", "api"},
    {"cli"},
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


def part_of(module: str) -> str:
    return module.split(".")[1]


def imported_parts(source: str, where: str) -> set[str]:
    """The parts of choreo that `source` imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {part_of(name) for name in names if name.startswith("choreo.")}
    return found


def upward(source: str, part: str, where: str = "") -> set[str]:
    return {used for used in imported_parts(source, where) - {part} if FLOOR[used] >= FLOOR[part]}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part != "__init__":
        assert not upward(path.read_text(encoding="utf-8"), part, str(path))


def test_the_import_check_sees_an_upward_import():
    assert upward("from choreo.methods.waltz.trainer import train", "engine") == {"methods"}
    assert upward("def f():\n    from choreo import evaluation", "game") == {"evaluation"}
    assert upward("import choreo.algorithms.values", "agents") == {"algorithms"}
    assert not upward("from choreo.types import Turn\nimport choreo.engine.sample", "engine")


@pytest.mark.parametrize("path", [*SOURCES, *sorted((ROOT / "tests").glob("*.py"))], ids=lambda path: path.name)
def test_no_file_passes_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_help_is_quick_and_loads_nothing_heavy():
    code = """
import sys
from choreo.cli import main
try:
    main(["--help"])
finally:
    heavy = {"torch", "transformers", "peft", "numpy", "pydantic", "rich", "matplotlib"} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    after = os.times()
    assert done.stdout.startswith("usage: choreo")
    assert done.stderr.strip() == "heavy: []"
    # Processor time, so that a busy machine does not fail the test.
    assert after.children_user + after.children_system - before.children_user - before.children_system < 0.5


def test_reading_a_recipe_loads_no_torch():
    code = "import sys; from choreo import config; config.load('waltz'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_command_loads_only_what_it_needs(tmp_path):
    """Looking at data, judging without a model and writing a report take neither PyTorch nor transformers."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "How do I open a jar?", "answer": "Turn the lid.", "kind": "benign"}\n')
    (tmp_path / "run.json").write_text('{"method": "macpo"}')
    judged = ["judge", "answers", str(rows), "--judge", "offline"]
    commands = ["data", "check", str(rows)], judged, ["report", str(tmp_path)]
    code = f"""
import sys
from choreo.cli import main
for command in {commands!r}:
    assert main(command) == 0
    heavy = {{"torch", "transformers", "matplotlib"}} & set(sys.modules)
    print("heavy:", command[0], sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = [line for line in done.stderr.splitlines() if line.startswith("heavy")]
    assert told == ["heavy: data []", "heavy: judge []", "heavy: report ['matplotlib']"]
    assert (tmp_path / "report.html").is_file()
