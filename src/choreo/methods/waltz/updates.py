"""What an update of WaltzRL is made of: learning rate, log-probabilities, advantages, loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from choreo.algorithms.advantages import estimator
from choreo.algorithms.values import ValueBaseline
from choreo.engine.losses import PolicyLoss
from choreo.engine.requests import Engine
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.recipe import Learning, WaltzRecipe
from choreo.types import FEEDBACK, Sample


def learning_rate(learning: Learning, agent: str, step: int) -> float:
    """The agent's learning rate in `step` (1, 2, …): constant, or falling linearly, to nothing after the last step."""
    left = 1.0 if learning.schedule == "constant" else 1 - (step - 1) / learning.steps
    return ((agent == FEEDBACK and learning.feedback_lr) or learning.lr) * left


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


def with_old(pair: AnyPair[Any], samples: Sequence[Sample]) -> list[Sample]:
    """Samples that another engine or earlier weights drew, with log π_old as the learner computes it."""
    scores = _scores(pair, samples, lambda agent: agent)
    return [replace(sample, logprobs=old) for sample, old in zip(samples, scores, strict=True)]


def value_baseline(recipe: WaltzRecipe, pair: AnyPair[Any]) -> ValueBaseline | None:
    """The value baseline of a recipe, untrained; None where it has none."""
    if recipe.learning.baseline == "none":
        return None
    widths = {role: agent.engine.features([(agent.chat.end_id,)]).shape[1] for role, agent in pair.agents.items()}
    return ValueBaseline(recipe.learning.baseline, widths, seed=recipe.seed)


def policy_loss(recipe: WaltzRecipe, agent: str) -> PolicyLoss:
    """The loss that an agent learns by."""
    learning, protocol = recipe.learning, recipe.protocol
    divide = estimator(learning.estimator).divide(protocol.limits.tokens(agent))
    return PolicyLoss(learning.clip, kl=learning.beta if learning.kl == "k2-loss" else 0.0, divide=divide)


def with_advantages(
    samples: list[Sample], learning: Learning, pair: AnyPair[Any], values: ValueBaseline | None
) -> list[Sample]:
    """The samples with log π_ref (where the KL needs it) and advantages. `values` predicts, and then learns."""
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
