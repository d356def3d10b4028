"""`choreo data ceilings`: whether a student could do better than its weak teachers at all, measured before any MACPO.

Every agent is trained as MACPO's start trains it, but on human labels: the teachers on those of the labelled prompts,
the student on those of the unlabelled ones (the strong ceiling). Where the student does not end above its teachers,
nothing that it learns from them by a better method can be told from what it lacks itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from choreo import config
from choreo.data.reading import taken
from choreo.environments.task import Task
from choreo.errors import BadInput, Interrupted, TooFew
from choreo.evaluation.metrics import satisfactory
from choreo.evaluation.paired import ASR, ORR, REWARD, Tables, paired_difference
from choreo.experiment.run import overlap_words
from choreo.files import durable
from choreo.files.json_file import read_object
from choreo.methods.judge_watch import JudgeWatch
from choreo.methods.macpo.agents import MacpoAgent, MacpoAgents
from choreo.methods.macpo.answers import AnswerWriter
from choreo.methods.macpo.measure import describe_answers
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, Phase, ceiling_of
from choreo.methods.macpo.sizing import steps_of
from choreo.methods.macpo.split import split_prompts, without_overflow
from choreo.methods.macpo.trainer import train_phase
from choreo.methods.measuring import figures_of, judged_by_all
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Episode, Prompt

STATISTICS = {"reward": REWARD, "asr": ASR, "orr": ORR}


def ceilings(recipe: MacpoRecipe, progress: Progress, kept: Path | None = None) -> dict[str, Any]:
    """Trains every agent of `recipe` on human labels, and measures it on the held-out prompts, by the recipe's judges.

    kept: a file that every agent's measures are written to; an agent that it has is not trained again.
    Returns {"judge", "labels", "prompts", "heldout", "overlap", "agents", "learnt", "differences", "above"}. labels,
    prompts: how many prompts the teachers and the student learn from. heldout: how many are measured on. overlap: those
    of them that are trained on too, as in `Task.report`; empty where they are the environment's. agents:
    {name: {"base": figures, "trained": figures}}, by the judge of record, with the training judge's in them where that
    is another. learnt: of every agent, trained minus base; differences: of every teacher, the student minus it, both
    trained; each {"reward", "asr", "orr"} of a `PairedDifference`. above: whether the student's reward is above every
    teacher's, with 95 % intervals that do not reach zero.

    Raises Interrupted after a stop, and BadInput where there are too few prompts, or `kept` is of another recipe, other
    pairs, other models or another template.
    """
    if kept:
        durable.check_place(kept)
    human = ceiling_of(recipe)  # the student's start on human labels, without the confident loss
    text = config.to_toml(recipe)
    there: dict[str, Any] = read_object(kept) if kept and kept.exists() else {"recipe": text, "agents": {}}
    if there.get("recipe") != text or not isinstance(there.get("agents"), dict):
        raise BadInput(f"{kept}: holds no measures of this recipe; name another file with --out")
    try:
        task, split = Task(recipe), split_prompts(human)
    except TooFew as error:
        raise BadInput(f"data ceilings: {error}") from None
    agents = MacpoAgents.load(recipe)
    models = {agent.name: {"base": agent.fingerprint, "frame": agent.chat.frame} for agent in agents}
    made_of = {"data": split.digest, "models": models}
    if there["agents"] and any(there.get(name) != now for name, now in made_of.items()):
        raise BadInput(f"{kept}: holds measures of other pairs, models or templates; name another file with --out")
    there |= made_of
    data = without_overflow(human, split, agents)
    prompts = agents.fitting(task.suites("heldout"), "heldout", progress)
    if data.counts:
        progress.say(taken(recipe.data.file or "prompts", data.counts))
    both = task.report([*(row.prompt for row in data.labelled), *data.unlabelled])
    for line in overlap_words(both, "--json") if both else ():
        progress.say(line)
    writer = AnswerWriter(human, agents, data.unlabelled)
    measured: dict[str, Any] = there["agents"]
    with tempfile.TemporaryDirectory() as folder, Run.create(Path(folder) / "run", recipe) as run:
        for agent in (*agents.teachers, agents.student):
            if agent.name in measured:
                continue
            base = _measured(task, agents, agent, prompts, progress)
            phase = Phase(0, agent.name, "+")
            progress.start(f"training {agent.name} on human labels", steps_of(human, phase))
            train_phase(writer, data, phase, run, progress, JudgeWatch(None, run), 0)
            measured[agent.name] = {"base": base, "trained": _measured(task, agents, agent, prompts, progress)}
            if kept:
                durable.write_json(kept, there)
    differences = {
        teacher.name: minus(measured[STUDENT]["trained"]["outcomes"], measured[teacher.name]["trained"]["outcomes"])
        for teacher in agents.teachers
    }
    return {
        "judge": task.record,
        "labels": len(data.labelled),
        "prompts": len(data.ceiling),
        "heldout": len(prompts),
        "overlap": both.get("overlap", {}),
        "agents": {name: {when: _shown(found) for when, found in of.items()} for name, of in measured.items()},
        "learnt": {name: minus(of["trained"]["outcomes"], of["base"]["outcomes"]) for name, of in measured.items()},
        "differences": differences,
        "above": all((of["reward"]["low"] or 0.0) > 0 for of in differences.values()),
    }


def minus(a: Tables, b: Tables) -> dict[str, Any]:
    """a − b, paired by prompt: of reward, ASR and ORR."""
    return {name: asdict(paired_difference([a], [b], of)) for name, of in STATISTICS.items()}


def _measured(
    task: Task, agents: MacpoAgents, agent: MacpoAgent, prompts: Sequence[Prompt], progress: Progress
) -> dict[str, Any]:
    """Figures of the agent's positive policy as it stands, and the outcomes that they are of. Raises Interrupted."""
    _stop_if_asked(progress)  # a stop during training does not wait for the measuring
    learnt = agent.team.version[agent.positive]
    progress.start(f"measuring {agent.name}{'' if learnt else ', its base'}", 1)
    played = agents.answers_of(agent, agent.positive, prompts, task.recipe.seed)
    refuses = task.refuses([e.prompt for e in played], [e.answers[-1].text for e in played])

    def figures(episodes: list[Episode], ability: bool) -> dict[str, Any]:
        return describe_answers(episodes, refuses, seed=task.recipe.seed, ability=ability)

    found, episodes = figures_of(task, judged_by_all(task, played), figures)
    progress.advance(1)
    _stop_if_asked(progress)
    return {**found, "outcomes": _outcomes(episodes)}


def _stop_if_asked(progress: Progress) -> None:
    if progress.interrupted:
        raise Interrupted("the agent at work is not kept; those before it are, where --out names a file")


def _outcomes(episodes: Sequence[Episode]) -> Tables:
    """By measure and prompt, for `paired_difference`. An answer that the judge left open is not satisfactory, as in the
    reward."""
    last = [(episode.prompt, episode.verdicts[-1]) for episode in episodes]
    return {
        "satisfactory": {prompt.id: bool(satisfactory(verdict)) for prompt, verdict in last},
        "unsafe": {prompt.id: verdict.unsafe for prompt, verdict in last if prompt.kind == "harmful"},
        "overrefuse": {prompt.id: verdict.overrefuse for prompt, verdict in last if prompt.kind == "benign"},
    }


def _shown(found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "outcomes"}
