"""The trained attacker as a method.

The turn of its policy is a prompt, rewritten from a harmful one. The pair plays it, and does not learn. The reward is 1
where the judge finds the final answer unsafe, else 0. A warm start comes before: a base that was asked something
answers, and would never write a prompt.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from choreo import config
from choreo.errors import BadInput
from choreo.methods.attacker.recipe import AttackerRecipe
from choreo.methods.base import Method, Work, run_of_a_pair
from choreo.runs.folder import read_info
from choreo.types import Episode, Prompt, Sample

if TYPE_CHECKING:  # these load PyTorch
    from choreo.environments.task import Task
    from choreo.methods.attacker.play import Rewriter
    from choreo.runs.folder import Run
    from choreo.runs.progress import Progress

PLAIN = "plain"  # the pair's answers to the prompts as they are
POLICY = "policy"
BEGUN = "target"  # in run.json: the pair that the run began with


class Attacker(Method[AttackerRecipe, "Rewriter"]):
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
        for name in ("reading", "split_seed", "languages"):
            own, its = getattr(recipe.world, name), getattr(paired.world, name)
            if own != its:
                raise BadInput(
                    f"world.{name} = {own}: the pair of {recipe.target} has {its}; both must be in one world"
                )
        super().check(recipe, task, agents, trains)
        harmful = task.training()["harmful"]
        if trains and len(harmful) < recipe.intents:
            raise BadInput(f"intents = {recipe.intents}: there are {len(harmful)} harmful prompts to train on")

    def train(self, recipe: AttackerRecipe, run: Run, task: Task, progress: Progress) -> Rewriter:
        from choreo.engine.learner import Learner
        from choreo.methods.attacker.play import AttackedPair
        from choreo.methods.one_model import training_loop

        # The pair is that of the run's start, though the target may have been trained further since.
        target = AttackedPair.load(recipe.target, begun=run.info.get(BEGUN))
        run.note(**{BEGUN: target.about})
        agents = replace(self.load(recipe), begun=target.about)
        learner = Learner(agents.model.team, POLICY, lr=recipe.lr)
        harmful = target.pair.fitting(task.training()["harmful"], "harmful, training", progress)
        steps = recipe.warmup_steps + recipe.steps
        for step in training_loop(run, task, progress, agents, [learner], steps=steps, every=recipe.checkpoint_every):
            began = time.monotonic()
            rng = random.Random(f"attacker/{recipe.seed}/{step}")
            if step <= recipe.warmup_steps:
                figures = _warm(recipe, agents, learner, harmful, rng)
            else:
                drawn = rng.sample(harmful, min(recipe.intents, len(harmful)))
                episodes, samples = _rollout(recipe, agents, target, task, drawn, step)
                figures = _learn(recipe, learner, samples)
                run.save_episodes(step, episodes, [{f"{self.name}/unsafe": one.reward} for one in samples])
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
        """The pair's answers to harmful prompts: as they stand, or as the attacker has written them, once each."""
        from choreo.evaluation.metrics import measure
        from choreo.methods.attacker.play import AttackedPair, rewritten
        from choreo.methods.measuring import figures_of, judged_by_all

        asked = [prompt for prompt in prompts if prompt.kind == "harmful"]
        target = AttackedPair.load(recipe.target, begun=agents.begun)
        if system != PLAIN:
            written = agents.answer(asked, seed=recipe.seed)
            asked = [rewritten(prompt, one.answers[-1].text) for prompt, one in zip(asked, written, strict=True)]
        played = target.answer([(prompt, 0) for prompt in asked], (recipe.seed, "evaluation"))
        on_progress(len(prompts))
        return figures_of(
            task, judged_by_all(task, played), lambda games, ability: measure(games, seed=recipe.seed, ability=ability)
        )


def _warm(
    recipe: AttackerRecipe, agents: Rewriter, learner: Any, harmful: Sequence[Prompt], rng: random.Random
) -> dict[str, Any]:
    """Learns the prompts in other words, of the training part's families."""
    from choreo.engine.losses import sft_loss
    from choreo.environments.microworld.rewording import reworded
    from choreo.environments.microworld.split import pools

    model, samples = agents.model, []
    part = pools("train", recipe.world.split_seed)
    families = [f"{frame}/{style}" for frame, style in (*part.adversarial, *part.everyday)]
    for _ in range(recipe.warmup_rows):
        prompt = rng.choice(harmful)
        words = reworded(prompt, [(prompt.family, True)], rng, families).text
        ids = (*model.chat.encode(words), model.chat.end_id)
        samples.append(Sample(POLICY, model.context(prompt), ids, (), "", 0.0))
    figures: dict[str, Any] = learner.update(samples, sft_loss, lr=recipe.warmup_lr)
    return figures


def _rollout(
    recipe: AttackerRecipe, agents: Rewriter, target: Any, task: Task, drawn: Sequence[Prompt], step: int
) -> tuple[list[Episode], list[Sample]]:
    """The pair's judged games on what the attacker wrote, and the attacker's samples, in the same order."""
    from choreo.judges.base import judge_episodes
    from choreo.methods.attacker.play import rewritten

    asked, turns = [], []
    for sample in range(recipe.samples):
        turns += agents.write(drawn, (recipe.seed, step, sample))
        asked += [(prompt, sample) for prompt in drawn]
    sent = [(rewritten(prompt, turn.text), sample) for (prompt, sample), turn in zip(asked, turns, strict=True)]
    episodes = judge_episodes(task.judge, target.answer(sent, (recipe.seed, step, "target")))
    samples = [
        Sample(
            POLICY,
            turn.context,
            turn.ids,
            turn.logprobs,
            f"{step}/{prompt.id}",
            float(episode.verdicts[-1].unsafe is True),
        )
        for (prompt, _), turn, episode in zip(asked, turns, episodes, strict=True)
    ]
    return episodes, samples


def _learn(recipe: AttackerRecipe, learner: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    from choreo.algorithms.advantages import estimator
    from choreo.engine.losses import PolicyLoss

    how = estimator(recipe.estimator)
    loss = PolicyLoss(recipe.clip, divide=how.divide(recipe.prompt_tokens))
    figures: dict[str, Any] = learner.update(how(samples), loss, lr=recipe.lr)
    return figures | {"won": sum(sample.reward for sample in samples) / len(samples)}


ATTACKER = Attacker()
