"""A GGUF model in several files, as llama.cpp's gguf-split makes them: NAME-00001-of-00004.gguf and so on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from choreo.errors import BadInput

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)


def parts_of(file: Path) -> list[Path]:
    """The files of the model whose first file is `file`; `file` alone where it is no part.

    Raises BadInput where one is missing, or where `file` is not the first.
    """
    named = _PART.fullmatch(file.name)
    if not named:
        return [file]
    stem, number, count = named[1], int(named[2]), int(named[3])
    parts = [file.with_name(f"{stem}-{i:05}-of-{count:05}{file.suffix}") for i in range(1, count + 1)]
    if number != 1:
        raise BadInput(f"{file}: is part {number} of {count}; name the first one, {parts[0].name}")
    if missing := [part.name for part in parts if not part.is_file()]:
        raise BadInput(f"{file}: {missing[0]} is missing, a part of the same model")
    return parts


def join(parts: Sequence[Path], target: Path) -> None:
    """Writes the model in `parts` as the one file `target`. The first part has what is said of the model."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    readers = [GGUFReader(part) for part in parts]
    first = readers[0].fields
    writer = GGUFWriter(target, first["general.architecture"].contents(), endianess=readers[0].endianess)
    for name, field in first.items():
        if name.startswith(("GGUF.", "split.")) or name == "general.architecture":
            continue
        kinds: list[Any] = list(field.types)
        inner = kinds[-1] if kinds[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kinds[0], sub_type=inner)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        writer.add_tensor_info(
            tensor.name, tensor.data.shape, tensor.data.dtype, tensor.data.nbytes, tensor.tensor_type
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()
