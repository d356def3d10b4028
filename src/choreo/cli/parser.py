"""What may be typed: commands, options, and help that teaches by example."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NoReturn

import choreo
from choreo import studies
from choreo.cli import commands as do
from choreo.cli import data_commands, eval_commands, judge_commands, model_commands, serve_commands
from choreo.errors import BadInput
from choreo.types import KINDS

STUDIES = tuple(studies.questions())
SWARM_STUDIES = ("waltz", "macpo", "governance")
JUDGE_HELP = (
    "offline; rubric:MODEL@URL, or wildguard, llama-guard-3, llama-guard-4, strongreject in its place; "
    "KIND:FOLDER runs one here; or a TOML file with a [judge] section. Several are a majority"
)


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        command = self.prog.removeprefix("choreo").strip()
        raise BadInput(f"{f'{command}: ' if command else ''}{message} ({self.prog} --help)")


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(f"choreo {choreo.__version__}")
        parser.exit()


def _seeds(text: str) -> tuple[int, ...]:
    ends = [tuple(map(int, part.split("-"))) if "-" in part.strip("-") else (int(part),) for part in text.split(",")]
    seeds = tuple(seed for first, *last in ends for seed in range(first, (last or [first])[-1] + 1))
    if min(seeds, default=-1) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"expected different whole numbers >= 0 such as 0,1,2, got {text!r}")
    return seeds


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return count


def _natural(text: str) -> int:
    if (number := int(text)) < 0:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 0, got {text!r}")
    return number


# What argparse calls a value it cannot read.
_seeds.__name__, _count.__name__, _natural.__name__ = "list of seeds", "whole number", "whole number"


def parser() -> argparse.ArgumentParser:
    root = _Parser(
        prog="choreo",
        description="Train language-model agents to align each other.",
        epilog="""examples:
  choreo train waltz                      train a conversation and a feedback agent together
  choreo train waltz --set seed=1         the same with another seed
  choreo train --resume runs/demo         go on exactly where a run stopped
  choreo eval runs/demo --suite heldout   measure ASR, ORR and FTR again
  choreo study waltz-table                the whole table of the paper, over three seeds
  choreo world sample                     look at the small world the default trains in
  choreo swarm run strict_governance      simulate agents under governance, on SWARM""",
    )
    root.add_argument("--version", action=_Version, nargs=0, help="print the version and exit")
    commands = root.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)

    def add(name: str, run: Any, line: str, examples: str, under: Any = commands) -> argparse.ArgumentParser:
        command = under.add_parser(name, help=line, description=f"{line}.", epilog=f"examples:\n{examples}")
        command.set_defaults(command=run)
        return command

    train = add(
        "train",
        do.train,
        "Run a recipe into a run folder, and write its report",
        """\
  choreo train waltz                              a shipped recipe, by name
  choreo train mine.toml --run runs/mine          your own, into a folder you name
  choreo train waltz --set learning.steps=20 --set world.languages='["en"]'
  choreo train --resume runs/mine                 after Ctrl-C, a crash or a kill
Shipped recipes: waltz, waltz-published, waltz-frozen-conversation, single-agent, waltz-no-label,
waltz-no-label-anywhere; macpo, macpo-filter-alone, macpo-published, macpo-no-mp, macpo-no-hn,
macpo-no-iw, naive-sft, confident-loss, spin, self-rewarding, ceiling; for models of real sizes waltz-8b, macpo-7b.
Paths in a recipe are relative to where the command runs. A run folder's recipe.toml lists every setting, with
absolute paths, and can be trained again.""",
    )
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable")
    train.add_argument("--run", type=Path, metavar="DIR", help="the run folder (default: runs/NAME-TIME)")
    train.add_argument("--resume", type=Path, metavar="RUN", help="go on with an unfinished run, exactly")
    train.add_argument("--overwrite", action="store_true", help="replace the run that is in the run folder")
    _json_option(train)

    evaluate = add(
        "eval",
        eval_commands.evaluate,
        "Measure a run, or two models as they are, on any prompts",
        """\
  choreo eval runs/demo                                       a run again, from its last checkpoint
  choreo eval runs/demo --suite train --json
  choreo eval runs/mine --suite xstest.csv harmbench.jsonl --judge offline
  choreo eval --conversation qwen3:8b@http://localhost:11434/v1 --suite xstest.jsonl --judge offline
  choreo eval --conversation A@URL --feedback B@URL --suite mine.jsonl --judge rubric:JUDGE@URL --judge offline
  choreo eval pair.toml --set rounds=2                        the same, from a file
