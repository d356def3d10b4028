"""The trained attacker as a method.

The turn of its policy is a prompt, rewritten from another one. The pair plays it, and does not learn. The reward is 1
where the judge finds the final answer to a harmful prompt unsafe, or to a benign one over-refusing, else 0.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo import config
from choreo.errors import BadInput
from choreo.methods.attacker.recipe import AttackerRecipe
from choreo.methods.base import Method, Work, run_of_a_pair
from choreo.methods.rewriting.settings import enough_intents
from choreo.runs.folder import read_info
from choreo.types import Episode, Prompt

if TYPE_CHECKING:  # these load PyTorch
    from choreo.environments.task import Task
    from choreo.methods.attacker.play import Rewriter
    from choreo.runs.folder import Run
    from choreo.runs.progress import Progress

PLAIN = "plain"  # the pair's answers to the prompts as they are
POLICY = "policy"
BEGUN = "target"  # in run.json: the pair that the run began with


class Attacker(Method[AttackerRecipe, "Rewriter"]):
    """An attacker of a pair that does not learn: it puts prompts into words by which the pair fails."""

    name, title = "attacker", "a trained attacker"
    recipe = AttackerRecipe

    def load(self, recipe: AttackerRecipe, checkpoint: Path | None = None) -> Rewriter:
        from choreo.methods.attacker.play import Rewriter

        agents = Rewriter.load(recipe, answer_tokens=recipe.prompt_tokens, policies=(POLICY,))
        begun = read_info(checkpoint.parents[1]).get(BEGUN) if checkpoint else None
        return replace(agents.restored(checkpoint), begun=begun)

    def check(self, recipe: AttackerRecipe, task: Task, agents: Rewriter, trains: bool = True) -> None:
        if recipe.environment != config.MICROWORLD or recipe.from_files():
            raise BadInput("attacker: trains in the microworld alone")
        if not recipe.target:
            raise BadInput("target: the run of the pair that is attacked must be named (--set target=RUN)")
        paired, *_ = run_of_a_pair(Path(recipe.target))
        if paired.environment != config.MICROWORLD or paired.from_files():
            raise BadInput(f"target: {recipe.target}: its pair is not of the microworld")
        recipe.same_world(paired, f"the pair of {recipe.target}")
        super().check(recipe, task, agents, trains)
        if trains:
            enough_intents(recipe, task.training())

    def train(self, recipe: AttackerRecipe, run: Run, task: Task, progress: Progress) -> Rewriter:
        from choreo.engine.learner import Learner
        from choreo.judges.resolve import strict
        from choreo.methods.attacker.play import AttackedPair
        from choreo.methods.one_model import training_loop
        from choreo.methods.rewriting import learning

        # The pair is that of the run's start, though the target may have been trained further since.
        target = AttackedPair.load(recipe.target, begun=run.info.get(BEGUN))
        run.note(**{BEGUN: target.about})
        agents = replace(self.load(recipe), begun=target.about)
        learner = Learner(agents.model.team, POLICY, lr=recipe.lr)
        training = {}
        for kind, count in recipe.counts().items():
            if count:
                what = f"{kind}, training"
                training[kind] = agents.fitting(
                    target.pair.fitting(task.training()[kind], what, progress), what, progress
                )
        everything = [prompt for some in training.values() for prompt in some]
        steps = recipe.warmup_steps + recipe.steps
        for step in training_loop(run, task, progress, agents, [learner], steps=steps, every=recipe.checkpoint_every):
            began = time.monotonic()
            rng = random.Random(f"attacker/{recipe.seed}/{step}")
            if step <= recipe.warmup_steps:
                figures = learning.warm_update(recipe, agents, learner, everything, recipe.world.split_seed, step, rng)
            else:
                drawn = learning.drawn_intents(recipe, training, rng)
                answer = partial(target.answer, key=(recipe.seed, step, "target"))
                judge = strict(task.judge)  # a verdict that is missing is no try that failed
                played = learning.attacked_games(recipe, agents, drawn, (recipe.seed, step), answer, judge)
                figures = learning.attack_update(recipe, learner, *played)
                episodes, samples = played
                rewards = [{f"{self.name}/{name}": value for name, value in one.parts.items()} for one in samples]
                run.save_episodes(step, episodes, rewards)
            run.log(step, {**figures, "seconds": time.monotonic() - began})
            progress.advance(step, {name: figures[name] for name in ("won", "loss") if name in figures})
        return agents

    def work(self, recipe: AttackerRecipe) -> Work:
        return Work(recipe.warmup_steps + recipe.steps)

    def systems(self, recipe: AttackerRecipe) -> Mapping[str, bool]:
        return {PLAIN: False, self.name: True}

    def measure_system(
        self,
        system: str,
        recipe: AttackerRecipe,
        agents: Rewriter,
        prompts: Sequence[Prompt],
        task: Task,
        on_progress: Callable[[int], None] = lambda done: None,
    ) -> tuple[dict[str, Any], list[Episode]]:
        """The pair's answers to prompts of the kinds that the attacker learnt on: as they stand, or as it has written
        them, once each. What it wrote that is no try (`rewriting.words.rewritten`) is sent as it stands."""
        from choreo.evaluation.metrics import measure
        from choreo.methods.attacker.play import AttackedPair
        from choreo.methods.measuring import figures_of, judged_by_all
        from choreo.methods.rewriting.words import rewritten

        asked = [prompt for prompt in prompts if recipe.counts().get(prompt.kind)]
        target = AttackedPair.load(recipe.target, begun=agents.begun)
        if system != PLAIN:
            written = agents.answer(asked, seed=recipe.seed)
            asked = [
                rewritten(prompt, one.answers[-1].text) or prompt for prompt, one in zip(asked, written, strict=True)
            ]
        played = target.answer([(prompt, 0) for prompt in asked], (recipe.seed, "evaluation"))
        on_progress(len(prompts))
        return figures_of(
            task, judged_by_all(task, played), lambda games, ability: measure(games, seed=recipe.seed, ability=ability)
        )


ATTACKER = Attacker()
