"""From a recipe to a finished run, and a run measured again."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from choreo import config
from choreo.config.judge import Judge as JudgeSettings
from choreo.config.prompts import Prompts, Source, SystemMessages
from choreo.config.rollouts import Rollouts
from choreo.data.answers import LabelledAnswer, load
from choreo.data.reading import taken
from choreo.engine.vllm_start import command_of
from choreo.environments.task import Task
from choreo.errors import BadInput, TooFew
from choreo.evaluation.agreement import agreement
from choreo.evaluation.dialogues import dialogue_records
from choreo.evaluation.judge_training import CARD_FILE, training_sources
from choreo.evaluation.judging import failure_lines, open_verdict_lines
from choreo.experiment.paths import code_of
from choreo.experiment.sizing import slower, unreached
from choreo.files import durable
from choreo.judges.base import Judge
from choreo.judges.offline.model import OfflineJudge
from choreo.judges.resolve import counts, describe, in_common, local, parts, probe, unread_history
from choreo.methods.agents import Unread
from choreo.methods.base import method_of
from choreo.models.hub import fingerprint, is_whole
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.models.template import TemplateChat
from choreo.runs.checkpoints import last_checkpoint
from choreo.runs.folder import Run, versions
from choreo.runs.progress import Progress
from choreo.trackers.base import require_trackers
from choreo.types import Episode, Part

SCHEMA = 1


def run_recipe(run: Run, progress: Progress) -> dict[str, Any]:
    """Trains `run` to its end, measures it on held-out, and returns the summary.

    seconds: of all training steps, those before a resume too, without measuring.
    Writes dialogues.json; the caller writes summary.json (`Run.finish`). Raises Interrupted with its state saved.
    """
    recipe = run.recipe
    for change in run.changed(torch.get_num_threads(), code_of(recipe)):
        progress.say(f"! {change} since this run began: the run goes on, but its numbers may be others")
    task = Task(recipe, run.path)
    run.note(**{name: describe(judge) for name, judge in zip(("judge", "gold"), task.judges.values(), strict=False)})
    if task.gold and (same := in_common(task.judge, task.gold) + _rows_in_common(task.judge, task.gold)):
        progress.say(
            f"! the gold judge {task.gold.name} shares {' and '.join(same)} with the training judge {task.judge.name}: "
            "what one takes for good in error, the other may too"
        )
    if foreign := unread_base(recipe):
        progress.say(
            f'! {foreign} has a chat template of its own. judge.kind = "exact" only reads the microworld\'s '
            "language: its verdicts on other text mean nothing. Name a judge in [judge]"
        )
    untouched = unreached(recipe)
    for base, share in untouched.items():
        progress.say(f"{base}: {share['said']}")
    for remark in slower(recipe):
        progress.say(remark)
    method = method_of(recipe)
    if prompts := task.report(method.further_prompts(recipe) if recipe.prompts.heldout else ()):
        run.note(prompts=prompts)
        for line in overlap_words(prompts):
            progress.say(line)
    if unread := unread_history(recipe.judges(), method.measured_prompts(recipe, task, "heldout")):
        progress.say(unread)
    measured = method.run(recipe, run, task, progress)
    found = {**measured.extra, "systems": measured.systems, **judges_of(task)}
    found |= {"adapters": untouched} if untouched else {}
    found |= {"judging": billed} if (billed := _billed(task)) else {}
    episodes = measured.episodes
    given = [verdict for played in episodes.values() for episode in played for verdict in episode.verdicts]
    for line in (*open_verdict_lines(task.judges[task.record].name, given, billed), *failure_lines(episodes)):
        progress.say(line)
    run.save_dialogues([record for name, played in episodes.items() for record in dialogue_records(name, played)])
    return {**_head(recipe), "suite": "heldout", "seconds": _seconds(run.path), **found}


def check(recipe: config.Recipe, trains: bool = True) -> None:
    """Raises BadInput where the recipe asks for what is not there: a judge, a base, or more prompts than there are.

    It loads what training will load, leaves out what has no room there and draws what it will draw of the rest, so
    that no run begins that cannot end. trains: False where it is only to be measured.
    """
    task = Task(recipe)
    _ = task.judges
    if trains and recipe.engine.starts:
        command_of(recipe.engine)
    _check(recipe, task, lambda: method_of(recipe).load(recipe), trains)
    gc.collect()  # with recompute a model's layers are cycles, and would stay in memory beside those of the run
    for settings in recipe.judges():
        probe(settings)


def check_unloaded(recipe: config.Recipe) -> tuple[Task, Any]:
    """The same for `choreo plan`, which loads no weights and asks no server. Returns the task and the agents, without
    weights; `Unread` where a base has no tokenizer here.

    What training refuses beside is what weights or servers say: files of weights whose numbers are not finite, a model
    whose logits are not known, a server that is not there or serves something else; and whether the program that
    starts a sampling server is installed: a plan may be for another machine.
    """
    task = Task(recipe)
    if not local(recipe.judge):
        _ = task.judge
    if recipe.gold and not local(recipe.gold):
        _ = task.gold
    agents = unloaded(recipe)
    _check(recipe, task, lambda: agents, trains=True)
    return task, agents


def _check(recipe: config.Recipe, task: Task, agents: Callable[[], Any], trains: bool) -> None:
    """What both refuse. agents: gives them, once all is checked that takes none."""
    if trains:
        require_trackers(recipe.track.to)
    if recipe.gold and recipe.gold.labels:
        labelled(recipe.gold.labels)
    try:
        if not task.suites("heldout"):
            raise BadInput("prompts: there are no prompts to measure on; name a file in [prompts.heldout.NAME]")
        method_of(recipe).check(recipe, task, agents(), trains)
    except TooFew as error:
        raise BadInput(f"{'prompts' if task.weights else task.place}: {error}") from None


def unloaded(recipe: config.Recipe) -> Any:
    """The agents of a recipe without their weights, as its method loads them on PyTorch's meta device. `Unread` where a
    base is not whole here, or the method computes with weights while it loads them."""
    how = recipe.weights()
    section = next((name for name, value in recipe if value is how), None)
    if section is None or not all(is_whole(base_folder(base, config_only=True)) for base in recipe.bases()):
        return Unread()
    without = recipe.model_copy(update={section: how.model_copy(update={"device": "meta"}), "engine": Rollouts()})
    try:
        return method_of(recipe).load(without)
    except NotImplementedError:  # what PyTorch raises where a tensor without data is computed with
        return Unread()


def unread_base(recipe: config.Recipe) -> str | None:
    """A base that does not speak the microworld's language, where the microworld's exact judge is to read it.

    It is not refused: a small trial of a model of one's own shows that everything runs, and takes no verdict.
    """
    kinds = {kind for settings in recipe.judges() for kind in settings.kinds()}
    if "exact" not in kinds or recipe.environment != config.MICROWORLD:
        return None
    judged = [model for model in method_of(recipe).models(recipe) if model.judged]
    folders = [base_folder(model.base, weights=not recipe.engine.remote) for model in judged]
    chats = ((model.base, load_chat(place, model.template)) for model, place in zip(judged, folders, strict=True))
    return next((base for base, chat in chats if isinstance(chat, TemplateChat)), None)


def bases(recipe: config.Recipe) -> dict[str, str]:
    """The fingerprints of the recipe's bases. Raises BadInput where there is no such base."""
    here = not recipe.engine.remote
    return {name: fingerprint(base_folder(name, weights=here), weights=here) for name in recipe.bases()}


