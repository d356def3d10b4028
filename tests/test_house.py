"""The house: imports go downwards, in no circle; one name is one thing; files stay small; help loads nothing heavy."""

import ast
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import choreo

ROOT = Path(choreo.__file__).parents[2]
PACKAGE = ROOT / "src" / "choreo"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the ground up. A part may import itself and whatever lies on a lower floor, never its neighbours.
FLOORS = (
    {"errors", "types"},
    {"parallel"},
    {"registry"},
    {"files"},
    {"config"},
    {"text", "runs"},
    {"models", "trackers"},
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
    {"server", "swarm", "integrations"},
    {"arena", "attacks", "studies", "watch"},
    {"api"},
    {"__init__"},
    {"cli"},
    {"__main__"},
)
FLOOR = {part: floor for floor, parts in enumerate(FLOORS) for part in parts}


# Import circles that are still there, as the modules of each. A new one fails.
CIRCLES: tuple[set[str], ...] = ()

# Classes that share their name with another one, and why that is well.
ALIKE_CLASSES = {
    "Format": "how a file's rows are read, and how a judge's model is asked: each the word of its field",
    "Judge": "the section of a recipe, and the protocol that a section's judge fulfils",
    "Model": "the section of a recipe, and the model of a plan that is sized by it",
    "Weights": "the section of a recipe on a model's weights, and those of the offline judge",
    "World": "the section of a recipe, and the world that it describes",
}
# Functions of different packages that share their name and are imported without their module, and why that is well.
ALIKE_FUNCTIONS = {
    "check": "refuses what cannot be used: settings, a checkpoint, a recipe before its run",
    "collaboration": "the untrained game of two models: its settings, and its task in Inspect",
    "describe": "says for people, or for the record, what it is given",
    "load": "reads the thing that its module is about",
    "play": "plays the game; Inspect's is a solver, which Inspect calls by this name",
    "restore": "the agents of each method, as a checkpoint has them",
    "train": "each method's own trainer",
}


def part_of(module: str) -> str:
    """The part that a module of choreo lies in; the package itself, and what only it exports, are `__init__`."""
    _, *rest = module.split(".")
    return rest[0] if rest and rest[0] in FLOOR else "__init__"


def imported_parts(source: str, where: str) -> set[str]:
    """The parts of choreo that `source` imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name != "choreo"]
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "choreo" and node.attr != "__version__":
            names = [f"choreo.{node.attr}"]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{where}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {part_of(name) for name in names if name.split(".")[0] == "choreo"}
    return found


def upward(source: str, part: str, where: str = "") -> set[str]:
    return {used for used in imported_parts(source, where) - {part} if FLOOR[used] >= FLOOR[part]}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert not upward(path.read_text(encoding="utf-8"), part, str(path))


def test_the_import_check_sees_an_upward_import():
    assert upward("from choreo.methods.waltz.trainer import train", "engine") == {"methods"}
    assert upward("def f():\n    from choreo import evaluation", "game") == {"evaluation"}
    assert upward("import choreo.algorithms.values", "agents") == {"algorithms"}
    assert (
        upward("import choreo\nchoreo.train", "studies") == upward("from choreo import train", "server") == {"__init__"}
    )
    assert not upward("import choreo\nprint(choreo.__version__)", "files")
    assert not upward("from choreo.types import Turn\nimport choreo.engine.sample", "engine")


def imports(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Every import of `tree`, those inside functions too, but not what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from imports(node)


def import_graph(sources: dict[str, str]) -> dict[str, set[str]]:
    """Which of the modules in `sources` (text by dotted name) each of them imports."""
    graph: dict[str, set[str]] = {}
    for module, source in sources.items():
        graph[module] = set()
        for node in imports(ast.parse(source)):
            if isinstance(node, ast.Import):
                graph[module] |= {alias.name for alias in node.names}
            else:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                graph[module] |= {name if name in sources else str(node.module) for name in inner}
        graph[module] &= sources.keys()
    return graph


def circles(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules each of which reaches all the others of its set, and itself, by imports."""
    reached: dict[str, set[str]] = {}
    for module in graph:
        found: set[str] = set()
        waiting = list(graph[module])
        while waiting:
            if (name := waiting.pop()) not in found:
                found.add(name)
                waiting += graph[name]
        reached[module] = found
    joined = (frozenset(n for n in reached[m] if m in reached[n]) for m in graph if m in reached[m])
    return [set(circle) for circle in dict.fromkeys(joined)]


