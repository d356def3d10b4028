"""`choreo swarm`: papers' claims on the SWARM simulator. Nothing heavy is imported at the top."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from choreo.cli.arguments import add_command, add_group, count, json_option, natural, seeds
from choreo.cli.output import say, show_file
from choreo.errors import Interrupted
from choreo.studies import swarm


def add(commands: Any) -> None:
    swarms = add_group(
        commands,
        "swarm",
        "Papers' claims under governance, on the SWARM simulator",
        "SWARM simulates typed agents under governance levers. It needs: pip install 'choreo-rl[swarm]'",
        "  choreo swarm run strict_governance\n  choreo swarm annotate paper.txt > paper.yaml",
    )
    play_command = add_command(
        swarms,
        "run",
        run,
        "Run a scenario, and measure what its agents accepted",
        """\
  choreo swarm run collusion_detection                if there is a tax, an arm without it is run too
  choreo swarm run security_evaluation --seed 7 --json
  choreo swarm run mine.yaml
Shipped scenarios: strict_governance, security_evaluation, collusion_detection, waltz_draft, macpo_draft.""",
    )
    play_command.add_argument("scenario", metavar="SCENARIO", help="a YAML file, or the name of a shipped scenario")
    play_command.add_argument("--seed", type=natural, metavar="N", help="another seed (default: the scenario's own)")
    json_option(play_command)
    annotate_command = add_command(
        swarms,
        "annotate",
        annotate,
        "Draft an annotation of a paper's text, for a person to finish",
        """\
  choreo swarm annotate paper.txt > paper.yaml
It leaves open ("?") what is compared with what. No model reads the text, and nothing is sent anywhere.""",
    )
    annotate_command.add_argument("file", type=Path, metavar="TEXTFILE", help="plain text or Markdown, UTF-8")

    generate_command = add_command(
        swarms,
        "generate",
        generate,
        "Write a scenario from an annotation: roles, agents, levers",
        """\
  choreo swarm generate waltz > mine.yaml             a shipped annotation, waltz or macpo
  choreo swarm generate paper.yaml > mine.yaml        your own, once its roles are filled in
  choreo swarm run mine.yaml""",
    )
    generate_command.add_argument(
        "annotation", metavar="ANNOTATION", help="a YAML file, or the name of a shipped annotation"
    )
    generate_command.add_argument(
        "--seed", type=natural, default=0, metavar="N", help="seed of the scenario (default: 0)"
    )
    trial_command = add_command(
        swarms,
        "study",
        study,
        "Put claims to the test on paired seeds, and write a report",
        """\
  choreo swarm study governance                       circuit breaker × security levers, three scenarios
  choreo swarm study governance mine.yaml --out runs/mine
  choreo swarm study waltz runs/demo                  a trained pair among users and attackers
  choreo swarm study waltz runs/a runs/b --seeds 10-19 --out runs/again
  choreo swarm study macpo runs/macpo runs/macpo-k1   a student's rounds before its teachers
  choreo swarm study governance --resume              finished simulations are kept""",
    )
    known = swarm.questions()
    trial_command.add_argument("name", choices=tuple(known), metavar="NAME", help=f"one of {', '.join(known)}")
    trial_command.add_argument("what", nargs="*", metavar="WHAT", help="run folders; for governance, scenarios")
    trial_command.add_argument(
        "--seeds", type=seeds, metavar="S,S,…", help="paired seeds, as 0,1,2 or 0-9 (default: 0-9)"
    )
    trial_command.add_argument(
        "--out", type=Path, metavar="DIR", help="the folder of the study (default: runs/swarm-NAME)"
    )
    trial_command.add_argument(
        "--answers",
        type=Path,
        metavar="DIR",
        help="folder that keeps the answers (default: in the folder of the study)",
    )
    trial_command.add_argument(
        "--annotation",
        type=Path,
        metavar="FILE",
        help="test the claims of your own annotation, about arms that the study plays",
    )
    trial_command.add_argument("--jobs", type=count, metavar="N", help="simulations at a time (default: one per core)")
    trial_command.add_argument("--resume", action="store_true", help="go on in the folder of the study")
    json_option(trial_command)
    told_command = add_command(
        swarms,
        "report",
        report,
        "Write the report of a SWARM study again, with its citations",
        """\
  choreo swarm report runs/swarm-governance""",
    )
    told_command.add_argument("folder", type=Path, metavar="DIR", help="the folder of a study")
    json_option(told_command)


def run(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    require("swarm run")
    from choreo.files.durable import finite
    from choreo.swarm import metrics, reports, show
    from choreo.swarm.run import Job, run_all
    from choreo.swarm.scenario import load_scenario

    scenario = load_scenario(args.scenario)
    seed = scenario.simulation.seed if args.seed is None else args.seed
    arms = [scenario, *([reports.tax_free(scenario)] if reports.needs_tax_free_arm(scenario) else [])]
    result, *beside = run_all([Job(arm, seed) for arm in arms])
    notes = [metrics.degenerate(result.interactions, result.payoffs)]
    notes += [reports.tax_artefact(result, free) for free in beside]
    for note in filter(None, notes):
        say(note)
    figures = finite(show.printed_figures(scenario, result))
    print(json.dumps(figures, allow_nan=False) if args.json else show.as_text(scenario, result))
    return 0


def annotate(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    require("swarm annotate", "PyYAML")
    from choreo.files.utf8 import read_text
    from choreo.swarm.annotations import to_yaml
    from choreo.swarm.draft import draft

    made = draft(read_text(args.file), str(args.file))
    print("# A draft made by rules. Check every claim, fill in each ?, then set status: curated.")
    show_file(to_yaml(made))
    return 0


def generate(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    require("swarm generate", "PyYAML")
    from choreo.swarm.annotations import load_annotation
    from choreo.swarm.generate import generate, scenario_yaml

    annotation = load_annotation(args.annotation)
    show_file(scenario_yaml(generate(annotation, args.seed), annotation))
    return 0


def study(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    for package in ("swarm-safety", "scikit-learn"):
        require("swarm study", package)
    from choreo.api import quiet
    from choreo.runs.bar import ProgressBar
    from choreo.runs.progress import Progress
    from choreo.studies.swarm.shared import study

    folder = args.out or Path("runs") / f"swarm-{args.name}"
    if args.name != "governance":
        quiet()
    with Progress([ProgressBar()]) as progress:
        try:
            page, report = study.run(
                args.name,
                args.what,
                folder,
                args.seeds or study.SEEDS,
                args.resume,
                args.jobs,
                args.answers,
                args.annotation,
                progress,
            )
        except (Interrupted, KeyboardInterrupt):
            raise Interrupted("what was played is kept; go on with the same command and --resume") from None
    return _print_verdicts(page, report, args.json)


def report(args: argparse.Namespace) -> int:
    from choreo.swarm.extra import require

    require("swarm report", "scikit-learn")
    from choreo.studies.swarm.shared import pages

    page, report = pages.write(args.folder)
    return _print_verdicts(page, report, args.json)


def _print_verdicts(page: Path, report: Mapping[str, Any], as_json: bool) -> int:
    """A SWARM study's verdicts, and where its page is."""
    say(f"report: {page}")
    if as_json:
        from choreo.files.durable import finite

        print(json.dumps(finite(report), allow_nan=False))
    else:
        for claim in report["claims"]:
            print(f"{claim['verdict']}{', ' if claim['scope'] else ''}{claim['scope']}: {claim['claim']}")
    return 0
