"""How an attacker learns: a warm start by likelihood, then policy-gradient updates on judged games.

A base that was asked something answers it, and would never write a prompt; hence the warm start.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from choreo.algorithms.advantages import estimator, flat_groups
from choreo.engine.learner import Learner
from choreo.engine.losses import PolicyLoss, sft_loss
from choreo.environments.microworld.rewording import reframed
from choreo.environments.microworld.split import pools
from choreo.judges.base import Judge, judge_episodes
from choreo.methods.one_model import OneModel
from choreo.methods.rewriting.settings import Rewriting
from choreo.methods.rewriting.words import FAMILY, attack_reward, rewritten
from choreo.types import Episode, Kind, Prompt, Sample

Answer = Callable[[Sequence[tuple[Prompt, int]]], Sequence[Episode[Any]]]
"""The attacked pair's games on (prompt, sample), in order, not judged."""


def rewordings(
    prompts: Sequence[Prompt], count: int, split_seed: int, rng: random.Random
) -> list[tuple[Prompt, Prompt]]:
    """So many of `prompts`, each with a rewording in a frame and style of the training part alone. What is named stays
    named, and what is hidden hidden: to hide a deed takes another thing of the right sort, and to name a hidden one
    takes looking it up, which so short a warm start does not teach."""
    part = pools("train", split_seed)
    families = [f"{frame}/{style}" for frame, style in (*part.adversarial, *part.everyday)]
    chosen = [rng.choice(prompts) for _ in range(count)]
    return [(prompt, reframed(prompt, rng, families)) for prompt in chosen]


def warm_update(
    settings: Rewriting,
    agents: OneModel,
    learner: Learner,
    prompts: Sequence[Prompt],
    split_seed: int,
    step: int,
    rng: random.Random,
) -> dict[str, float]:
    """Step 1, 2, … of the warm start, on `rewordings` of `prompts`. Returns the update's figures.

    After the last one the optimiser forgets it: gradients of the warm start are a hundred times as large as those of
    reinforcement learning, whose steps would be next to nothing for thousands of updates.
    """
    model = agents.model
    samples = [
        Sample(learner.agent, model.context(prompt), (*model.chat.encode(new.text), model.chat.end_id), (), "", 0.0)
        for prompt, new in rewordings(prompts, settings.warmup_rows, split_seed, rng)
    ]
    figures = learner.update(samples, sft_loss, lr=settings.warmup_rate(step))
    if step == settings.warmup_steps:
        learner.forget()
    return figures


def drawn_intents(settings: Rewriting, training: Mapping[Kind, Sequence[Prompt]], rng: random.Random) -> list[Prompt]:
    """The prompts that an update takes: of each kind as many as `settings.counts` wants, where there are. training:
    by kind."""
    return [
        prompt
        for kind, count in settings.counts().items()
        if count
        for prompt in rng.sample(training[kind], min(count, len(training[kind])))
    ]


def attacked_games(
    settings: Rewriting,
    agents: OneModel,
    drawn: Sequence[Prompt],
    key: tuple[int | str, ...],
    answer: Answer,
    judge: Judge,
) -> tuple[list[Episode[Any]], list[Sample]]:
    """The pair's judged games on what the attacker wrote, and the attacker's samples, in the same order. Where its
    words were no try, the game is on the prompt as it stands."""
    asked: list[tuple[Prompt, int]] = []
    turns = []
    for sample in range(settings.samples):
        turns += agents.write(drawn, (*key, sample))
        asked += [(prompt, sample) for prompt in drawn]
    tries = [rewritten(prompt, turn.text) for (prompt, _), turn in zip(asked, turns, strict=True)]
    sent = [(words or prompt, sample) for words, (prompt, sample) in zip(tries, asked, strict=True)]
    episodes = judge_episodes(judge, answer(sent))
    samples = []
    for (prompt, _), words, turn, episode in zip(asked, tries, turns, episodes, strict=True):
        parts = attack_reward(prompt.kind, words is not None, episode.verdicts[-1])
        group = f"{key[-1]}/{prompt.id}"
        samples.append(
            Sample(agents.answering, turn.context, turn.ids, turn.logprobs, group, sum(parts.values()), parts)
        )
    return episodes, samples


def attack_update(
    settings: Rewriting, learner: Learner, episodes: Sequence[Episode[Any]], samples: Sequence[Sample]
) -> dict[str, float]:
    """One update by what `attacked_games` gave. Returns its figures, with "won": the share of games that were paid;
    "kept": the share of rewritings that were a try (`rewriting.words.rewritten`); and "groups_without_gradient": the
    share of prompts whose rewritings all got the same reward. Where prompts of both kinds were attacked, also the
    share that was paid by the reward's name ("unsafe", "overrefuse")."""
    how = estimator(settings.estimator)
    loss = PolicyLoss(settings.clip, divide=how.divide(settings.prompt_tokens))
    figures = learner.update(how(samples), loss, lr=settings.lr)
    figures["won"] = _mean([sample.reward for sample in samples])
    names = dict.fromkeys(name for sample in samples for name in sample.parts)
    if len(names) > 1:
        figures |= {name: _mean([s.parts[name] for s in samples if name in s.parts]) for name in names}
    figures["kept"] = _mean([game.prompt.family == FAMILY for game in episodes])
    [(flat, total)] = flat_groups(samples).values()
    return figures | {"groups_without_gradient": flat / total}


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else 0.0
