"""`choreo plan` and `choreo export`. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import json
import sys


def plan(args: argparse.Namespace) -> int:
    from choreo import config

    recipe = config.load(args.recipe, args.set)
    from choreo.experiment import sizing

    found = sizing.plan(recipe, args.memory * sizing.GIB if args.memory else None)
    print(json.dumps(found) if args.json else sizing.tell(found))
    return 0


def export(args: argparse.Namespace) -> int:
    from choreo.runs.folder import read_info

    read_info(args.run)
    from transformers.utils.logging import disable_progress_bar

    from choreo.experiment.export import export_run

    disable_progress_bar()
    merged = True if args.merged else False if args.adapter else None
    folders = export_run(args.run, args.out, args.agent, merged, lambda remark: print(f"! {remark}", file=sys.stderr))
    print(json.dumps({"written": list(map(str, folders))}) if args.json else "\n".join(map(str, folders)))
    return 0