def evaluate_run(
    path: str | Path,
    suite: str,
    progress: Progress,
    files: Mapping[str, Source] | None = None,
    judge: JudgeSettings | None = None,
    cache: Path | None = None,
    engine: Rollouts | None = None,
    system_messages: str = "",
) -> tuple[dict[str, Any], dict[str, list[Episode]]]:
    """A run's systems measured again from its last checkpoint on `suite`, "heldout" or "train", and their episodes.

    files: prompts to measure on in place of the run's own; judge: in place of the run's. cache: the folder that keeps
    an endpoint's replies. engine: who samples, in place of this process. system_messages: a file of those to measure
    under too, in place of the run's. Raises BadInput where the run has no
    checkpoint, or its recipe or these ask for what cannot be; Interrupted.
    """
    recipe = config.load(file := Path(path) / "recipe.toml")
    if unset := config.unset(file):
        raise BadInput(f"{file}: {unset[0]}: is missing; the recipe of a run must have every setting")
    recipe = measured_on(recipe, files or {}, judge)
    if system_messages:
        recipe = _measured_under(recipe, system_messages)
    engine, method = engine or Rollouts(), method_of(recipe)
    if not (engine.local or method.has_pair):
        raise BadInput(f"{path}: is a run of {method.name}; a server samples for a pair alone (engine.rollouts)")
    check(recipe, trains=False)
    step, folder = last_checkpoint(path)
    task = Task(recipe, cache or Path(path))
    for name, source in task.sources.items():
        progress.say(taken(name, source))
    agents = method.load(recipe, folder)
    for remark in agents.remarks:
        progress.say(f"! {remark}")
    with nullcontext(agents) if engine.local else agents.sampled_by(engine) as asked:
        measured = method.measure(recipe, asked, task, _part(suite), progress)
    summary = {
        **_head(recipe),
        "suite": suite,
        "step": step,
        "seconds": _seconds(Path(path), step),
        "device": str(agents.device),
        "engine": {"rollouts": engine.rollouts, "url": [*engine.url]}
        if not recipe.engine.remote
        else {"backend": recipe.engine.backend, "url": [*recipe.engine.url]},
        "judge": describe(task.judges[task.record]),
        "judging": _billed(task),
        "systems": measured.systems,
        **judges_of(task),
    }
    return summary, measured.episodes


