"""What the package says about itself: one version, and a changelog whose new names exist."""

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path

import choreo

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_version_is_the_same_wherever_it_is_written():
    project = tomllib.loads(text("pyproject.toml"))
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "choreo.__version__"}
    assert re.search(r"^version: (.*)$", text("CITATION.cff"), re.M)[1] == choreo.__version__
    assert re.search(r"^## \[(.*?)\]", text("CHANGELOG.md"), re.M)[1] == choreo.__version__


def test_every_module_that_the_migration_table_names_is_there():
    _, rest = text("CHANGELOG.md").split("### Migration")
    table = re.findall(r"^\| `(choreo\.[\w.]+)` \|(.*)\|$", rest.split("\n## ")[0], re.M)
    assert len(table) > 50
    for old, new in table:
        modules = re.findall(r"`(choreo\.[\w.]+)`", new)
        assert modules and old not in modules
        assert [module for module in modules if not find_spec(module)] == []


def test_the_marker_for_type_checkers_and_every_shipped_file_is_package_data():
    """A file that no pattern covers would be missing from the wheel."""
    package = ROOT / "src" / "choreo"
    patterns = tomllib.loads(text("pyproject.toml"))["tool"]["setuptools"]["package-data"]["choreo"]
    covered = {path for pattern in patterns for path in package.glob(pattern)}
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert package / "py.typed" in covered and files <= covered
