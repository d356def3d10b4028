"""Puts rows of your own where the tasks of inspect_evals look for their data sets, for machines without a network.

    python examples/official_rows.py rows xstest=xstest_prompts.jsonl coconot=coconot_eval.jsonl

The rows must be as the data set has them: JSON lines, a JSON array, CSV or Parquet. Nothing of a task is changed: a
data set of the hub becomes a folder of its name, which `datasets` takes before it asks the hub, and a file behind a URL
becomes the copy that inspect_evals keeps of it. What is printed is needed to run the tasks; docs/official.md says how.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from inspect_evals.coconot.coconot import DATASET_PATH as COCONOT
from inspect_evals.cyberseceval_4.mitre_frr.dataset import DATASET_URL as FRR
from inspect_evals.fortress.data import HF_DATASET_PATH as FORTRESS
from inspect_evals.sosbench.sosbench import DATASET_PATH as SOSBENCH
from inspect_evals.strong_reject.strong_reject import PATH_TO_STRONG_REJECT_CSV as STRONG_REJECT
from inspect_evals.utils.load_dataset import get_cached_fname
from inspect_evals.xstest.xstest import DATASET_PATH as XSTEST

from choreo.errors import BadInput
from choreo.files.durable import write_text
from choreo.files.rows import rows

# By task: the data set, its configuration and split, and the fields that the task reads.
OF_THE_HUB = {
    "xstest": (XSTEST, "default", "test", "prompt type label focus note"),
    "coconot": (COCONOT, "original", "test", "id category subcategory prompt"),
    "coconot-contrast": (COCONOT, "contrast", "test", "id category subcategory prompt"),
    "fortress": (FORTRESS, "default", "train", "ID adversarial_prompt benign_prompt rubric risk_domain risk_subdomain"),
    "sosbench": (SOSBENCH, "default", "train", "goal subject"),
}
# By task: the folder and the tag of its copy, the URL, and the fields.
OF_A_URL = {
    "strong_reject": ("strong_reject", "strong_reject", STRONG_REJECT, "category source forbidden_prompt"),
    "cyse4_mitre_frr": ("cyberseceval_4", "mitre_frr", FRR, "mutated_prompt is_malicious attack_type"),
}
CACHE = "cache"


def main(folder: str, *named: str) -> Path:
    """named: TASK=FILE. Raises BadInput for rows that lack a field, and for a file that is there already."""
    where = Path(folder).resolve()
    for name in named:
        task, _, file = name.partition("=")
        if task in OF_THE_HUB:
            dataset, config, split, fields = OF_THE_HUB[task]
            found = read(Path(file), fields)
            lay(where / dataset / f"{split}-{config}.jsonl", "".join(json.dumps(row) + "\n" for row in found))
            describe(where / dataset)
        elif task in OF_A_URL:
            kept, tag, url, fields = OF_A_URL[task]
            found = read(Path(file), fields)
            text = json.dumps(found) if url.endswith(".json") else table(found, fields.split())
            lay(where / CACHE / kept / get_cached_fname(url, tag), text)
        else:
            raise BadInput(f"{name}: expected TASK=FILE, with a task of {', '.join([*OF_THE_HUB, *OF_A_URL])}")
    print(f"cd {where}\nexport INSPECT_EVALS_CACHE_DIR={where / CACHE} HF_HUB_OFFLINE=1")
    return where


def read(file: Path, fields: str) -> list[dict[str, Any]]:
    found = []
    for line, row in rows(file):
        if isinstance(row, BadInput):
            raise row
        for field in fields.split():
            if row.get(field) is None or (field == "rubric" and not isinstance(row[field], list)):
                expected = "a list of questions" if field == "rubric" else "a value, as the data set has"
                raise BadInput(f"{file}:{line}: {field}: expected {expected}")
        found.append(row)
    return found


def lay(file: Path, text: str) -> None:
    if file.exists():
        raise BadInput(f"{file}: is there already; name another folder")
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text)


def describe(folder: Path) -> None:
    """The head of a data set's card, from which `datasets` knows configurations and splits."""
    lines = ["---", "configs:"]
    for file in sorted(folder.glob("*.jsonl")):
        split, _, config = file.stem.partition("-")
        lines += [f"- config_name: {config}", f"  data_files: [{{split: {split}, path: {file.name}}}]"]
    write_text(folder / "README.md", "\n".join([*lines, "---", ""]))


def table(found: list[dict[str, Any]], fields: list[str]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, extrasaction="ignore", dialect="unix")
    writer.writeheader()
    writer.writerows(found)
    return text.getvalue()


if __name__ == "__main__":
    main(*sys.argv[1:])
