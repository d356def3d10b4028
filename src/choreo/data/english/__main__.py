"""`python -m choreo.data.english FOLDER [--out DIR]`: makes the shipped files of prompts again, byte for byte."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from choreo.data.english.build import FILES, built, jsonl
from choreo.errors import BadInput
from choreo.files.durable import write_text


def command() -> int:
    parser = argparse.ArgumentParser(prog="python -m choreo.data.english", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the published data, as $CHOREO_DATA has it")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, metavar="DIR", help="default: in place")
    args = parser.parse_args()
    try:
        made = built(args.folder)
    except BadInput as error:
        print(error, file=sys.stderr)
        return 2
    for name in FILES:
        write_text(args.out / name, jsonl(made[name]))
        print(f"{args.out / name}: {len(made[name])} prompts")
    return 0


if __name__ == "__main__":
    sys.exit(command())
