"""The WaltzRL trainer (arXiv 2510.08240, section 4.2).

A step is: a rollout, in which both agents play games together; verdicts on every answer; the games split into
single-agent samples, each with its reward; advantages per agent; one policy-gradient update per learning agent.

What a step does follows from (recipe, step, weights), so a run that is killed and resumed from a checkpoint repeats
itself bit for bit. So it does where the games are played one step ahead (`player`). A server that samples breaks it
(docs/rollouts.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from choreo.algorithms.advantages import estimator
from choreo.algorithms.importance import mismatch, truncated
from choreo.algorithms.values import ValueBaseline
from choreo.engine import checkpoint
from choreo.engine.losses import PolicyLoss
from choreo.engine.requests import Engine
from choreo.engine.rollouts import served
from choreo.environments.task import CACHE, Task
from choreo.errors import BadInput, Interrupted, Unavailable
from choreo.judges.base import JudgeDown, asked_of, judge_episodes, reasons, silence
from choreo.judges.resolve import UNTOLD, strict
from choreo.methods.judge_watch import JudgeWatch
from choreo.methods.waltz.alarms import alarms
from choreo.methods.waltz.batches import draw, training_prompts
from choreo.methods.waltz.cotraining.attacker import CoAttacker, attacked_figures
from choreo.methods.waltz.figures import shown_figures, step_figures
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.pairs import here, pair_of
from choreo.methods.waltz.player import Player, player_of
from choreo.methods.waltz.recipe import Learning, Stages, WaltzRecipe, learners, stage1_steps
from choreo.methods.waltz.samples import split
from choreo.methods.waltz.system_messages import digest_of, told_figures, trained_messages, under_some
from choreo.methods.waltz.warmup.train import warm_start
from choreo.models.resolve import base_folder
from choreo.runs.folder import Run, checkpoints
from choreo.runs.progress import Progress
from choreo.types import AGENTS, FEEDBACK, Prompt, Sample

INEXACT = "a server samples: a run that is resumed is another run of the same distribution (docs/rollouts.md)"
SWITCH_WINDOW = 5  # steps whose mean label accuracy and format rate decide the switch to stage 2


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
            _train(recipe, run, progress, task or Task(recipe, run.path), pair, player)
    return pair


def _train(recipe: WaltzRecipe, run: Run, progress: Progress, task: Task, pair: AnyPair[Any], player: Player) -> None:
    """player: who plays the games that the pair learns from."""
    learning = recipe.learning
    learner_of = {
        agent: pair.learner(agent, learning, rate(learning, agent, 1)) for agent in learners(recipe.stages, stage=2)
    }
    values, digest = _values(recipe, pair), task.digest
    messages, share = trained_messages(recipe), recipe.system_messages.share
    attacker = CoAttacker(recipe.attack, recipe, here(pair), task) if recipe.attack else None
    recent: list[tuple[float, float]] = []  # label accuracy and format rate of the last steps of stage 1
    # Where the conversation agent is frozen throughout, all of the run is stage 1.
    stage = 1 if recipe.stages.train == "feedback" or (recipe.stages.train == "both" and stage1_steps(recipe)) else 2

    def state(step: int) -> dict[str, Any]:
        saved = {"step": step, "stage": stage, "recent": [list(row) for row in recent], "base": pair.base}
        saved |= {"prompts": digest, "frames": pair.frames()}
        saved |= {"system_messages": digest_of(messages)} if messages else {}
        saved["agents"] = {agent: learner.state_dict() for agent, learner in learner_of.items()}
        saved |= pair.start_state() | player.state_dict(step)
        saved |= {"attack": attacker.state_dict(step)} if attacker else {}
        return saved | ({"values": values.state_dict()} if values else {})

    step, path = run.rewind()
    if path is not None:
        saved = pair.read_checkpoint(path)
        if saved.get("prompts", digest) != digest:  # a checkpoint of an early choreo has none
            there = "files hold" if task.weights else f"{task.place} has"
            raise BadInput(f"{path}: was trained on other prompts than the {there} now")
        if messages and saved.get("system_messages") != digest_of(messages):
            raise BadInput(
                f"{path}: was trained under other system messages than {recipe.system_messages.train} has now"
            )
        example = {
            "stage": stage,
            "recent": [(0.0, 0.0)],
            "agents": {a: one.example() for a, one in learner_of.items()},
        }
        checkpoint.check(path, saved, example | ({"values": values.example()} if values else {}))
        stage, recent = saved["stage"], [(label, form) for label, form in saved["recent"]]
        for agent, learner in learner_of.items():
            learner.load_state_dict(saved["agents"][agent])
        pair.load_start(path, saved)
        player.load_state_dict(path, step, saved)
        if values:
            values.load_state_dict(saved["values"])
        if attacker:
            attacker.load_state_dict(path, saved)
    elif recipe.warmup.on:
        warm_start(recipe, run, here(pair), task, progress)
    if attacker and path is None:
        run.log_beside(attacker.warm_start(progress))
    for remark in [*pair.remarks, *([] if player.rollouts.exact else [INEXACT])]:
        progress.say(f"! {remark}")
    judge, watch = strict(task.judge), JudgeWatch(task, run)
    prompts = training_prompts(player.rollouts, task, learning, progress)
    told = sum(prompt.told for some in prompts.values() for prompt in some)
    if messages or told:  # a server that is to take callers' system messages as training did looks for this
        run.note(system_messages={"given": len(messages), "own": told})
    if messages:
        progress.say(f"system messages: {share:.0%} of the training prompts get one of {len(messages)}")
        if blind := sorted(UNTOLD & recipe.judge.kinds()):
            progress.say(f"! the judge ({', '.join(blind)}) does not read them, and judges by the request alone")

    def batch_of(step: int) -> list[tuple[Prompt, int]]:
        batch = draw(prompts, learning, recipe.seed, step, task.weights)
        batch = attacker.rewrite(batch, step) if attacker else batch
        key = (recipe.seed, step, "system message")
        return under_some(batch, messages, share, key, player.rollouts.has_room)

    progress.start("training", learning.steps, step)
    while step < learning.steps:
        step += 1
        began = time.monotonic()
        try:
            attacks = attacker.round(step, judge) if attacker else {}
            episodes = judge_episodes(judge, player.games(step, batch_of))
            asked = asked_of([verdict for episode in episodes for verdict in episode.verdicts])
            left_open = reasons(asked)
            # Where a judge by rule leaves everything open, the answers are at fault, and training may mend these.
            by_rule = {*recipe.judge.kinds()} <= {"exact", "offline"}
            if asked and sum(left_open.values()) == len(asked) and not by_rule:
                raise JudgeDown(_undecided(judge.name, left_open, Path(recipe.judge.cache or run.path / CACHE)))
            compared = watch.compare(episodes) if watch.due(step) else {}
        except (BadInput, JudgeDown) as missing:
            if attacker:
                attacker.undo()
            # No weight has moved in this step. Going on without verdicts would be learning from their absence.
            last = _saved(run, step - 1, state)
            if isinstance(missing, Unavailable) and progress.interrupted_here:  # who ended us has ended the server, too
                raise Interrupted(f"saved at step {last}") from None
            raise type(missing)(f"saved at step {last}; {missing}") from None
        agents, key = learners(recipe.stages, stage), (recipe.seed, step)
        parts = split(episodes, agents=agents, rewards=recipe.rewards, stage=stage, key=key)
        figures: dict[str, Any] = {"stage": stage, **step_figures(episodes, parts), **compared}
        figures |= attacks | (attacked_figures(episodes) if attacker else {})
        figures |= told_figures(episodes) if messages else {}
        with _saying_where_it_goes_on(run):
            learnt = parts.samples if player.exact else _with_old(pair, parts.samples)
            samples = _advantages(learnt, learning, pair, values)
            figures |= {} if player.exact else mismatch(samples, recipe.engine.truncate)
            for agent in agents:
                own, loss = [sample for sample in samples if sample.agent == agent], _loss(recipe, agent)
                own = own if player.exact else truncated(own, recipe.engine.truncate)
                for _ in range(learning.epochs if own else 0):
                    updated = learner_of[agent].update(own, loss, lr=rate(learning, agent, step))
                if own:
                    figures |= {f"{name}/{agent}": value for name, value in updated.items()}
        written = sum(len(t.ids) for e in episodes for t in (*e.answers, *e.reviews))
        seconds = time.monotonic() - began
        figures |= {"tokens": written, "seconds": seconds, "tokens_per_second": written / seconds}
        figures["alarms"] = alarms(figures, grouped=estimator(learning.estimator).grouped)
        figures["alarms"] += [alarm] if (alarm := silence(judge.name, len(asked), left_open)) else []
        figures["alarms"] += watch.alarms
        run.log(step, figures)
        run.save_episodes(step, episodes, parts.paid, parts.advantages(samples))
        progress.advance(step, shown_figures(figures), figures["alarms"])
        if stage == 1 and recipe.stages.train == "both":
            recent = [*recent, (figures.get("label_accuracy", 0.0), figures["format_rate"])][-SWITCH_WINDOW:]
            if step >= stage1_steps(recipe) or ready(recent, recipe.stages):
                stage = 2
                progress.say(f"step {step}: stage 2, both agents learn")
        stop = progress.interrupted or watch.stopping  # asked once: what says "saved" below must have been saved
        if step % recipe.checkpoint_every == 0 or step == learning.steps or stop:
            with _saying_where_it_goes_on(run):
                checkpoint.save(run.checkpoint(step), state(step))
        if stop and step < learning.steps:
            raise watch.interruption(step)


def _undecided(judge: str, reasons: Mapping[str, int], cache: Path) -> str:
    """The message where a judge left every answer of a step open. Its replies are in `cache`, and are read again."""
    message = f"judge {judge} decided nothing in the whole step, most often: {', '.join([*reasons][:3])}"
    return f"{message}; what it replied is kept: once it is mended, remove {cache}" if cache.is_file() else message


@contextmanager
def _saying_where_it_goes_on(run: Run) -> Iterator[None]:
    """For what asks a service that has the weights: where it is gone or refuses, the run goes on from its last
    checkpoint."""
    try:
        yield
    except BadInput as gone:
        raise type(gone)(f"saved at step {max(checkpoints(run.path), default=0)}; {gone}") from None


def _saved(run: Run, step: int, state: Callable[[int], Mapping[str, Any]]) -> int:
    """The step that a run which stops after `step` goes on from: `step`, unless what has the weights is gone."""
    if step and not run.checkpoint(step).exists():
        try:
            checkpoint.save(run.checkpoint(step), state(step))
        except BadInput:
            return max(checkpoints(run.path), default=0)
    return step


def restore(recipe: WaltzRecipe, path: Path | None) -> AnyPair[Any]:
    """The pair of a run as its checkpoint at `path` has it; None is the untrained pair.

    Raises BadInput where the checkpoint was trained on another base than the recipe names now, or in another chat
    format.
    """
    pair = pair_of(recipe)
    if path is not None:
        pair.load(path)
    return pair


def rate(learning: Learning, agent: str, step: int) -> float:
    """The agent's learning rate in `step` (1, 2, …): constant, or falling linearly, to nothing after the last step."""
    left = 1.0 if learning.schedule == "constant" else 1 - (step - 1) / learning.steps
    return ((agent == FEEDBACK and learning.feedback_lr) or learning.lr) * left


