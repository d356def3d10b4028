"""A training method of your own in one file: critique and revise, distilled.

    python examples/third_method.py
    choreo train --resume runs/third-method      after Ctrl-C or a kill
    choreo eval runs/third-method
    choreo plan examples/third_method.toml
    choreo export runs/third-method --out exported

A step: the model writes several drafts to each prompt, and the judge reads them. Where a prompt has a satisfactory
draft, one is kept. Where it has none, the model revises one draft after a critique made from the judge's labels, and
the revision is kept if it is satisfactory. The model then learns what was kept, by likelihood, as an answer to the bare
prompt: it needs neither drafts nor critique any more. choreo measures, plans, exports and reports it like its own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

import choreo
from choreo.config.common import Positive, Weights
from choreo.config.prompts import Prompts

POLICY = "policy"


class Model(Weights):
    base: str = Field("micro-llama", description="a shipped base, a folder, or the name of a model on the hub")


class DistilRecipe(choreo.Recipe):
    """Settings of the method. A TOML file gives them; every one has a default and a meaning."""

    method: str = f"{__file__}:METHOD"
    name: str = "critique-and-revise"
    prompts: Prompts = Prompts()
    model: Model = Model()
    steps: Positive = Field(40, description="training steps")
    batch: Positive = Field(16, description="prompts per step")
    drafts: Positive = Field(4, description="answers to each prompt")
    answer_tokens: Positive = Field(40, description="at most this many new tokens per answer")
    lr: float = Field(2e-3, gt=0)
    checkpoint_every: Positive = 10

    def bases(self) -> tuple[str, ...]:
        return (self.model.base,)

    def weights(self) -> Weights:
        return self.model


class Distil(choreo.Method[DistilRecipe, choreo.OneModel]):
    name, recipe, title = "critique-and-revise", DistilRecipe, "critique and revise, distilled"

    def load(self, recipe: DistilRecipe, checkpoint: Path | None = None) -> choreo.OneModel:
        return choreo.OneModel.load(recipe, answer_tokens=recipe.answer_tokens).restored(checkpoint)

    def work(self, recipe: DistilRecipe) -> choreo.Work:
        """For `choreo plan`: at most so many updates, and so many tokens that are written."""
        written = recipe.steps * recipe.batch * (recipe.drafts + 1) * recipe.answer_tokens
        return choreo.Work(recipe.steps, written)

    def train(self, recipe: DistilRecipe, run: choreo.Run, task: choreo.Task, progress: Any) -> choreo.OneModel:
        agents = self.load(recipe)
        learner = choreo.Learner(agents.model.team, POLICY, lr=recipe.lr)
        everything = [prompt for prompts in task.training().values() for prompt in prompts]
        pool = agents.fitting(everything, "training", progress)
        steps, every = recipe.steps, recipe.checkpoint_every
        for step in choreo.training_loop(run, task, progress, agents, [learner], steps=steps, every=every):
            began = time.monotonic()
            prompts = batch(pool, recipe, step)
            drafts = rollout(agents, task, prompts, recipe, step)
            kept = {e.prompt.id: e for e in drafts if e.verdicts[0].satisfactory}
            rate = sum(e.verdicts[0].satisfactory for e in drafts) / len(drafts)
            revised = revise(agents, task, [e for e in drafts if e.prompt.id not in kept], recipe, step)
            mended = {e.prompt.id: e for e in revised if e.verdicts[0].satisfactory}
            figures = {"satisfactory": rate, "revised": len(mended) / len(prompts)}
            if chosen := list((kept | mended).values()):
                samples = [sample(agents, episode) for episode in chosen]
                figures |= learner.update(samples, choreo.sft_loss)
            run.log(step, {**figures, "seconds": time.monotonic() - began})
            run.save_episodes(step, drafts, [{"satisfactory": float(e.verdicts[0].satisfactory)} for e in drafts])
            progress.advance(step, {"satisfactory rate": rate})
        return agents


def batch(pool: Sequence[choreo.Prompt], recipe: DistilRecipe, step: int) -> list[choreo.Prompt]:
    """The prompts of a step, evenly over the pool. They follow from the step alone: a resumed run is the same."""
    stride = max(1, len(pool) // recipe.batch)
    return [pool[(step + i * stride) % len(pool)] for i in range(min(recipe.batch, len(pool)))]


def rollout(
    agents: choreo.OneModel, task: choreo.Task, prompts: Sequence[choreo.Prompt], recipe: DistilRecipe, step: int
) -> list[choreo.Episode]:
    """`drafts` judged answers to every prompt."""
    episodes = []
    for draft in range(recipe.drafts):
        turns = agents.write(prompts, (recipe.seed, step, draft))
        episodes += [choreo.Episode(prompt, draft, (turn,)) for prompt, turn in zip(prompts, turns, strict=True)]
    return choreo.judge_episodes(task.judge, episodes)


def revise(
    agents: choreo.OneModel, task: choreo.Task, bad: Sequence[choreo.Episode], recipe: DistilRecipe, step: int
) -> list[choreo.Episode]:
    """One judged revision for every prompt without a satisfactory draft, after a critique of its first draft."""
    first = list({episode.prompt.id: episode for episode in reversed(bad)}.values())
    first = [episode for episode in first if not episode.verdicts[0].undetermined]  # else there is nothing to say
    if not first:
        return []
    chat = agents.model.chat
    contexts = []
    for episode in first:
        critique = task.advice(episode.prompt, episode.verdicts[0])
        history = [(episode.answers[0].ids, chat.encode(critique))]
        contexts.append(chat.answer_context(chat.encode(episode.prompt.text), history))
    turns = agents.model.write(
        POLICY,
        contexts,
        [(recipe.seed, step, "revision", episode.prompt.id) for episode in first],
        tokens=recipe.answer_tokens,
        temperature=1.0,
    )
    revised = [choreo.Episode(e.prompt, recipe.drafts, (turn,)) for e, turn in zip(first, turns, strict=True)]
    return choreo.judge_episodes(task.judge, revised)


def sample(agents: choreo.OneModel, episode: choreo.Episode) -> choreo.Sample:
    """What was kept, as an answer to the bare prompt."""
    turn = episode.answers[0]
    return choreo.Sample(POLICY, agents.model.context(episode.prompt), turn.ids, (), episode.prompt.id, 1.0)


METHOD = Distil()


def main(out: str = "runs/third-method", overrides: Sequence[str] = ()) -> choreo.Run:
    recipe = {"method": f"{__file__}:METHOD"}
    run = choreo.train(recipe, out, [choreo.ProgressBar()], overrides=overrides)
    for system, measures in run.summary["systems"].items():
        print(system, {name: measures[name]["value"] for name in ("asr", "orr", "f1")})
    return run


if __name__ == "__main__":
    main()
