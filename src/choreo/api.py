"""What choreo does, as functions: train, evaluate, load, serve, plan, export. The command line calls these.

A function that trains or loads a model imports PyTorch when it is called, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo import config, parallel
from choreo.config.addresses import model_at_url
from choreo.config.collaboration import collaboration, sources
from choreo.config.judge import judge_from
from choreo.config.reading import METHODS
from choreo.config.rollouts import answering
from choreo.errors import BadInput, Interrupted, Terminated
from choreo.evaluation.folder import evaluation_folder
from choreo.files import columns, shipped
from choreo.methods.loaded import LoadedAgents
from choreo.runs.callbacks import Callback, notify
from choreo.runs.checkpoints import checkpoint_at
from choreo.runs.folder import Run, new_folder
from choreo.runs.progress import Progress
from choreo.runs.shipped import placed
from choreo.types import Episode

if TYPE_CHECKING:
    from choreo.experiment.costs import Machine

PARTS = ("heldout", "train")  # what of a run's own prompts can be measured on


def train(
    recipe: str | Path | Mapping[str, Any] | config.Recipe,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
) -> Run:
    """Trains a recipe into a run folder, measures it on held-out prompts, and writes its report.

    recipe: the name of a shipped recipe ("waltz"), a TOML file, a mapping as a TOML file would give, or a recipe.
    out: the run folder; by default runs/NAME-TIME. overrides: settings as "learning.steps=20", which win.
    callbacks: what hears of the run, such as `ProgressBar()`, in the first rank of several.
    overwrite: replace the run that is in `out`.

    Raises BadInput, before anything is made, where the recipe asks for what cannot be; Interrupted, with everything
    saved, where a signal or a callback stopped the run (`Terminated` by SIGTERM): `resume` goes on.
    """
    made = _recipe(recipe, overrides)
    from choreo.experiment.paths import rooted
    from choreo.experiment.run import check

    quiet()
    parallel.first(lambda: check(made))  # before anything is made, or removed by `overwrite`
    return _to_the_end(Run.create(out or new_folder(made.name), rooted(made), overwrite), callbacks)


def resume(run: str | Path, callbacks: Sequence[Callback] = ()) -> Run:
    """Goes on with a run exactly where it stopped: the result is that of a run that never stopped.

    A finished run is returned as it is; only its report is written where that is missing. Raises as `train`.
    """
    held = Run.read(run)
    if not held.finished:
        quiet()
        return _to_the_end(Run.open(run), callbacks)
    if not held.report.is_file():  # the run was killed just before it was written
        from choreo.experiment.report import write_report

        parallel.first(lambda: write_report(held.path))
    return held


def _to_the_end(run: Run, callbacks: Sequence[Callback]) -> Run:
    from choreo.experiment.report import write_report
    from choreo.experiment.run import run_recipe
    from choreo.experiment.tracking import tracking

    trackers = tracking(run)  # in every rank: they agree on whether the libraries are there
    with run, Progress([*callbacks, *trackers] if parallel.rank() == 0 else ()) as progress:
        run.callbacks = progress.callbacks
        progress.say(f"run: {run.path}")
        try:
            run.finish(run_recipe(run, progress))
            parallel.first(lambda: write_report(run.path))
        except (Interrupted, KeyboardInterrupt) as stop:
            if progress.terminated and type(stop) in (Interrupted, KeyboardInterrupt):  # a judge that went away says so
                stop = Terminated(str(stop))
            stop.add_note(f"go on with: choreo train --resume {run.path}")
            raise stop from None
    return run


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    summary: as summary.json has it; "systems" holds the measures of every system with their 95 % intervals.
    episodes: by system, every game that was played, with its verdicts. folder: where the report is, if it was written.
    """

    summary: Mapping[str, Any]
    episodes: Mapping[str, Sequence[Episode[Any]]]
    folder: Path | None = None


def evaluate(
    run: str | Path | Run,
    suites: str | Sequence[str | Path] = "heldout",
    judge: str | Sequence[str] = (),
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    formats: Sequence[str] = (),
    overrides: Sequence[str] = (),
    system_messages: str | Path = "",
    into_existing: bool = False,
) -> EvaluationResult:
    """Measures a run, or a shipped pair by its name, again from its last checkpoint.

    suites: "heldout" or "train", the run's own prompts; or files of prompts. formats: of the files, where their fields
    do not tell. judge: in place of the run's, as on the command line ("offline", "rubric:MODEL@URL", "mine.py:Judge");
    several are a majority. out: a new folder for the report and for the replies of judges; by default runs/eval-TIME
    where files or a judge are named, and none otherwise. into_existing: go on in a folder that is there.
    overrides: who samples, as "engine.rollouts=llama.cpp" (docs/llama-cpp.md). system_messages: a file; every prompt is
    measured once more under one of them, in place of the recipe's `system_messages.heldout`.

    Raises BadInput, Unavailable where a server that samples does not answer, Interrupted.
    """
    path = run.path if isinstance(run, Run) else placed(run)
    if not isinstance(suites, str) and len(suites) == 1 and suites[0] in PARTS:
        suites = str(suites[0])
    own = isinstance(suites, str) and suites in PARTS
    files = [] if own else _files([suites] if isinstance(suites, str) else suites)
    if formats and own:
        raise BadInput("eval: --format is of the files that --suite names")
    Run.read(path)
    engine = answering(overrides)
    named = sources(files, formats) if files else {}
    settings = judge_from([judge] if isinstance(judge, str) else list(judge)) if judge else None

    from choreo.experiment.report import tell_evaluation
    from choreo.experiment.run import evaluate_run

    quiet()
    place = evaluation_folder(out, into_existing) if files or settings or out else nullcontext()
    with place as folder, Progress(callbacks) as bar:
        part = "heldout" if files else str(suites)
        summary, episodes = evaluate_run(path, part, bar, named, settings, folder, engine, str(system_messages))
        found = EvaluationResult({**summary, "suite": ", ".join(map(str, files)) or part}, episodes, folder)
        bar.say(f"{path}, as it was after step {summary['step']}, on {found.summary['suite']}")
        tell_evaluation(found.summary, found.episodes, folder, bar)
    return found