def ready(recent: Sequence[tuple[float, float]], stages: Stages) -> bool:
    """Whether labels and format, as the last steps of stage 1 had them, are good enough for stage 2."""
    if len(recent) < SWITCH_WINDOW:
        return False
    label, form = (sum(column) / len(recent) for column in zip(*recent, strict=True))
    return label >= stages.switch_label_accuracy and form >= stages.switch_format_rate


def _scores(
    pair: AnyPair[Any], samples: Sequence[Sample], policy: Callable[[str], str | None]
) -> list[tuple[float, ...]]:
    """log π of every id of the samples, in order, by the policy that `policy` names for the sample's agent."""

    def score(engine: Engine, own: Sequence[Sample]) -> list[tuple[float, ...]]:
        found: dict[int, tuple[float, ...]] = {}
        policies = [policy(sample.agent) for sample in own]
        for name in dict.fromkeys(policies):
            places = [i for i, used in enumerate(policies) if used == name]
            pairs = [(own[i].context, own[i].ids, own[i].choices) for i in places]
            found |= zip(places, engine.score(name, pairs, pair.masks(own[0].agent)), strict=True)
        return [found[i] for i in range(len(own))]

    return pair.of_each(samples, score)


def _with_old(pair: AnyPair[Any], samples: Sequence[Sample]) -> list[Sample]:
    """Samples that another engine or earlier weights drew, with log π_old as the learner computes it."""
    scores = _scores(pair, samples, lambda agent: agent)
    return [replace(sample, logprobs=old) for sample, old in zip(samples, scores, strict=True)]


