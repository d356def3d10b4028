"""The warm start as a run of its own, in the folder `warmup` of the run that it belongs to.

What it does follows from the recipe and from what it wrote first, answers.jsonl.gz, so a warm start that is killed and
resumed from a checkpoint repeats itself bit for bit. Until all its own answers are written they are in own.jsonl.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from choreo import parallel
from choreo.data.reading import taken
from choreo.engine import checkpoint
from choreo.engine.learner import Learner
from choreo.engine.losses import sft_loss
from choreo.environments.task import Task
from choreo.errors import BadInput, Interrupted
from choreo.files import durable
from choreo.methods.epochs import planned_epochs
from choreo.methods.waltz.agents import START, Pair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.warmup import answers
from choreo.methods.waltz.warmup.answers import sample_of
from choreo.methods.waltz.warmup.draw import VERDICTS, epoch_rows, measured_rows, repeats, set_apart
from choreo.methods.waltz.warmup.measure import measure_reviews
from choreo.methods.waltz.warmup.report import FOLDER, in_words
from choreo.runs.checkpoints import checkpoints, last_checkpoint
from choreo.runs.folder import Run, is_finished
from choreo.runs.progress import Progress
from choreo.types import FEEDBACK, ReviewedAnswer

ANSWERS, OWN = "answers.jsonl.gz", "own.jsonl"


def warm_start(recipe: WaltzRecipe, run: Run, pair: Pair, task: Task, progress: Progress) -> None:
    """Teaches the feedback agent of `pair`, which is as it begins, to review, or takes what the run has taught it
    before. What it is then is kept as the policy START.

    Raises Interrupted, its state saved where there is any; JudgeDown; BadInput.
    """
    folder = run.path / FOLDER
    if not is_finished(folder) and recipe.warmup.run:
        source = finished(recipe, pair, task)
        parallel.first(lambda: _take(source, folder))
        progress.say(f"warm start: that of {recipe.warmup.run}")
    elif not is_finished(folder):
        begun = (folder / "recipe.toml").is_file()
        with Run.open(folder) if begun else Run.create(folder, recipe, overwrite=folder.exists()) as inner:
            _run(recipe, inner, pair, task, progress)
    learnt = _state(pair, folder)
    for policy in (FEEDBACK, START):
        pair.team(FEEDBACK).load_state_dict(policy, learnt)


def finished(recipe: WaltzRecipe, pair: Pair, task: Task) -> Path:
    """The folder of the warm start that `warmup.run` names. Raises BadInput where there is none that is finished, or
    none of such an agent: of its base, words and rank; and where it has read what this run holds out."""
    folder = Path(recipe.warmup.run) / FOLDER
    if not is_finished(folder):
        raise BadInput(f"warmup.run: {recipe.warmup.run}: no run with a finished warm start")
    _state(pair, folder)
    trained = {prompt.text for prompt in task.suites("train")}  # a run tells of those itself
    rows = [row for row in answers.read(folder / ANSWERS) if row.prompt.text not in trained]
    # In the microworld all sentences are nearly alike, and one other word makes another request.
    found = [same for same in answers.held_out(rows, task.suites("heldout")) if same.equal or recipe.from_files()]
    if texts := {same.measured.text for same in found}:
        count = sum(not texts.isdisjoint((row.prompt.text, row.group)) for row in rows)
        raise BadInput(
            f"warmup.run: {recipe.warmup.run}: {count} of its answers are to prompts that this run holds out, or "
            f"nearly, such as {min(texts)[:80]!r}; name one that has not read them"
        )
    return folder


def _state(pair: Pair, folder: Path) -> dict[str, Any]:
    """The feedback agent as a finished warm start leaves it. Raises BadInput where `pair` has another one."""
    _, path = last_checkpoint(folder)
    saved = pair.read_checkpoint(path)
    checkpoint.check(path, saved, {"agents": {FEEDBACK: {"agent": pair.team(FEEDBACK).example(FEEDBACK)}}})
    state: dict[str, Any] = saved["agents"][FEEDBACK]["agent"]
    return state


def _take(source: Path, folder: Path) -> None:
    """Copies a finished warm start, of its checkpoints only the last. Its summary comes last, so that a copy that was
    broken off is not taken for a finished one."""
    older = {path.name for path in list(checkpoints(source).values())[:-1]}
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(source, folder, ignore=lambda _, names: older & {*names} | {"summary.json", ".lock"} & {*names})
    durable.write_text(folder / "summary.json", (source / "summary.json").read_text(encoding="utf-8"))


def _run(recipe: WaltzRecipe, inner: Run, pair: Pair, task: Task, progress: Progress) -> None:
    """From the first answer, or the last checkpoint, to the summary."""
    warmup, limits = recipe.warmup, recipe.protocol.limits
    rows = _answers(recipe, inner, pair, task, progress)
    learnt, aside = set_apart(rows, warmup.aside)
    if not repeats(learnt, warmup.rows, warmup.mix):
        raise BadInput("warmup: no answer that warmup.mix asks for is left beside those that warmup.aside keeps aside")
    for line in _told(learnt, recipe):
        progress.say(line)
    measured = measured_rows(aside, warmup.measured, f"warmup/{recipe.seed}/measured")

    def measure(name: str, step: int) -> dict[str, Any] | None:
        if not measured:
            return None
        label = f"warm start: reviews {name}"
        figures, games = measure_reviews(pair, measured, limits, progress, label)
        inner.save_episodes(step, games, [{}] * len(games))
        progress.say(f"warm start, {name}: {in_words(figures)}")
        return figures

    if "before" not in inner.info:
        inner.note(before=measure("before", 0))
    steps = _train(recipe, inner, pair, learnt, progress)
    after = measure("after", steps)
    lines = list(durable.read_lines(inner.path / "metrics.jsonl"))
    inner.finish(
        {
            "sources": inner.info["sources"],
            "verdicts": {name: count for name, (count, _) in repeats(learnt, warmup.rows, warmup.mix).items()},
            "aside": len(aside),
            "updates": steps,
            "tokens": sum(line["tokens"] for line in lines),
            "seconds": inner.info["preparing"] + sum(line["seconds"] for line in lines),
            "before": inner.info["before"],
            "after": after,
        }
    )


def _answers(recipe: WaltzRecipe, inner: Run, pair: Pair, task: Task, progress: Progress) -> list[ReviewedAnswer]:
    """What is learnt from, as the run's folder keeps it: answers and verdicts are got once."""
    file, own = inner.path / ANSWERS, inner.path / OWN
    if not parallel.first(file.exists):
        began = time.monotonic() - answers.seconds_of(own)
        rows, counts = answers.gather(recipe, pair, task, progress, own)
        inner.note(sources=counts, preparing=time.monotonic() - began)
        answers.save(file, rows)
        parallel.first(lambda: own.unlink(missing_ok=True))
    for name, count in inner.info["sources"].items():
        progress.say(f"warm start: {taken(name, count)}")
    return answers.read(file)


