"""The WaltzRL trainer (arXiv 2510.08240, section 4.2).

A step is: a rollout, in which both agents play games together; verdicts on every answer; the games split into
single-agent samples, each with its reward; advantages per agent; one policy-gradient update per learning agent.

What a step does follows from (recipe, step, weights), so a run that is killed and resumed from a checkpoint repeats
itself bit for bit. So it does where the games are played one step ahead (`player`). A server that samples breaks it
(docs/rollouts.md).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from choreo.algorithms.advantages import estimator
from choreo.algorithms.importance import mismatch, truncated
from choreo.engine import checkpoint
from choreo.engine.rollouts import served
from choreo.environments.task import CACHE, Task
from choreo.errors import BadInput, Interrupted, Unavailable
from choreo.judges.base import JudgeDown, asked_of, judge_episodes, reasons, silence
from choreo.judges.resolve import strict, without_system_messages
from choreo.methods.judge_watch import JudgeWatch
from choreo.methods.waltz.alarms import alarms
from choreo.methods.waltz.batches import draw, training_prompts
from choreo.methods.waltz.cotraining.attacker import CoAttacker, attacked_figures
from choreo.methods.waltz.figures import shown_figures, step_figures
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.pairs import here, pair_of
from choreo.methods.waltz.player import Player, player_of
from choreo.methods.waltz.recipe import WaltzRecipe, learners
from choreo.methods.waltz.samples import split
from choreo.methods.waltz.stages import Stage
from choreo.methods.waltz.system_messages import digest_of, told_figures, trained_messages, under_some
from choreo.methods.waltz.updates import learning_rate, policy_loss, value_baseline, with_advantages, with_old
from choreo.methods.waltz.warmup.train import warm_start
from choreo.models.resolve import base_folder
from choreo.runs.checkpoints import checkpoints
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import AGENTS, Episode, Prompt, Sample

INEXACT = "a server samples: a run that is resumed is another run of the same distribution (docs/rollouts.md)"


def train(recipe: WaltzRecipe, run: Run, progress: Progress, task: Task | None = None) -> AnyPair[Any]:
    """Trains to the recipe's last step, from the run's last checkpoint if there is one. Returns the trained pair.

    Raises Interrupted, its state saved, when `progress` was interrupted, when a judge went away, or when the recipe
    wants a stop where the judges part; BadInput, its state saved too, when a judge or a sampling server cannot be used.
    """
    if recipe.engine.starts:
        progress.say(f"starting the server that samples, which may take minutes: {recipe.engine.command}")
    folder = base_folder(recipe.model.base, weights=not recipe.engine.remote)
    with served(recipe.engine, folder, recipe.model, len(AGENTS), lambda: progress.interrupted_here) as engine:
        recipe = recipe.model_copy(update={"engine": engine})
        pair = pair_of(recipe)
        with pair.rollouts() as rollouts, player_of(recipe, rollouts) as player:
            Trainer(recipe, run, progress, task or Task(recipe, run.path), pair, player).to_the_end()
    return pair


class Trainer:
    """One run of WaltzRL. A checkpoint after `step` holds `state()`.

    step: the last step whose update was made. player: who plays the games that the pair learns from.
    """

    def __init__(
        self, recipe: WaltzRecipe, run: Run, progress: Progress, task: Task, pair: AnyPair[Any], player: Player
    ):
        """Goes on from the run's last checkpoint, or begins. Raises BadInput where that does not fit the recipe."""
        self.recipe, self.run, self.progress = recipe, run, progress
        self.task, self.pair, self.player = task, pair, player
        self.digest = task.digest  # of the prompts as they are now: files may change while a run trains
        self.learners = {
            agent: pair.learner(agent, recipe.learning, learning_rate(recipe.learning, agent, 1))
            for agent in learners(recipe.stages, stage=2)
        }
        self.stage = Stage(recipe)
        self.values = value_baseline(recipe, pair)
        self.messages = trained_messages(recipe)
        self.attacker = CoAttacker(recipe.attack, recipe, here(pair), task) if recipe.attack else None
        self.step, path = run.rewind()
        if path is not None:
            self._load(path)
        elif recipe.warmup.on:
            warm_start(recipe, run, here(pair), task, progress)
        if self.attacker and path is None:
            run.log_beside(self.attacker.warm_start(progress))
        for remark in [*pair.remarks, *([] if player.rollouts.exact else [INEXACT])]:
            progress.say(f"! {remark}")
        self.judge, self.watch = strict(task.judge), JudgeWatch(task, run)
        self.prompts = training_prompts(player.rollouts, task, recipe.learning, progress)
        self._note_system_messages()

    def to_the_end(self) -> None:
        """Trains all steps that are left. Raises as `train` does."""
        steps = self.recipe.learning.steps
        self.progress.start("training", steps, self.step)
        while self.step < steps:
            self._learn_step(self.step + 1)
            stop = self.progress.interrupted or self.watch.stopping  # asked once: what is "saved" must have been saved
            if self.step % self.recipe.checkpoint_every == 0 or self.step == steps or stop:
                with self._saying_where_it_goes_on():
                    checkpoint.save(self.run.checkpoint(self.step), self.state())
            if stop and self.step < steps:
                raise self.watch.interruption(self.step)

    # ---- a step ------------------------------------------------------------------------------------

    def _learn_step(self, step: int) -> None:
        began = time.monotonic()
        attacks, episodes, compared = self._judged_games(step)
        agents, key = self.stage.agents, (self.recipe.seed, step)
        parts = split(episodes, agents=agents, rewards=self.recipe.rewards, stage=self.stage.number, key=key)
        figures: dict[str, Any] = {"stage": self.stage.number, **step_figures(episodes, parts), **compared}
        figures |= attacks | (attacked_figures(episodes) if self.attacker else {})
        figures |= told_figures(episodes) if self.messages else {}
        with self._saying_where_it_goes_on():
            samples, learnt = self._update(step, agents, parts.samples)
        figures |= learnt
        written = sum(len(t.ids) for e in episodes for t in (*e.answers, *e.reviews))
        seconds = time.monotonic() - began
        figures |= {"tokens": written, "seconds": seconds, "tokens_per_second": written / seconds}
        figures["alarms"] = self._alarms(figures, episodes)
        self.run.log(step, figures)
        self.run.save_episodes(step, episodes, parts.paid, parts.advantages(samples))
        self.progress.advance(step, shown_figures(figures), figures["alarms"])
        self.step = step
        if self.stage.advance(step, figures):
            self.progress.say(f"step {step}: stage 2, both agents learn")

    def _judged_games(self, step: int) -> tuple[dict[str, float], list[Episode], dict[str, Any]]:
        """Figures of the attacker's round, the games of `step` with their verdicts, and the judges' comparison.

        Where a judge or a server is gone the run is saved as it was before the step, and the error says where.
        """
        try:
            attacks = self.attacker.round(step, self.judge) if self.attacker else {}
            episodes = judge_episodes(self.judge, self.player.games(step, self._batch))
            self._refuse_if_undecided(episodes)
            compared = self.watch.compare(episodes) if self.watch.due(step) else {}
        except (BadInput, JudgeDown) as missing:
            if self.attacker:
                self.attacker.undo()
            # No weight has moved in this step. Going on without verdicts would be learning from their absence.
            last = self._saved()
            if isinstance(missing, Unavailable) and self.progress.interrupted_here:  # who ended us has ended the server
                raise Interrupted(f"saved at step {last}") from None
            raise type(missing)(f"saved at step {last}; {missing}") from None
        return attacks, episodes, compared

    def _batch(self, step: int) -> list[tuple[Prompt, int]]:
        recipe = self.recipe
        batch = draw(self.prompts, recipe.learning, recipe.seed, step, self.task.weights)
        batch = self.attacker.rewrite(batch, step) if self.attacker else batch
        key = (recipe.seed, step, "system message")
        return under_some(batch, self.messages, recipe.system_messages.share, key, self.player.rollouts.has_room)

    def _refuse_if_undecided(self, episodes: Sequence[Episode]) -> None:
        """Raises JudgeDown where the judge left all answers open. Where a judge by rule does, the answers are at fault,
        and training may mend these."""
        asked, left_open = _left_open(episodes)
        by_rule = {*self.recipe.judge.kinds()} <= {"exact", "offline"}
        if asked and sum(left_open.values()) == asked and not by_rule:
            cache = Path(self.recipe.judge.cache or self.run.path / CACHE)
            raise JudgeDown(_undecided(self.judge.name, left_open, cache))

    def _update(
        self, step: int, agents: Sequence[str], samples: Sequence[Sample]
    ) -> tuple[list[Sample], dict[str, float]]:
        """One update of each agent that learns. Returns the samples with their advantages, and figures by agent."""
        learning, engine, exact = self.recipe.learning, self.recipe.engine, self.player.exact
        learnt = list(samples) if exact else with_old(self.pair, samples)
        learnt = with_advantages(learnt, learning, self.pair, self.values)
        figures: dict[str, float] = {} if exact else mismatch(learnt, engine.truncate)
        for agent in agents:
            own, loss = [sample for sample in learnt if sample.agent == agent], policy_loss(self.recipe, agent)
            own = own if exact else truncated(own, engine.truncate)
            for _ in range(learning.epochs if own else 0):
                updated = self.learners[agent].update(own, loss, lr=learning_rate(learning, agent, step))
            if own:
                figures |= {f"{name}/{agent}": value for name, value in updated.items()}
        return learnt, figures

    def _alarms(self, figures: dict[str, Any], episodes: Sequence[Episode]) -> list[str]:
        found = alarms(figures, grouped=estimator(self.recipe.learning.estimator).grouped)
        silent = silence(self.judge.name, *_left_open(episodes))
        return [*found, *([silent] if silent else []), *self.watch.alarms]

    # ---- what is saved and said --------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """What a checkpoint after `step` holds."""
        saved = {"step": self.step, **self.stage.state_dict(), "base": self.pair.base}
        saved |= {"prompts": self.digest, "frames": self.pair.frames()}
        saved |= {"system_messages": digest_of(self.messages)} if self.messages else {}
        saved["agents"] = {agent: learner.state_dict() for agent, learner in self.learners.items()}
        saved |= self.pair.start_state() | self.player.state_dict(self.step)
        saved |= {"attack": self.attacker.state_dict(self.step)} if self.attacker else {}
        return saved | ({"values": self.values.state_dict()} if self.values else {})

    def _load(self, path: Path) -> None:
        """Takes what `state` gave from the checkpoint at `path`. Raises BadInput where it does not fit."""
        saved = self.pair.read_checkpoint(path)
        if saved.get("prompts", self.digest) != self.digest:  # a checkpoint of an early choreo has none
            there = "files hold" if self.task.weights else f"{self.task.place} has"
            raise BadInput(f"{path}: was trained on other prompts than the {there} now")
        if self.messages and saved.get("system_messages") != digest_of(self.messages):
            there = f"{self.recipe.system_messages.train} has"
            raise BadInput(f"{path}: was trained under other system messages than {there} now")
        example = Stage.example() | {"agents": {agent: one.example() for agent, one in self.learners.items()}}
        checkpoint.check(path, saved, example | ({"values": self.values.example()} if self.values else {}))
        self.stage.load_state_dict(saved)
        for agent, learner in self.learners.items():
            learner.load_state_dict(saved["agents"][agent])
        self.pair.load_start(path, saved)
        self.player.load_state_dict(path, self.step, saved)
        if self.values:
            self.values.load_state_dict(saved["values"])
        if self.attacker:
            self.attacker.load_state_dict(path, saved)

    def _saved(self) -> int:
        """The step that a run which stops now goes on from: this one, unless what has the weights is gone."""
        if self.step and not self.run.checkpoint(self.step).exists():
            try:
                checkpoint.save(self.run.checkpoint(self.step), self.state())
            except BadInput:
                return max(checkpoints(self.run.path), default=0)
        return self.step

    @contextmanager
    def _saying_where_it_goes_on(self) -> Iterator[None]:
        """For what asks a service that has the weights: where it is gone or refuses, the run goes on from its last
        checkpoint."""
        try:
            yield
        except BadInput as gone:
            raise type(gone)(f"saved at step {max(checkpoints(self.run.path), default=0)}; {gone}") from None

    def _note_system_messages(self) -> None:
        """Notes and says which system messages the agents are trained under."""
        count, progress = len(self.messages), self.progress
        told = sum(prompt.told for some in self.prompts.values() for prompt in some)
        if count or told:  # a server that is to take callers' system messages as training did looks for this
            self.run.note(system_messages={"given": count, "own": told})
        if count:
            share = self.recipe.system_messages.share
            progress.say(f"system messages: {share:.0%} of the training prompts get one of {count}")
            if blind := without_system_messages(self.recipe.judge):
                progress.say(f"! the judge ({', '.join(blind)}) does not read them, and judges by the request alone")


def _left_open(episodes: Sequence[Episode]) -> tuple[int, Mapping[str, int]]:
    """On how many answers a judge was asked, and why it left some of them open, by reason."""
    asked = asked_of([verdict for episode in episodes for verdict in episode.verdicts])
    return len(asked), reasons(asked)


def _undecided(judge: str, reasons: Mapping[str, int], cache: Path) -> str:
    """The message where a judge left every answer of a step open. Its replies are in `cache`, and are read again."""
    message = f"judge {judge} decided nothing in the whole step, most often: {', '.join([*reasons][:3])}"
    return f"{message}; what it replied is kept: once it is mended, remove {cache}" if cache.is_file() else message


def restore(recipe: WaltzRecipe, path: Path | None) -> AnyPair[Any]:
    """The pair of a run as its checkpoint at `path` has it; None is the untrained pair.

    Raises BadInput where the checkpoint was trained on another base than the recipe names now, or in another chat
    format.
    """
    pair = pair_of(recipe)
    if path is not None:
        pair.load(path)
    return pair
