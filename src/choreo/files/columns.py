"""Rows of Parquet files, and of data sets of the Hugging Face hub, named hf:OWNER/NAME[:CONFIG][/SPLIT].

pyarrow and datasets read them; both come with `choreo-rl[data]`. A data set of the hub is fetched once, into the cache
of that library.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

from choreo.errors import BadInput, Unavailable, first_line, opening

HUB = re.compile(r"hf:(?P<name>[\w.-]+/[\w.-]+)(?::(?P<config>[\w.-]+))?(?:/(?P<split>[\w.-]+))?")
PREFIX = "hf:"


def is_on_hub(name: str | Path) -> bool:
    """Whether `name` is meant for a data set of the hub, be it well formed or not."""
    return str(name).startswith(PREFIX)


def parquet(file: Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file. Raises BadInput for one that cannot be read, and where pyarrow is missing."""
    _require("pyarrow", file)
    import pyarrow.parquet

    with opening(file, "is no Parquet file that can be read"):
        table = pyarrow.parquet.ParquetFile(file)
    batches = table.iter_batches()
    while True:
        with opening(file, "is no Parquet file that can be read"):
            if (batch := next(batches, None)) is None:
                return
            rows = batch.to_pylist()
        yield from rows


def hub(name: str) -> Iterator[dict[str, Any]]:
    """The rows of a data set of the hub; without a split its only one, or "train".

    Raises BadInput where the name has another form, datasets is missing, there is no such data set, configuration or
    split, or the hub cannot be reached and the cache has nothing.
    """
    if not (asked := HUB.fullmatch(name)):
        raise BadInput(f"{name}: expected hf:OWNER/NAME, and if need be :CONFIG and /SPLIT after it")
    _require("datasets", name)
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    datasets.disable_progress_bars()
    try:
        splits = datasets.load_dataset(asked["name"], asked["config"])
    except DatasetNotFoundError as error:
        if "offline" in str(error).lower():
            raise Unavailable(_unreachable(name)) from None
        raise BadInput(f"{name}: the hub has no such data set, or one that this account may not read") from None
    except ConnectionError:
        raise Unavailable(_unreachable(name)) from None
    except Exception as error:  # the library may raise anything, as for a configuration that is not there
        raise BadInput(f"{name}: cannot be loaded: {first_line(error)}") from None
    split = asked["split"] or (next(iter(splits)) if len(splits) == 1 else "train")
    if split not in splits:
        raise BadInput(f"{name}: there is no split {split!r}; there are {', '.join(map(str, splits))}")
    for row in splits[split]:
        yield dict(row)


def _unreachable(name: str) -> str:
    return f"{name}: not in the cache, and the hub cannot be reached; load it once with a network, or name a file"


def _require(library: str, file: str | Path) -> None:
    if util.find_spec(library) is None:
        raise BadInput(f"{file}: {library}, which reads it, is not installed (pip install 'choreo-rl[data]')")