def _train(recipe: WaltzRecipe, inner: Run, pair: Pair, rows: Sequence[ReviewedAnswer], progress: Progress) -> int:
    """All updates that are left; returns the last one's number. Raises Interrupted, its state saved."""
    warmup, learning = recipe.warmup, recipe.learning
    team, key = pair.team(FEEDBACK), f"warmup/{recipe.seed}"
    learner = Learner(
        team,
        FEEDBACK,
        lr=warmup.lr,
        max_grad_norm=learning.max_grad_norm,
        micro_tokens=learning.micro_tokens,
        masks=pair.masks(FEEDBACK),
    )
    done, path = inner.rewind()
    if path is not None:
        saved = pair.read_checkpoint(path)
        checkpoint.check(path, saved, {"agents": {FEEDBACK: learner.example()}})
        learner.load_state_dict(saved["agents"][FEEDBACK])
    planned = planned_epochs(warmup.rows, epochs=warmup.epochs, batch=warmup.batch, lr=warmup.lr, key=key)
    total = sum(map(len, planned))
    progress.start("warm start", total, done)
    step = 0
    for epoch, batches in enumerate(planned):
        drawn = epoch_rows(rows, warmup.rows, warmup.mix, f"{key}/{epoch}")
        for places, lr in batches:
            step += 1
            if step <= done:
                continue
            began = time.monotonic()
            samples = [sample_of(pair, drawn[i], recipe.protocol.limits, warmup.label_share) for i in places]
            figures = learner.update(samples, sft_loss, lr=lr)
            inner.log(step, {"epoch": epoch + 1, "lr": lr, **figures, "seconds": time.monotonic() - began})
            progress.advance(step, {"loss": figures["loss"]})
            stop = progress.interrupted
            if step % recipe.checkpoint_every == 0 or step == total or stop:
                state = {"step": step, "base": pair.base, "frames": pair.frames()}
                checkpoint.save(inner.checkpoint(step), state | {"agents": {FEEDBACK: learner.state_dict()}})
            if stop:
                raise Interrupted(f"saved at step {step} of the warm start")
    return total


def _told(rows: Sequence[ReviewedAnswer], recipe: WaltzRecipe) -> Iterator[str]:
    found = repeats(rows, recipe.warmup.rows, recipe.warmup.mix)
    parts = [f"{name} {count} (each {times:.2g} times an epoch)" for name, (count, times) in found.items()]
    yield f"warm start: answers to learn from: {', '.join(parts)}"
    for name in VERDICTS:
        if name not in found:
            yield f"! warm start: no answer is {name}, so the agent does not learn to see one"
