"""The MACPO trainer (arXiv 2410.07672, section 3): the phases of the schedule, one after the other.

A phase trains one policy, with an optimiser of its own, on what `phase_data` makes for it, and ends in a checkpoint. It
follows from the recipe, the phase, the weights and what was written before, so a run that is killed and resumed from a
checkpoint repeats itself bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

from choreo.data.reading import taken
from choreo.engine import checkpoint
from choreo.engine.learner import Learner
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.methods.epochs import planned_epochs
from choreo.methods.judge_watch import JudgeWatch
from choreo.methods.macpo.agents import MacpoAgents
from choreo.methods.macpo.answers import AnswerWriter
from choreo.methods.macpo.generation_cache import EXAMPLE
from choreo.methods.macpo.phase_data import confident, phase_data
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, Phase, phases_done, schedule
from choreo.methods.macpo.select import perplexity
from choreo.methods.macpo.sizing import steps_of
from choreo.methods.macpo.split import PromptSplit, split_prompts, without_overflow
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Episode


def train(
    recipe: MacpoRecipe, run: Run, progress: Progress, agents: MacpoAgents | None = None, task: Task | None = None
) -> Iterator[tuple[int, MacpoAgents]]:
    """Yields (round, agents) at the end of the start (round 0) and of every round, for the caller to measure.

    It goes on from the run's last checkpoint if there is one; a round that had ended there is yielded again. The caller
    may stop early. agents: the recipe's untrained agents, where they are loaded already; these are yielded. task: has
    the judges that are compared along training, where the recipe has a gold judge; None compares none.
    Raises Interrupted, its state saved, when `progress` was interrupted, or when the recipe wants a stop where the
    judges part; both come at the end of a phase.
    """
    agents = agents or MacpoAgents.load(recipe)
    data = without_overflow(recipe, split_prompts(recipe), agents)
    writer = AnswerWriter(recipe, agents, data.unlabelled)
    if data.counts:
        run.note(data=data.counts)
        progress.say(taken(recipe.data.file or "prompts", data.counts))
    phases = schedule(recipe)
    done, (step, path) = 0, run.rewind()
    if path is not None:
        saved = checkpoint.load(path)
        if saved.get("data") != data.digest:
            now = recipe.data.file or "the world"
            raise BadInput(f"{path}: was trained on other prompts or labels than {now} has now")
        checkpoint.check(path, saved, {"phases": [""], "agents": {}, "book": EXAMPLE})
        done = phases_done(saved["phases"], phases, str(path))
        agents.load_state_dict(saved["agents"], str(path))
        writer.cache.load_state_dict(saved["book"])
    watch = JudgeWatch(task, run)
    for remark in agents.remarks:
        progress.say(f"! {remark}")
    ahead = [steps_of(recipe, phase) for phase in phases]
    run.note(steps=step + sum(ahead[done:]))
    if path is not None and phases[done - 1].last:
        yield phases[done - 1].round, agents
    for number, phase in enumerate(phases[done:], start=done + 1):
        progress.start(_words(phase), step + sum(ahead[number - 1 :]), step)
        step = train_phase(writer, data, phase, run, progress, watch, step)
        run.note(steps=step + sum(ahead[number:]))  # a phase has fewer where a prompt has nothing to learn from
        trained = [str(phase) for phase in phases[:number]]
        state = {"phases": trained, "data": data.digest, "agents": agents.state_dict()}
        state["book"] = writer.cache.state_dict()
        checkpoint.save(run.checkpoint(step), state)
        if progress.interrupted or watch.stopping:
            raise watch.interruption(step)
        if phase.last:
            yield phase.round, agents


def train_phase(
    writer: AnswerWriter, data: PromptSplit, phase: Phase, run: Run, progress: Progress, watch: JudgeWatch, step: int
) -> int:
    """Trains one policy through its phase and records every update; returns the last step's number."""
    recipe, agent = writer.recipe, writer.agents[phase.agent]
    policy = agent.name + phase.side
    began = time.monotonic()
    if (phase.round, phase.agent, phase.side) == (0, STUDENT, "-"):
        # The student's negative agent begins where its positive one stands after its start.
        agent.team.load_state_dict(agent.negative, agent.team.state_dict(agent.positive))
    made = phase_data(writer, data, phase)
    preparing = time.monotonic() - began
    learner = Learner(agent.team, policy, lr=made.lr, micro_tokens=recipe.micro_tokens)
    first, updates = step, made.epochs * math.ceil(len(made.units) / made.batch)
    key = f"epoch/{recipe.seed}/{phase.round}/{policy}"
    planned = planned_epochs(len(made.units), epochs=made.epochs, batch=made.batch, lr=made.lr, key=key)
    if not updates:  # no prompt had anything to learn from; the record says so
        step += 1
        run.log(step, {"round": phase.round, "agent": policy, "sequences": 0, **made.figures, "seconds": preparing})
        run.save_episodes(step, *_record(writer))
    starts_student = (phase.round, phase.agent, phase.side) == (0, STUDENT, "+")
    for epoch, batches in enumerate(planned):
        units = confident(writer, made.units, epoch) if starts_student else made.units
        for places, lr in batches:
            began = time.monotonic()
            compared = _compared(watch, writer, data, step + 1) if policy == writer.agents.student.positive else {}
            figures: dict[str, Any] = dict(learner.update([units[i] for i in places], made.loss, lr=lr))
            step += 1
            extra = made.figures if step == first + updates else {}
            seconds = time.monotonic() - began + (preparing if step == first + 1 else 0.0)
            line = {"round": phase.round, "agent": policy, "lr": lr, **figures, **extra, "seconds": seconds}
            run.log(step, {**line, **compared, "alarms": watch.alarms} if compared else line)
            if writer.cache.unrecorded:
                run.save_episodes(step, *_record(writer))
            shown: dict[str, float] = {n: figures[n] for n in ("loss", "accuracy") if n in figures}
            progress.advance(step, shown, watch.alarms)
    if phase.round == 0 and phase.side == "+" and recipe.rounds.reference == "sft":
        agent.team.load_state_dict(f"{agent.name}-start", agent.team.state_dict(policy))
    return step


def _compared(watch: JudgeWatch, writer: AnswerWriter, data: PromptSplit, step: int) -> dict[str, Any]:
    """Both judges on what the student answers to some labelled prompts, before the update of `step`; nothing where none
    is due. The labelled prompts alone have kept their meaning, which an exact judge reads."""
    if not watch.due(step):
        return {}
    agents = writer.agents
    prompts = watch.draw([row.prompt for row in data.labelled], step)
    return watch.compare(agents.answers_of(agents.student, agents.student.positive, prompts, writer.recipe.seed))


def _record(writer: AnswerWriter) -> tuple[list[Episode], list[dict[str, float]]]:
    """What was written since the last record, as episodes, each with its perplexity under the policy that wrote it."""
    episodes: list[Episode] = []
    paid: list[dict[str, float]] = []
    for turns in writer.cache.unrecorded.values():
        for prompt, turn in zip(writer.prompts, turns, strict=True):
            episodes.append(Episode(prompt, len(episodes), (turn,)))
            paid.append({"perplexity": perplexity(turn.logprobs)})
    writer.cache.unrecorded.clear()
    return episodes, paid


def _words(phase: Phase) -> str:
    when = "start" if phase.round == 0 else f"round {phase.round}"
    return f"{when}, {phase.agent}{phase.side}"