def evaluate_models(
    conversation: str = "",
    feedback: str = "",
    suites: Sequence[str | Path] = (),
    judge: str | Sequence[str] = (),
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    file: str | Path | None = None,
    formats: Sequence[str] = (),
    overrides: Sequence[str] = (),
    into_existing: bool = False,
) -> EvaluationResult:
    """Plays the game between two models as they are, untrained, and measures it: one answers, the other reviews.

    conversation, feedback: MODEL@URL of an OpenAI-compatible server, a shipped base, smollm2, a GGUF file, or a folder.
    Without `feedback` the same model reviews. suites: files of prompts. judge: as of `evaluate`; by default the offline
    judge. file: a TOML file of all these settings, over which the others win. overrides: as "rounds=2".

    Raises BadInput; Interrupted, with every reply kept: the same call with `out` and `into_existing` goes on.
    """
    given: dict[str, Any] = {"conversation": conversation, "feedback": feedback}
    given = {name: value for name, value in given.items() if value}
    if suites:
        given["suites"] = {name: s.model_dump() for name, s in sources(_files(suites), formats).items()}
    elif file is None:
        raise BadInput("eval: name files of prompts with --suite FILE")
    elif formats:
        raise BadInput("eval: --format is of the files that --suite names; in a file it is suites.NAME.format")
    if judge:
        given["judge"] = judge_from([judge] if isinstance(judge, str) else list(judge)).model_dump()
    settings = collaboration(Path(file) if file else None, given, overrides)

    from choreo.evaluation import collaboration as playing
    from choreo.experiment.report import tell_evaluation
    from choreo.files import durable, toml

    if any(model and not model_at_url(model) for model in (settings.conversation, settings.feedback)):
        quiet()  # transformers takes seconds to load, which two servers should not cost
    with evaluation_folder(out, into_existing) as folder, Progress(callbacks) as progress:
        summary, episodes = playing.run(settings, folder, progress)
        durable.write_text(folder / "eval.toml", toml.dumps(settings.model_dump()))
        found = EvaluationResult(summary, episodes, folder)
        tell_evaluation(summary, episodes, folder, progress)
    return found


