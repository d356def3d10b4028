"""Agents and a training loop for a method whose policies are all on one model: what a method of one's own begins with.

class Mine(Method[MyRecipe, OneModel]):
    name, recipe = "mine", MyRecipe

    def load(self, recipe, checkpoint=None):
        return OneModel.load(recipe, answer_tokens=recipe.answer_tokens).restored(checkpoint)

    def train(self, recipe, run, task, progress):
        agents = self.load(recipe)
        learner = Learner(agents.model.team, "policy", lr=recipe.lr)
        for step in training_loop(run, task, progress, agents, [learner], steps=recipe.steps, every=10):
            ...  # sample, judge, update; then run.log(step, figures) and progress.advance(step, figures)
        return agents
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from choreo.config.recipe import Recipe
from choreo.engine import checkpoint as checkpoints
from choreo.engine.learner import Learner
from choreo.environments.task import Task
from choreo.errors import BadInput
from choreo.judges.base import JudgeDown
from choreo.methods.agents import Policy
from choreo.methods.judge_watch import JudgeWatch
from choreo.methods.trained_model import TrainedModel
from choreo.models.resolve import other_base
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Episode, Prompt, Turn

POLICY = "policy"


@dataclass(frozen=True)
class OneModel:
    """Policies on one model. One of them, `answering`, answers prompts; the others are the method's own business.

    answer_tokens: at most this many new tokens per answer. temperature: of answers that are measured.
    """

    model: TrainedModel
    answering: str
    answer_tokens: int
    temperature: float

    @classmethod
    def load(cls, recipe: Recipe, *, answer_tokens: int, policies: Sequence[str] = (POLICY,)) -> Self:
        """Every policy starts equal to the first base of the recipe; the first policy answers. Raises BadInput where
        there is no such base."""
        model = TrainedModel.load("the agent", recipe.bases()[0], policies, recipe)
        return cls(model, policies[0], answer_tokens, recipe.evaluation.temperature)

    def restored(self, checkpoint: Path | None) -> Self:
        """These agents, given the weights that a checkpoint of `training_loop` holds; None leaves them as they are.

        Raises BadInput where it was trained on another base, or in another chat format.
        """
        if checkpoint is not None:
            for policy, saved in _load(checkpoint, self)["agents"].items():
                checkpoints.check(checkpoint, saved, {"agent": self.model.team.example(policy)})
                self.model.team.load_state_dict(policy, saved["agent"])
        return self

    @property
    def device(self) -> torch.device:
        return self.model.team.device

    @property
    def remarks(self) -> list[str]:
        return [f"{self.model.base}: {remark}" for remark in self.model.chat.remarks]

    def policies(self) -> dict[str, Policy]:
        return self.model.policies()

    def untrained(self) -> Self:
        return replace(self, model=self.model.untrained())

    def fitting(self, prompts: Sequence[Prompt], what: str, progress: Progress | None = None) -> list[Prompt]:
        """See `Agents.fitting`."""
        kept = [prompt for prompt in prompts if self.model.fits(prompt, self.answer_tokens)]
        where = f"an answer takes {self.answer_tokens} tokens, and the model has {self.model.team.positions} positions"
        if prompts and not kept:
            raise BadInput(f"{what}: no prompt fits: {where}; lower the tokens of an answer, or give shorter prompts")
        if progress and len(kept) < len(prompts):
            progress.say(f"! {what}: {len(prompts) - len(kept)} of {len(prompts)} prompts are left out: {where}")
        return kept

    def write(
        self, prompts: Sequence[Prompt], key: tuple[int | str, ...], *, temperature: float = 1.0, policy: str = ""
    ) -> list[Turn]:
        """One answer to each prompt by `policy`, by default the answering one.

        key: of the noise, such as (seed, step, sample); the prompt's id and the policy's name go with it.
        """
        return self.model.write(
            policy or self.answering,
            [self.model.context(prompt) for prompt in prompts],
            [(*key, prompt.id) for prompt in prompts],
            tokens=self.answer_tokens,
            temperature=temperature,
        )

    def answer(self, prompts: Sequence[Prompt], *, seed: int = 0, temperature: float | None = None) -> list[Episode]:
        """See `Agents.answer`."""
        chosen = self.temperature if temperature is None else temperature
        turns = self.write(prompts, (seed, "evaluation"), temperature=chosen)
        return [Episode(prompt, 0, (turn,)) for prompt, turn in zip(prompts, turns, strict=True)]


def training_loop(
    run: Run,
    task: Task,
    progress: Progress,
    agents: OneModel,
    learners: Sequence[Learner],
    *,
    steps: int,
    every: int,
    label: str = "training",
) -> Iterator[int]:
    """Yields the numbers of the steps that are left, up to `steps`, and saves a checkpoint when one is done.

    The run goes on from its last checkpoint, which holds the weights and the optimiser of every learner. One is saved
    every `every` steps, after the last one, and when the user asks to stop; then Interrupted is raised. Whatever else
    a step takes must follow from its number. Where the recipe has a gold judge, both judges are compared now and then
    on answers of the agents (`JudgeWatch`), and what they find goes into the step's line of metrics.jsonl.

    Raises BadInput where the checkpoint is of another recipe, base or other prompts.
    """
    digest = task.digest
    step, path = run.rewind()
    if path is not None:
        saved = _load(path, agents)
        if saved.get("prompts") != digest:
            raise BadInput(f"{path}: was trained on other prompts than there are now")
        checkpoints.check(path, saved, {"agents": {learner.agent: learner.example() for learner in learners}})
        for learner in learners:
            learner.load_state_dict(saved["agents"][learner.agent])
    for remark in agents.remarks:
        progress.say(f"! {remark}")
    watch = JudgeWatch(task, run)
    run.note(steps=steps)
    progress.start(label, steps, step)
    while step < steps:
        step += 1
        if watch.due(step):
            try:
                run.log_beside(_compared(watch, task, agents, step))
            except (BadInput, JudgeDown):
                if step > 1 and not run.checkpoint(step - 1).exists():
                    checkpoints.save(run.checkpoint(step - 1), _state(step - 1, agents, learners, digest))
                raise
            for alarm in watch.alarms if watch.began else ():
                progress.say(f"! step {step}: {alarm}")
        yield step
        stop = progress.interrupted or watch.stopping  # asked once: what says "saved" below must have been saved
        if step % every == 0 or step == steps or stop:
            checkpoints.save(run.checkpoint(step), _state(step, agents, learners, digest))
        if stop and step < steps:
            raise watch.interruption(step)


def _compared(watch: JudgeWatch, task: Task, agents: OneModel, step: int) -> dict[str, Any]:
    """Both judges on what the agents answer to some training prompts, as they are before `step`."""
    prompts = [prompt for some in task.training().values() for prompt in some]
    drawn = agents.fitting(watch.draw(prompts, step), "gold, training")
    figures = watch.compare(agents.answer(drawn, seed=task.recipe.seed))
    return figures | ({"alarms": watch.alarms} if watch.alarms else {})


def _state(step: int, agents: OneModel, learners: Sequence[Learner], digest: str) -> dict[str, Any]:
    """Only weights that a learner has are saved; the others are as at the start."""
    return {
        "step": step,
        "base": agents.model.fingerprint,
        "frame": agents.model.chat.frame,
        "prompts": digest,
        "agents": {learner.agent: learner.state_dict() for learner in learners},
    }


def _load(path: Path, agents: OneModel) -> dict[str, Any]:
    saved = checkpoints.load(path)
    checkpoints.check(path, saved, {"base": "", "agents": {}})
    if saved["base"] != agents.model.fingerprint:
        raise BadInput(f"{path}: {other_base(agents.model.base, saved['base'])}")
    if strangers := saved["agents"].keys() - agents.model.team.agents.keys():
        raise BadInput(f"{path}: {checkpoints.UNFIT}: it is of an agent {min(map(str, strangers))!r}")
    agents.model.chat.check_frame(saved.get("frame"), str(path))
    return saved