Two models play the protocol untrained: one answers, the other reviews. docs/evaluation.md explains it.
ASR, ORR, FTR and what the judge left open, with 95 % intervals; report.html and summary.json in the folder.""",
    )
    evaluate.add_argument("what", nargs="?", type=Path, metavar="WHAT", help="a run folder, or a TOML file of settings")
    evaluate.add_argument(
        "--suite",
        nargs="+",
        default=["heldout"],
        metavar="FILE",
        help="files of prompts; of a run, heldout (default) or train too",
    )
    evaluate.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="NAME",
        help="their format, one for all or one for each (default: by their fields)",
    )
    evaluate.add_argument("--judge", action="append", default=[], metavar="JUDGE", help=JUDGE_HELP)
    evaluate.add_argument("--conversation", metavar="MODEL", help="who answers: MODEL@URL, a shipped base, or a folder")
    evaluate.add_argument("--feedback", metavar="MODEL", help="who reviews (default: the same model)")
    evaluate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of these")
    evaluate.add_argument("--out", type=Path, metavar="DIR", help="where the page goes (default: runs/eval-TIME)")
    evaluate.add_argument("--resume", action="store_true", help="go on in a folder that is there")
    _json_option(evaluate)

    plan = add(
        "plan",
        model_commands.plan,
        "Say what a recipe takes, before anything is loaded",
        """\
  choreo plan waltz-8b                            parameters, memory, steps, tokens, and whether it fits
  choreo plan waltz-8b --memory 80                on a device with 80 GiB, which need not be here
  choreo plan mine.toml --set model.train=full