def attack(
    target: str | Path | Run,
    attacks: Sequence[str] = (),
    suites: Sequence[str | Path] = (),
    judge: str | Sequence[str] = (),
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    formats: Sequence[str] = (),
    into_existing: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Attacks a pair and its conversation agent alone. The summary has ASR and ORR against the number of tries.

    target: a run of a pair, a shipped pair by its name, or MODEL@URL of a server of choreo. attacks: their names, or
    "mine.py:attack"; by default the usual ones that can be played. suites, formats, judge: as of `evaluate`, in place
    of the run's held-out prompts and judge; for a server `suites` or the option `recipe` must say. out: the folder of
    the attack, where every try is kept; by default runs/attack-TIME. into_existing: go on in it. options: the others of
    `choreo.attacks.run.AttackPlan`: tries, most, seed, recipe, writer, step and so on.

    Raises BadInput; Interrupted, with every chunk of tries kept: the same call with `out` and `into_existing` goes on.
    """
    named = target.path if isinstance(target, Run) else target
    files = sources(_files(suites, "attack"), formats) if suites or formats else {}
    settings = judge_from([judge] if isinstance(judge, str) else list(judge)) if judge else None

    from choreo.attacks.run import AttackPlan, run_attack

    quiet()
    place = str(named) if model_at_url(str(named)) else str(placed(named))
    plan = AttackPlan(place, tuple(attacks), files=files, judge=settings, **options)
    return run_attack(plan, out, callbacks, into_existing)


def load(run: str | Path | Run, step: int | None = None) -> LoadedAgents:
    """The agents of a run, or of a shipped pair by its name, as its checkpoint of `step` has them, by default the last;
    untrained at step 0, and where it has none yet.

    Raises BadInput where there is no such run or checkpoint, and where a finished run has lost its checkpoints.
    """
    held = run if isinstance(run, Run) else Run.read(placed(run))
    _, checkpoint = checkpoint_at(held.path, step)
    quiet()
    return LoadedAgents(held.recipe, METHODS.get(held.recipe.method).load(held.recipe, checkpoint))


def serve(run: str | Path | Run | None = None, **options: Any) -> None:
    """Serves a trained pair behind OpenAI's API until it is told to stop (SIGINT, SIGTERM).

    run: a run folder, or the name of a shipped pair.
    options: those of `choreo.server.run.Options`: host, port, mode, model, keys, upstream and so on.
    """
    from choreo.server.extra import require_server

    require_server("serve")
    from choreo.server.run import Options
    from choreo.server.run import serve as serve_until_stopped

    if isinstance(options.get("keys"), str):
        options["keys"] = Path(options["keys"])
    if run is not None:
        quiet()
    serve_until_stopped(Options(run=run.path if isinstance(run, Run) else placed(run) if run else None, **options))


def plan(
    recipe: str | Path | Mapping[str, Any] | config.Recipe,
    memory: float | None = None,
    *,
    overrides: Sequence[str] = (),
    gpus: int = 1,
    nodes: int = 1,
    machine: str | Path | Machine | None = None,
    link: float | None = None,
    price: float | None = None,
    written: float = 1.0,
) -> dict[str, Any]:
    """What a recipe takes: parameters, memory, steps, tokens, and whether it fits; operations, traffic, time and money.
    No weights are loaded, and no server is asked.

    memory: of the device, in GiB; by default that of the device here. gpus: devices of each of `nodes` machines that
    train. machine: what a device does: a file that `choreo bench machine` wrote, or a
    `choreo.experiment.costs.Machine`; None says no time. link: of a file, GB/s between ranks. price: of a device and
    hour. written: how much of the most tokens turns have, on average.

    Raises BadInput for what training refuses.
    """
    from choreo.experiment import machine as machines
    from choreo.experiment import planning, sizing

    made = _recipe(recipe, overrides)
    if isinstance(machine, str | Path):
        machine = machines.read(machine, made.weights().dtype, link * 1e9 if link else None)
    site = planning.Site(memory * sizing.GIB if memory else None, gpus, nodes, machine, price, written)
    return planning.plan(made, site)


def export(
    run: str | Path | Run,
    out: str | Path,
    agent: str | None = None,
    merged: bool | None = None,
    callbacks: Sequence[Callback] = (),
    *,
    push: str | None = None,
    gguf: bool = False,
) -> list[Path]:
    """Writes a run's agents for transformers, PEFT and vLLM, a folder for each. Returns the folders.

    agent: one alone. merged: True for whole models, False for adapters, None for what was trained.
    push: OWNER/NAME on the Hugging Face hub, to which all of `out` is pushed then, with a model card.
    gguf: the pair for llama.cpp's server instead: a base and adapters, as files of which it returns the paths.
    Raises BadInput where the run cannot be exported, or not be pushed; then it is written all the same.
    """
    if gguf and (agent is not None or merged is not None or push is not None):
        raise BadInput("export: --gguf writes a pair, as adapters on one base; --agent, --merged and --push do not fit")
    from choreo.models import push as hub

    if push is not None:
        hub.check_name(push)
    path = Run.read(run.path if isinstance(run, Run) else placed(run)).path
    from choreo.experiment.export import cover, export_run
    from choreo.experiment.export_gguf import export_gguf
    from choreo.files import durable

    quiet()
    try:  # without `Progress`, whose handlers would keep a signal until a safe point: an export has none
        if gguf:
            files, command = export_gguf(path, Path(out))
            notify(callbacks, "on_message", f"serve it with: {command}")
            return files
        folders = export_run(
            path, Path(out), agent, merged, lambda remark: notify(callbacks, "on_message", f"! {remark}")
        )
        if push is not None:
            durable.write_text(Path(out) / "README.md", cover(path, folders))
            notify(callbacks, "on_message", f"pushed: {hub.push(Path(out), push)}")
        return folders
    finally:
        notify(callbacks, "on_end")


def quiet() -> None:
    """transformers shows a bar for every model that it loads, in the middle of ours."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def _recipe(recipe: str | Path | Mapping[str, Any] | config.Recipe, overrides: Sequence[str]) -> config.Recipe:
    if isinstance(recipe, config.Recipe):
        recipe = recipe.model_dump()
    return config.load(recipe, overrides) if isinstance(recipe, (str, Path)) else config.make(recipe, overrides)


def _files(names: Sequence[str | Path], command: str = "eval") -> list[Path]:
    why = "no such file or folder"
    if command == "eval":
        why = f"neither {' nor '.join(PARTS)} of a run, nor a file or folder"
    for name in names:
        if not columns.is_on_hub(name) and not shipped.place(Path(name)).exists():
            raise BadInput(f"{command}: --suite {name}: {why}")
    return [Path(name) for name in names]


__all__ = [
    "EvaluationResult",
    "Interrupted",
    "LoadedAgents",
    "attack",
    "evaluate",
    "evaluate_models",
    "export",
    "load",
    "plan",
    "resume",
    "serve",
    "train",
]
