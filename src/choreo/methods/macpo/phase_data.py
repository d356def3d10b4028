"""What a phase trains on: prompts with the answers that its policy learns towards and away from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from choreo.engine.learner import Unit, preference_pairs
from choreo.engine.losses import DPOLoss, Loss, sft_loss
from choreo.engine.requests import Ids
from choreo.methods.macpo.agents import MacpoAgent
from choreo.methods.macpo.answers import (
    AnswerWriter,
    Chosen,
    negatives,
    positives,
    reference,
    weak_labels,
    weak_negatives,
)
from choreo.methods.macpo.schedule import STUDENT, Phase
from choreo.methods.macpo.select import in_share, perplexity
from choreo.methods.macpo.split import PromptSplit
from choreo.types import Preference, Prompt, Sample


@dataclass(frozen=True)
class PhaseData:
    """What one phase trains on, and how.

    units: samples, or (chosen, rejected) pairs. epochs: passes over them. batch: units per update. lr: the learning
    rate that the phase begins with. figures: on how the units came about, for metrics.jsonl.
    """

    units: Sequence[Unit]
    loss: Loss
    epochs: int
    batch: int
    lr: float
    figures: dict[str, float]


def phase_data(writer: AnswerWriter, data: PromptSplit, phase: Phase) -> PhaseData:
    """What `phase` trains on. Every answer that it takes is written here, or read from the writer's cache."""
    recipe, agent = writer.recipe, writer.agents[phase.agent]
    policy, tuning, rounds = agent.name + phase.side, recipe.tuning, recipe.rounds
    if phase.round == 0:
        epochs = tuning.epochs_of(agent.name, phase.side)
        rows = _start(writer, data, agent, positive=phase.side == "+")
        units: Sequence[Unit] = [_sample(policy, agent.context(prompt), ids) for prompt, ids in rows]
        return PhaseData(units, sft_loss, epochs, tuning.batch, tuning.lr, {})
    chosen, figures = positives(writer, phase.round, agent)
    if rounds.refusals == "as-labelled":
        chosen, left = _in_share(writer, data, agent, chosen)
        figures = {**figures, **left}
    if rounds.adopt == "before" and agent.name == STUDENT:
        writer.write(phase.round, agent, policy)  # what the teachers will adopt
    rejected = negatives(writer, phase.round, agent)
    if rounds.negatives == "none":
        rows = [(prompt, ids) for prompt, kept in zip(writer.prompts, chosen, strict=True) for ids in kept]
        if agent.name != STUDENT:
            rows += _start(writer, data, agent, positive=True) * rounds.rehearse
        units = [_sample(policy, agent.context(prompt), ids) for prompt, ids in rows]
        return PhaseData(units, sft_loss, rounds.epochs, rounds.batch, rounds.lr, figures)
    preferences = [
        Preference(prompt, agent.context(prompt), ids, bad)
        for prompt, kept, bad in zip(writer.prompts, chosen, rejected, strict=True)
        for ids in kept
        if bad is not None
    ]
    figures = {**figures, **_alike(preferences)}
    if agent.name != STUDENT:
        preferences += [
            Preference(row.prompt, agent.context(row.prompt), agent.spell(row.chosen), agent.spell(row.rejected))
            for row in data.labelled
        ] * rounds.rehearse
    pairs = preference_pairs(agent.engine, policy, preferences, reference(recipe, agent))
    length = None
    if preferences and rounds.sft_mean == "tokens":
        length = sum(len(preference.chosen) for preference in preferences) / len(preferences)
    loss = DPOLoss(rounds.beta, rounds.sft, length)
    return PhaseData(pairs, loss, rounds.epochs, rounds.batch, rounds.lr, figures)


def confident(writer: AnswerWriter, units: Sequence[Unit], epoch: int) -> Sequence[Unit]:
    """The student's samples of an epoch of its start, under the confident loss (Burns et al. 2023, appendix A).

    (1 − a)·CE(weak label) + a·CE(own hardened prediction); a rises linearly from 0 in the first epoch to
    `tuning.confident` in the last. For generation, the hardened prediction is the answer that the student writes
    greedily, written anew before every epoch; it is text, so no gradient passes through it. Weights are per token.
    """
    tuning, student = writer.recipe.tuning, writer.agents.student
    a = tuning.confident * epoch / max(1, tuning.epochs_of(STUDENT, "+") - 1)
    if not a:
        return units
    own = writer.write(0, student, student.positive, f"own-{epoch}", temperature=0.0)
    greedy = {turn.context: _sample(student.positive, turn.context, turn.ids) for turn in own}
    # Matched by context: where the weak answer to a prompt failed, the prompt has no unit.
    return [(_weighted(weak, 1 - a), _weighted(greedy[weak.context], a)) for weak in units if isinstance(weak, Sample)]


def _start(writer: AnswerWriter, data: PromptSplit, agent: MacpoAgent, positive: bool) -> list[tuple[Prompt, Ids]]:
    """Prompts and answers of an agent's supervised start, or of that of its negative agent."""
    if agent.name != STUDENT:
        return [(row.prompt, agent.spell(row.chosen if positive else row.rejected)) for row in data.labelled]
    if data.ceiling:
        return [(row.prompt, agent.spell(row.chosen)) for row in data.ceiling]
    written = weak_labels(writer) if positive else weak_negatives(writer)
    return [(prompt, ids) for prompt, kept in zip(writer.prompts, written, strict=True) for ids in kept]


def _weighted(sample: Sample, weight: float) -> Sample:
    return replace(sample, advantages=(weight,) * len(sample.ids))


def _sample(policy: str, context: Ids, ids: Ids) -> Sample:
    return Sample(policy, context, ids, logprobs=(), group="", reward=0.0)


def _in_share(
    writer: AnswerWriter, data: PromptSplit, agent: MacpoAgent, chosen: Chosen
) -> tuple[Chosen, dict[str, float]]:
    """The positives that are left when as large a share of them refuses as of the chosen labels; and figures: the share
    that is left, and the shares of refusals before and after."""
    labelled = writer.refuses([row.prompt for row in data.labelled], [row.chosen for row in data.labelled])
    share = sum(labelled) / len(labelled)
    flat = [(i, ids) for i, kept in enumerate(chosen) for ids in kept]
    pairs = [(agent.context(writer.prompts[i]), ids) for i, ids in flat]
    doubt = [perplexity(logprobs) for logprobs in agent.engine.score(agent.positive, pairs)]
    refuses = writer.refuses([writer.prompts[i] for i, _ in flat], [agent.chat.decode(ids) for _, ids in flat])
    kept = in_share(share, refuses, doubt)
    left: Chosen = [[] for _ in chosen]
    for k in kept:
        left[flat[k][0]].append(flat[k][1])
    return left, {
        "learnt/left": len(kept) / max(1, len(flat)),
        "learnt/refusals-before": sum(refuses) / max(1, len(flat)),
        "learnt/refusals": sum(refuses[k] for k in kept) / max(1, len(kept)),
    }


def _alike(preferences: Sequence[Preference]) -> dict[str, float]:
    """How alike the two sides of the pairs are: share of equal ones, and mean Jaccard overlap of their tokens."""
    if not preferences:
        return {}
    overlap = [len({*p.chosen} & {*p.rejected}) / len({*p.chosen, *p.rejected}) for p in preferences]
    same = [p.chosen == p.rejected for p in preferences]
    return {"pairs/equal": sum(same) / len(same), "pairs/overlap": sum(overlap) / len(overlap)}