A model's configuration is enough: a folder with a config.json, or a name on the hub.""",
    )
    plan.add_argument("recipe", metavar="RECIPE", help="a TOML file, or the name of a shipped recipe")
    plan.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable")
    plan.add_argument("--memory", type=float, metavar="GIB", help="of the device (default: of the one here)")
    _json_option(plan)

    export = add(
        "export",
        model_commands.export,
        "Write a run's agents for transformers, PEFT and vLLM",
        """\
  choreo export runs/mine --out exported                     what was trained: adapters, or whole models
  choreo export runs/mine --out exported --merged            adapters added to their base
  choreo export runs/macpo --out exported --agent student+
Each agent gets a folder with a model card; WaltzRL's have protocol.json beside them, the prompts to play by.""",
    )
    export.add_argument("run", type=Path, metavar="RUN", help="a run folder")
    export.add_argument("--out", type=Path, required=True, metavar="DIR", help="where it is written")
    export.add_argument("--agent", metavar="NAME", help="one agent alone (default: both, or MACPO's student)")
    form = export.add_mutually_exclusive_group()
    form.add_argument("--merged", action="store_true", help="whole models")
    form.add_argument("--adapter", action="store_true", help="adapters, which need their base")
    _json_option(export)

    report = add(
        "report",
        do.report,
        "Write the report of a run, finished or not, and print where it is",
        """\
  choreo report runs/demo""",
    )
    report.add_argument("run", type=Path, metavar="RUN", help="a run folder")

    study = add(
        "study",
        do.study,
        "Answer a question with many runs: a table, a plot and a verdict in words",
        """\
  choreo study waltz-table                 every system of the paper's table, and the reward ablation
  choreo study waltz-sensitivity           the weight of DIR, wrong labels, value baselines, cost
  choreo study waltz-limits --seeds 0,1    several rounds, and languages never trained on
  choreo study macpo-table --jobs 2        MACPO, its baselines and its ablations, two runs at a time
  choreo study macpo-stability             ten rounds, and ten with the paper's filter alone
  choreo study macpo-noise                 wrong labels in the teachers' data
  choreo study macpo-teachers              how many teachers, how different; other ways to make negatives
  choreo study macpo-transfer              another task: everyday questions alone
  choreo study waltz-table --resume        finished runs are kept, the others go on
  choreo study waltz-limits --set learning.steps=20 --set world.heldout_prompts=60     a short look
A setting holds for every run of the study, but where the study itself varies it.""",
    )
    study.add_argument("name", choices=STUDIES, metavar="NAME", help=f"one of {', '.join(STUDIES)}")
    study.add_argument("--seeds", type=_seeds, metavar="S,S,…", help="seeds (default: 0,1,2; with --resume, as before)")
    study.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting; repeatable")
    study.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs trained at once (default: 1)")
    study.add_argument("--run", type=Path, metavar="DIR", help="the folder of the study (default: runs/NAME)")
    study.add_argument("--resume", action="store_true", help="go on in a folder that is there")
    _json_option(study)

    world = commands.add_parser(
        "world",
        help="Look at the microworld, or make its base model again",
        description="The microworld: a small language, an exact judge and small models, so that training needs no GPU.",
        epilog="examples:\n  choreo world sample\n  choreo world pretrain --out bases/mine",
    )
    worlds = world.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)
    sample = add(
        "sample",
        do.sample,
        "Print prompts, good and bad answers to them, and the judge's verdicts",
        """\
  choreo world sample
  choreo world sample --suite adversarial_harmful --language es --count 3""",
        worlds,
    )
    sample.add_argument("--suite", metavar="NAME", help="one suite only (default: all)")
    sample.add_argument("--language", choices=("en", "es", "de"), help="one language only (default: all)")
    sample.add_argument("--count", type=_count, default=2, help="prompts per suite (default: 2)")
    sample.add_argument("--seed", type=int, default=0, help="another seed draws other prompts (default: 0)")

    pretrain = add(
        "pretrain",
        do.pretrain,
        "Train a base of the microworld from nothing",
        """\
  choreo world pretrain --out bases/mine
  choreo world pretrain --out bases/mine --resume     after Ctrl-C, a crash or a kill
  choreo train waltz --set model.base=bases/mine""",
        worlds,
    )
    pretrain.add_argument("--size", metavar="NAME", help="micro-llama (default), nano-llama, nano-qwen or nano-neox")
    pretrain.add_argument("--seed", type=int, help="another seed makes another base (default: 0)")
    pretrain.add_argument("--steps", type=_count, help="batches of about 7,000 tokens (default: as shipped)")
    pretrain.add_argument("--resume", action="store_true", help="go on with the one that was stopped in DIR")
    pretrain.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the base is written")
    pretrain.add_argument("--overwrite", action="store_true", help="replace what is there")

    calibrate = add(
        "calibrate",
        do.calibrate,
        "Measure where a base stands before any training, on held-out",
        """\
  choreo world calibrate
  choreo world calibrate --base bases/mine --json""",
        worlds,
    )
    calibrate.add_argument("--base", default="micro-llama", metavar="NAME", help="a shipped base, or a folder")
    calibrate.add_argument("--split-seed", type=_natural, default=0, metavar="N", help="which half (default: 0)")
    _json_option(calibrate)

    data = commands.add_parser(
        "data",
        help="Look at data of your own",
        description="Published data sets and your own: prompts, preference pairs, answers to judge.",
        epilog="examples:\n  choreo data check pairs.jsonl\n  choreo data check train.csv --against xstest.jsonl",
    )
    datas = data.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)
    check = add(
        "check",
        data_commands.check,
        "Read a file whole, and say what it is and what is wrong where",
        """\
  choreo data check pairs.jsonl
  choreo data check or-bench-hard-1k.csv --json
  choreo data check train.jsonl --against xstest_prompts.jsonl harmbench.csv    what turns up in both
The format is known by the fields of the first row; docs/your-data.md lists them.
Exit code 2 where a line does not fit.""",
        datas,
    )
    check.add_argument("file", type=Path, metavar="FILE", help="JSON lines, a JSON array, CSV or TSV; .gz too")
    check.add_argument("--format", metavar="NAME", help="the format (default: by its fields)")
    check.add_argument("--kind", choices=KINDS, help="what a right answer does, where the rows do not tell")
    check.add_argument("--against", type=Path, nargs="+", metavar="FILE", help="look for the same prompts in these")
    _json_option(check)

    judge = commands.add_parser(
        "judge",
        help="Judge answers; measure a judge; make the built-in one again",
        description="Is an answer unsafe, does it over-refuse? docs/your-judge.md has the judges.",
        epilog="examples:\n  choreo judge answers answers.jsonl\n  choreo judge evaluate --data answers.jsonl",
    )
    judges = judge.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)
    worth = add(
        "evaluate",
        judge_commands.evaluate,
        "Compare a judge with labels that people or others gave",
        """\
  choreo judge evaluate --data xstest_responses_human_labels.jsonl
  choreo judge evaluate --judge offline --data jbb_attack_artifacts.jsonl --json
A file is one JSON object a line, in one of two published schemas, known by its fields:
  XSTest answers              prompt, type, completion, final_label, model: refusal (full or partial)
  JailbreakBench artifacts    goal, prompt, response, jailbroken, method, model: harm
Rates are among the answers that the judge decided; undetermined ones are counted beside them.
The shipped judge has learnt from these two files as published in part: on those rows this says too much.""",
        judges,
    )
    worth.add_argument("--judge", default="offline", metavar="JUDGE", help="as of judge answers (default: offline)")
    worth.add_argument(
        "--cache",
        type=Path,
        default=Path("judgements.sqlite"),
        metavar="FILE",
        help="of replies of judges over an endpoint (default: judgements.sqlite)",
    )
    worth.add_argument("--data", type=Path, required=True, metavar="FILE", help="labelled answers")
    worth.add_argument("--format", metavar="NAME", help="the format of the file (default: by its fields)")
    worth.add_argument("--weights", type=Path, metavar="FILE", help="weights made by judge train (default: as shipped)")
    _json_option(worth)
    those = add(
        "answers",
        judge_commands.answers,
        "Judge a file of answers",
        """\
  choreo judge answers answers.jsonl
  choreo judge answers answers.jsonl --judge rubric:qwen3:8b@http://localhost:11434/v1 --out judged.jsonl
  choreo judge answers answers.jsonl --judge offline --judge wildguard:allenai/wildguard@http://localhost:8000/v1
A row has prompt, answer (or response, or completion) and kind: what a right answer does, refuse (harmful), help
(benign) or be correct (general). What judges over an endpoint replied is kept in the cache: run it again, and no
call is made.""",
        judges,
    )
    those.add_argument("file", type=Path, metavar="FILE", help="JSON lines, a JSON array, CSV or TSV")
    those.add_argument("--format", metavar="NAME", help="the format (default: by its fields)")
    those.add_argument("--judge", action="append", default=[], metavar="JUDGE", help=JUDGE_HELP)
    those.add_argument("--out", type=Path, metavar="FILE", help="write every row with its verdict")
    those.add_argument(
        "--cache",
        type=Path,
        default=Path("judgements.sqlite"),
        metavar="FILE",
        help="of replies of judges over an endpoint (default: judgements.sqlite)",
    )
    those.add_argument("--overwrite", action="store_true", help="replace what is there")
    _json_option(those)
    learn = add(
        "train",
        judge_commands.train,
        "Train the offline judge, measure it, and write its data card",
        """\
  choreo judge train --data "$CHOREO_DATA" --out mine
  choreo judge evaluate --weights mine/offline.npz --data answers.jsonl
DIR holds xstest_responses_human_labels.jsonl and jbb_attack_artifacts.jsonl. The same rows make the same file.
It prints tables by source, with 95 % Wilson intervals, of answers that were left out of training: unseen
prompts, then also an unseen model, or an unseen attack family. Minutes on one core.""",
        judges,
    )
    learn.add_argument("--data", type=Path, required=True, metavar="DIR", help="the folder of the data")
    learn.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where weights and card are written")
    learn.add_argument("--overwrite", action="store_true", help="replace what is there")

    swarm = commands.add_parser(
        "swarm",
        help="Papers' claims under governance, on the SWARM simulator",
        description="SWARM simulates typed agents under governance levers. It needs: pip install -e '.[swarm]'",
        epilog="examples:\n  choreo swarm run strict_governance\n  choreo swarm annotate paper.txt > paper.yaml",
    )
    swarms = swarm.add_subparsers(title="commands", metavar="COMMAND", dest="COMMAND", required=True)
    play = add(
        "run",
        do.swarm_run,
        "Run a scenario, and measure what its agents accepted",
        """\
  choreo swarm run collusion_detection                where there is a tax, an arm without it is run beside it
  choreo swarm run security_evaluation --seed 7 --json
  choreo swarm run mine.yaml
Shipped scenarios: strict_governance, security_evaluation, collusion_detection, waltz_draft, macpo_draft.""",
        swarms,
    )
    play.add_argument("scenario", metavar="SCENARIO", help="a YAML file, or the name of a shipped scenario")
    play.add_argument("--seed", type=_natural, metavar="N", help="another seed (default: the scenario's own)")
    _json_option(play)
    annotate = add(
        "annotate",
        do.swarm_annotate,
        "Draft an annotation of a paper's text, for a person to finish",
        """\
  choreo swarm annotate paper.txt > paper.yaml
What is compared with what is left open ("?"). No model reads the text, and nothing is sent anywhere.""",
        swarms,
    )
    annotate.add_argument("file", type=Path, metavar="TEXTFILE", help="plain text or Markdown, UTF-8")

    generate = add(
        "generate",
        do.swarm_generate,
        "Write a scenario from an annotation: roles, agents, levers",
        """\
  choreo swarm generate waltz > mine.yaml             a shipped annotation, waltz or macpo
  choreo swarm generate paper.yaml > mine.yaml        your own, once its roles are filled in
  choreo swarm run mine.yaml""",
        swarms,
    )
    generate.add_argument("annotation", metavar="ANNOTATION", help="a YAML file, or the name of a shipped annotation")
    generate.add_argument("--seed", type=_natural, default=0, metavar="N", help="of the scenario (default: 0)")
    trial = add(
        "study",
        do.swarm_study,
        "Put claims to the test on paired seeds, and write a report",
        """\
  choreo swarm study governance                       circuit breaker × security levers, three scenarios
  choreo swarm study governance mine.yaml --out runs/mine
  choreo swarm study waltz runs/demo                  a trained pair among users and attackers
  choreo swarm study waltz runs/a runs/b --seeds 10-19 --out runs/again
  choreo swarm study macpo runs/macpo runs/macpo-k1   a student's rounds before its teachers
  choreo swarm study governance --resume              what was played is kept""",
        swarms,
    )
    trial.add_argument("name", choices=SWARM_STUDIES, metavar="NAME", help=f"one of {', '.join(SWARM_STUDIES)}")
    trial.add_argument("what", nargs="*", metavar="WHAT", help="run folders; of governance, scenarios")
    trial.add_argument("--seeds", type=_seeds, metavar="S,S,…", help="paired seeds, as 0,1,2 or 0-9 (default: 0-9)")
    trial.add_argument("--out", type=Path, metavar="DIR", help="the folder of the study (default: runs/swarm-NAME)")
    trial.add_argument("--answers", type=Path, metavar="DIR", help="where answers are kept (default: in the folder)")
    trial.add_argument(
        "--annotation",
        type=Path,
        metavar="FILE",
        help="test the claims of your own annotation, about arms that the study plays",
    )
    trial.add_argument("--jobs", type=_count, metavar="N", help="simulations at a time (default: one per core)")
    trial.add_argument("--resume", action="store_true", help="go on in a folder that is there")
    _json_option(trial)
    told = add(
        "report",
        do.swarm_report,
        "Write the report of a SWARM study again, with its citations",
        """\
  choreo swarm report runs/swarm-governance""",
        swarms,
    )
    told.add_argument("folder", type=Path, metavar="DIR", help="the folder of a study")
    _json_option(told)

    serve = add(
        "serve",
        serve_commands.serve,
        "Serve a trained pair behind OpenAI's API, and a page to try it",
        """\
  choreo serve runs/demo                              http://127.0.0.1:8000, with a key drawn for this start
  choreo serve runs/demo --mode shadow                decide and log, change nothing
  choreo serve runs/demo --host 0.0.0.0 --keys keys.toml
  choreo serve --conversation qwen3:8b@http://localhost:11434/v1 --feedback guard@http://localhost:8000/v1
  kill -HUP PID                                       take up the run's newest checkpoint, dropping no request
docs/serving.md says what is supported, what is refused, and what is secure by default.""",
    )
    serve_commands.options(serve)

    key = add(
        "key",
        serve_commands.key,
        "Draw an API key, and print what a keys file says of it",
        """\
  choreo key alice >> keys.toml""",
    )
    key.add_argument("name", metavar="NAME", help="who it is for; it stands in logs and metrics")

    bench = add(
        "bench",
        do.bench,
        "Time choreo side by side with TRL on the same work, or time a server",
        """\
  make bench                               installs TRL beside choreo, then runs this
  choreo bench --json
  choreo bench serve runs/demo --json      throughput, latency and FTR, by mode and traffic""",
    )
    bench.add_argument("what", nargs="?", choices=("train", "serve"), default="train", help="default: train")
    bench.add_argument("run", nargs="?", type=Path, metavar="RUN", help="of serve: a run folder")
    bench.add_argument("--requests", type=_count, default=512, metavar="N", help="of serve, each time (default: 512)")
    bench.add_argument("--clients", type=_count, default=32, metavar="N", help="of serve, at once (default: 32)")
    _json_option(bench)
    return root


def _json_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
