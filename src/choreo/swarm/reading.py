"""YAML as scenarios and annotations need it: read whole, with the line of every key, checked before it is used.

SWARM's own loader ignores a key that it does not know, so that `freeze_treshold` is silently the default.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel

from choreo.config.checking import check, suggest
from choreo.errors import BadInput
from choreo.files.toml import Keys, line_of
from choreo.files.utf8 import read_text

if TYPE_CHECKING:
    from yaml.nodes import Node

Model = TypeVar("Model", bound=BaseModel)


def load_yaml(kind: type[Model], file: Path) -> Model:
    """The `kind` that the YAML in `file` describes. Raises BadInput with file, line, key and the nearest name."""
    data, lines = read_yaml(file)
    return check(kind, data, lambda keys: f"{file}:{line_of(lines, keys)}")


def find_yaml(name: str | Path, folder: Path, what: str) -> Path:
    """The file that `name` means: a bare name without a suffix is one of `folder`, which ships. Raises BadInput."""
    file = Path(name)
    if len(file.parts) == 1 and not file.suffix:
        shipped = sorted(path.stem for path in folder.glob("*.yaml"))
        if file.name not in shipped:
            raise BadInput(f"{name}: no shipped {what} has this name{suggest(file.name, shipped)}")
        return folder / f"{file.name}.yaml"
    if not file.is_file():
        raise BadInput(f"{name}: no such {what} file")
    return file


def read_yaml(file: Path) -> tuple[dict[str, Any], dict[Keys, int]]:
    """The mapping that a YAML file holds, and the line (from 1) of each of its keys and list items.

    Stricter than YAML: a key said twice is a mistake (YAML takes the last one), and anchors are not read.
    Raises BadInput, naming file and line.
    """
    import yaml

    text = read_text(file)
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise BadInput(f"{file}:1: expected keys and values, got {'nothing' if node is None else 'something else'}")
        _refuse_twice(node, file, set())
        data = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise BadInput(f"{file}:{mark.line + 1 if mark else 1}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        raise BadInput(f"{file}:{text.count(chr(10), 0, error.position) + 1}: not valid YAML: {error.reason}") from None
    except RecursionError:
        raise BadInput(f"{file}: not valid YAML: nested too deeply") from None
    except ValueError as error:  # a date or number that YAML recognises and Python cannot hold
        raise BadInput(f"{file}: not valid YAML: {error}") from None
    return data, dict(_lines(node, ()))


def _refuse_twice(node: Node, file: Path, seen: set[int]) -> None:
    """Raises BadInput for a key that its mapping has twice, a key that is no text, and a node used twice."""
    from yaml.nodes import MappingNode, ScalarNode, SequenceNode

    if isinstance(node, ScalarNode):
        return
    if id(node) in seen:
        raise BadInput(f"{file}:{node.start_mark.line + 1}: anchors and aliases are not read here; write it out")
    seen.add(id(node))
    if isinstance(node, SequenceNode):
        for inner in node.value:
            _refuse_twice(inner, file, seen)
    elif isinstance(node, MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            where = f"{file}:{key.start_mark.line + 1}"
            if not isinstance(key, ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                raise BadInput(f"{where}: a key must be text, got {getattr(key, 'value', 'a table')!r}")
            if key.value in keys:
                raise BadInput(f"{where}: {key.value}: said twice in one table")
            keys.add(key.value)
            _refuse_twice(value, file, seen)


def _lines(node: Node, keys: Keys) -> Iterator[tuple[Keys, int]]:
    from yaml.nodes import MappingNode, SequenceNode

    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield (*keys, key.value), key.start_mark.line + 1
            yield from _lines(value, (*keys, key.value))
    elif isinstance(node, SequenceNode):
        for index, item in enumerate(node.value):
            yield (*keys, str(index)), item.start_mark.line + 1
            yield from _lines(item, (*keys, str(index)))