def module_name(path: Path) -> str:
    return ".".join(("choreo", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def test_no_imports_go_in_a_circle():
    found = circles(import_graph({module_name(path): path.read_text(encoding="utf-8") for path in SOURCES}))
    assert [circle for circle in found if circle not in CIRCLES] == []


def test_the_circle_check_sees_an_import_inside_a_function():
    inside = {"choreo.a": "from choreo import b", "choreo.b": "def f():\n    import choreo.a", "choreo.c": ""}
    assert circles(import_graph(inside)) == [{"choreo.a", "choreo.b"}]
    typing = inside | {"choreo.b": "if TYPE_CHECKING:\n    import choreo.a"}
    assert circles(import_graph(typing)) == []


def alike_classes(sources: dict[str, str]) -> dict[str, list[str]]:
    """The modules of every class name that several modules define."""
    found = defaultdict(list)
    for module, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.ClassDef):
                found[node.name].append(module)
    return {name: modules for name, modules in found.items() if len(modules) > 1}


def alike_functions(sources: dict[str, str]) -> dict[str, list[str]]:
    """The modules of every public function name that modules of several packages define, where an import leaves the
    module out: `checkpoint.load` says what is loaded, `load` does not.

    Two kinds are fine: the commands of cli/ and the functions of api.py, which are named as they are typed; and modules
    of one package, which offer the same functions (every study has its `run`).
    """
    found = defaultdict(list)
    bare = set()
    for module, source in sources.items():
        tree = ast.parse(source)
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not module.startswith(
                ("choreo.cli.", "choreo.api")
            ):
                found[node.name].append(module)
        for imported in imports(tree):
            if isinstance(imported, ast.ImportFrom):
                bare |= {(imported.module, alias.name) for alias in imported.names if not alias.asname}
    return {
        name: modules
        for name, modules in found.items()
        if not name.startswith("_")
        and len({module.rpartition(".")[0] for module in modules}) > 1
        and any((module, name) in bare for module in modules)
    }


def test_one_name_is_one_thing():
    sources = {module_name(path): path.read_text(encoding="utf-8") for path in SOURCES}
    alike = alike_classes(sources) | alike_functions(sources)
    known = {*ALIKE_CLASSES, *ALIKE_FUNCTIONS}
    assert {name: modules for name, modules in alike.items() if name not in known} == {}


def test_the_name_check_lets_a_module_say_what_its_function_is_about():
    two = {"choreo.a.x": "class C: ...\ndef load(): ...", "choreo.b.y": "class C: ...\ndef load(): ..."}
    assert alike_classes(two) == {"C": ["choreo.a.x", "choreo.b.y"]}
    assert alike_functions(two | {"choreo.c": "from choreo.a import x\nx.load()"}) == {}
    assert set(alike_functions(two | {"choreo.c": "from choreo.a.x import load"})) == {"load"}
    siblings = {
        "choreo.a.x": "def run(): ...",
        "choreo.a.y": "def run(): ...",
        "choreo.c": "from choreo.a.x import run",
    }
    assert alike_functions(siblings) == {}


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
    loaded = [line for line in done.stderr.splitlines() if line.startswith("heavy")]
    assert loaded == ["heavy: data []", "heavy: judge []", "heavy: report ['matplotlib']"]
    assert (tmp_path / "report.html").is_file()