def measured_on(recipe: config.Recipe, files: Mapping[str, Source], judge: JudgeSettings | None) -> config.Recipe:
    """The recipe with other prompts to measure on, and another judge in place of all of its own. Raises BadInput where
    they do not go together."""
    used = (judge,) if judge else recipe.judges()
    if files and any("exact" in settings.kinds() for settings in used):
        raise BadInput("the run's judge knows the microworld alone; name another for your files with --judge")
    if not files and recipe.from_files() and judge and "exact" in judge.kinds():
        raise BadInput("--judge exact knows the microworld alone, and this run's prompts come from files")
    # The files that were trained on are not opened then: a run may be measured where they are not.
    others: dict[str, Any] = {"heldout": dict(files)}
    others |= {"train": {}} if isinstance(recipe.prompts, Prompts) else {}
    prompts = recipe.prompts.model_copy(update=others if files else {})
    judges: dict[str, Any] = {"judge": judge, "gold": None} if judge else {}
    settings = getattr(recipe, "system_messages", None)
    if files and isinstance(settings, SystemMessages):
        judges["system_messages"] = settings.model_copy(update={"heldout": ""})  # so are its system messages
    return recipe.model_copy(update={"prompts": prompts, **judges})


def _measured_under(recipe: config.Recipe, file: str) -> config.Recipe:
    """The recipe with other system messages to measure under. Raises BadInput where its method knows none."""
    settings = getattr(recipe, "system_messages", None)
    if not isinstance(settings, SystemMessages):
        raise BadInput(f"--system-messages: a run of {recipe.method} is not measured under system messages")
    return recipe.model_copy(update={"system_messages": settings.model_copy(update={"heldout": file})})


def judges_of(task: Task) -> dict[str, Any]:
    """For a summary, {"judges": {"training", "gold"}}: who they are and, where the recipe names labels by people, how
    far each agrees with these (`agreement.agreement`). Empty without a gold judge."""
    settings = task.recipe.gold
    if not settings:
        return {}
    told = {name: describe(judge) for name, judge in task.judges.items()}
    if settings.labels:
        rows = labelled(settings.labels)
        for name, judge in task.judges.items():
            told[name] |= {"agreement": agreement(judge, rows, task.recipe.seed)}
    return {"judges": told}


def labelled(file: str) -> list[LabelledAnswer]:
    """The answers of a file that people labelled. Raises BadInput where it has no labels."""
    rows = load(file).rows
    if not any(label is not None for row in rows for label in (row.refusal, row.harm, row.degenerate)):
        raise BadInput(f"{file}: has no labels to compare with; write refusal, unsafe or degenerate beside answers")
    return rows


def _rows_in_common(one: Judge, other: Judge) -> list[str]:
    """In words, from which sources both judges learnt, by their data cards; empty where these tell of none."""
    mine, theirs = (set().union(*map(_sources_of, parts(judge))) for judge in (one, other))
    return [f"rows to learn from ({'; '.join(both)})"] if (both := sorted(mine & theirs)) else []


def _sources_of(judge: Judge) -> set[str]:
    if isinstance(judge, OfflineJudge):
        return training_sources(judge.path)
    folder = getattr(judge, "folder", None)  # of a trained judge, which has its card there
    return training_sources(Path(folder, CARD_FILE)) if folder else set()


def _billed(task: Task) -> dict[str, Any]:
    """`counts` of all judges."""
    return {name: numbers for judge in task.judges.values() for name, numbers in counts(judge).items()}


def _seconds(run: Path, step: float = float("inf")) -> float:
    """Of all training steps up to `step`, those before a resume too, without measuring."""
    return sum(line.get("seconds", 0.0) for line in durable.read_lines(run / "metrics.jsonl") if line["step"] <= step)


def _part(suite: str) -> Part:
    return "train" if suite == "train" else "heldout"


def _head(recipe: config.Recipe) -> dict[str, Any]:
    """What a summary says first, whatever the method."""
    return {
        "schema": SCHEMA,
        "method": method_of(recipe).name,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "split_seed": recipe.world.split_seed,
        "bases": bases(recipe),
        "versions": versions(),
    }


def overlap_words(report: Mapping[str, Any], listed: str = "run.json") -> list[str]:
    """What is reported of prompts from files before a run begins: how many, and how many of them on both sides.

    listed: what lists the latter.
    """
    lines = [taken(name, source) for name, source in report["sources"].items()]
    hows = {"equal": "are also training prompts, word for word", "near": "are nearly the same as training prompts"}
    both = [f"{count} {how}" for side, how in hows.items() if (count := report["overlap"][side])]
    return [*lines, *([f"! of the held-out prompts, {'; '.join(both)}; {listed} lists them"] if both else [])]