def _values(recipe: WaltzRecipe, pair: AnyPair[Any]) -> ValueBaseline | None:
    if recipe.learning.baseline == "none":
        return None
    widths = {role: agent.engine.features([(agent.chat.end_id,)]).shape[1] for role, agent in pair.agents.items()}
    return ValueBaseline(recipe.learning.baseline, widths, seed=recipe.seed)


def _loss(recipe: WaltzRecipe, agent: str) -> PolicyLoss:
    learning, protocol = recipe.learning, recipe.protocol
    divide = estimator(learning.estimator).divide(protocol.limits.tokens(agent))
    return PolicyLoss(learning.clip, kl=learning.beta if learning.kl == "k2-loss" else 0.0, divide=divide)


def _advantages(
    samples: list[Sample], learning: Learning, pair: AnyPair[Any], values: ValueBaseline | None
) -> list[Sample]:
    """The samples with log π_ref (where the KL needs it) and advantages."""
    if not samples:
        return []
    if learning.beta:
        scores = _scores(pair, samples, pair.reference)
        samples = [replace(sample, reference=score) for sample, score in zip(samples, scores, strict=True)]
    predicted = None
    if values:
        agents = [sample.agent for sample in samples]
        features = pair.of_each(samples, lambda engine, own: list(engine.features([s.context for s in own])))
        predicted = values.predict(agents, features)
        values.fit(agents, features, [sample.reward for sample in samples])
    beta = learning.beta if learning.kl == "k1-reward" else 0.0
    return estimator(learning.estimator)(samples, beta=beta, values=predicted)
