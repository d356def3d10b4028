"""The MACPO trainer (arXiv 2410.07672, section 3). A run is a list of phases; each trains one policy on what others
wrote, with an optimiser of its own, and ends in a checkpoint.

What a phase does follows from (recipe, phase, weights, what was written), so a run that is killed and resumed from a
checkpoint repeats itself bit for bit.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from choreo.data.reading import taken
from choreo.engine import checkpoint
from choreo.engine.learner import Learner, Unit, preference_pairs
from choreo.engine.losses import DPOLoss, Loss, sft_loss
from choreo.engine.requests import Ids
from choreo.errors import BadInput, Interrupted
from choreo.methods.macpo.agents import Crew, Member
from choreo.methods.macpo.answers import (
    Chosen,
    Desk,
    negatives,
    positives,
    reference,
    weak_labels,
    weak_negatives,
)
from choreo.methods.macpo.generation_cache import EXAMPLE as BOOK
from choreo.methods.macpo.recipe import MacpoRecipe
from choreo.methods.macpo.schedule import STUDENT, Phase, done, plan
from choreo.methods.macpo.select import in_share, perplexity
from choreo.methods.macpo.sizing import REVIEW_TOKENS, steps_of
from choreo.methods.macpo.split import Halves, halves
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.types import Episode, Preference, Prompt, Sample


@dataclass(frozen=True)
class Lesson:
    """What one phase trains on: samples or (chosen, rejected) pairs, in epochs, and figures on how they came about."""

    units: Sequence[Unit]
    loss: Loss
    epochs: int
    batch: int
    lr: float
    figures: dict[str, float]


def train(recipe: MacpoRecipe, run: Run, progress: Progress, crew: Crew | None = None) -> Iterator[tuple[int, Crew]]:
    """Yields (round, agents) at the end of the start (round 0) and of every round, for the caller to measure.

    From the run's last checkpoint if there is one; a round that had ended there is yielded again. The caller may
    stop early. crew: the recipe's untrained agents, where they are loaded already; it is what is yielded.
    Raises Interrupted, its state saved, when `progress` was interrupted.
    """
    crew = crew or Crew.load(recipe)
    data = within(recipe, halves(recipe), crew)
    desk = Desk(recipe, crew, data.b)
    if data.counts:
        run.note(data=data.counts)
        progress.say(taken(recipe.data.file or "prompts", data.counts))
    phases = plan(recipe)
    over, (step, path) = 0, run.rewind()
    if path is not None:
        saved = checkpoint.load(path)
        if saved.get("data") != data.digest:
            now = recipe.data.file or "the world"
            raise BadInput(f"{path}: was trained on other prompts or labels than {now} has now")
        checkpoint.check(path, saved, {"phases": [""], "agents": {}, "book": BOOK})
        over = done(saved["phases"], phases, str(path))
        crew.load_state_dict(saved["agents"], str(path))
        desk.book.load_state_dict(saved["book"])
    for remark in crew.remarks:
        progress.say(f"! {remark}")
    if path is not None and phases[over - 1].last:
        yield phases[over - 1].round, crew
    total = sum(steps_of(recipe, phase) for phase in phases)
    for number, phase in enumerate(phases[over:], start=over + 1):
        progress.start(f"{_words(phase)}", total, step)
        step = teach(desk, data, phase, run, progress, step)
        trained = [str(phase) for phase in phases[:number]]
        state = {"phases": trained, "data": data.digest, "agents": crew.state_dict(), "book": desk.book.state_dict()}
        checkpoint.save(run.checkpoint(step), state)
        if progress.interrupted:
            raise Interrupted(f"saved at step {step}")
        if phase.last:
            yield phase.round, crew


def within(recipe: MacpoRecipe, data: Halves, crew: Crew) -> Halves:
    """The halves without what overflows the positions of some member's model. How much that is stands in `counts`.

    Raises BadInput where nothing of a half is left.
    """
    reviewed = "judged" in (recipe.rounds.positives, recipe.rounds.negatives) or recipe.rounds.negatives == "prompt"
    tokens = recipe.writing.answer_tokens

    def fits(prompt: Prompt, *labels: str) -> bool:
        return all(
            member.fits_labelled(prompt, label, member.chat.room(int(reviewed), tokens, max(tokens, REVIEW_TOKENS)))
            for member in crew
            for label in labels or ("",)
        )

    a = tuple(row for row in data.a if fits(row.prompt, row.chosen, row.rejected))
    b = tuple(prompt for prompt in data.b if fits(prompt))
    ceiling = tuple(row for row in data.ceiling if fits(row.prompt, row.chosen))
    lost = len(data.a) + len(data.b) - len(a) - len(b)
    if not a or not b:
        raise BadInput(
            f"every prompt of a half overflows the positions of a model, with {tokens} tokens of answer "
            "(writing.answer_tokens)"
        )
    counts = {**data.counts, "overflow a model's positions": lost} if lost else data.counts
    return Halves(a, b, ceiling, counts)


def teach(desk: Desk, data: Halves, phase: Phase, run: Run, progress: Progress, step: int) -> int:
    """Trains one policy through its phase and records every update; returns the last step's number."""
    recipe, member = desk.recipe, desk.crew[phase.member]
    policy = member.name + phase.side
    began = time.monotonic()
    if (phase.round, phase.member, phase.side) == (0, STUDENT, "-"):
        _begin_twin(member)
    given = lesson(desk, data, phase)
    preparing = time.monotonic() - began
    learner = Learner(member.team, policy, lr=given.lr, micro_tokens=recipe.micro_tokens)
    first, updates = step, given.epochs * math.ceil(len(given.units) / given.batch)
    if not updates:  # no prompt had anything to learn from; the record says so
        step += 1
        run.log(step, {"round": phase.round, "agent": policy, "sequences": 0, **given.figures, "seconds": preparing})
        run.save_episodes(step, *_record(desk))
    for epoch in range(given.epochs):
        units = confident(desk, given.units, epoch) if _is_student_start(phase) else given.units
        order = list(range(len(given.units)))
        random.Random(f"epoch/{recipe.seed}/{phase.round}/{policy}/{epoch}").shuffle(order)
        for start in range(0, len(order), given.batch):
            began = time.monotonic()
            batch = [units[i] for i in order[start : start + given.batch]]
            lr = given.lr * 0.5 * (1 + math.cos(math.pi * (step - first) / updates))
            figures: dict[str, Any] = dict(learner.update(batch, given.loss, lr=lr))
            step += 1
            extra = given.figures if step == first + updates else {}
            seconds = time.monotonic() - began + (preparing if step == first + 1 else 0.0)
            line = {"round": phase.round, "agent": policy, "lr": lr, **figures, **extra, "seconds": seconds}
            run.log(step, line)
            if desk.book.fresh:
                run.save_episodes(step, *_record(desk))
            progress.advance(step, {n: figures[n] for n in ("loss", "accuracy") if n in figures})
    if phase.round == 0 and phase.side == "+" and recipe.rounds.reference == "sft":
        member.team.load_state_dict(f"{member.name}-start", member.team.state_dict(policy))
    return step


def lesson(desk: Desk, data: Halves, phase: Phase) -> Lesson:
    """What `phase` trains on. Whatever it needs written is written."""
    recipe, member = desk.recipe, desk.crew[phase.member]
    policy, tuning, rounds = member.name + phase.side, recipe.tuning, recipe.rounds
    if phase.round == 0:
        positive = phase.side == "+"
        epochs = tuning.epochs if positive else tuning.negative_epochs
        rows = _start(desk, data, member, positive)
        units: Sequence[Unit] = [_sample(policy, member.context(prompt), ids) for prompt, ids in rows]
        return Lesson(units, sft_loss, epochs, tuning.batch, tuning.lr, {})
    chosen, figures = positives(desk, phase.round, member)
    if rounds.refusals == "as-labelled":
        chosen, left = _in_share(desk, data, member, chosen)
        figures = {**figures, **left}
    if rounds.adopt == "before" and member.name == STUDENT:
        desk.write(phase.round, member, policy)  # what the teachers will adopt
    rejected = negatives(desk, phase.round, member)
    if rounds.negatives == "none":
        rows = [(prompt, ids) for prompt, kept in zip(desk.prompts, chosen, strict=True) for ids in kept]
        if member.name != STUDENT:
            rows += _start(desk, data, member, positive=True) * rounds.rehearse
        units = [_sample(policy, member.context(prompt), ids) for prompt, ids in rows]
        return Lesson(units, sft_loss, rounds.epochs, rounds.batch, rounds.lr, figures)
    preferences = [
        Preference(prompt, member.context(prompt), ids, bad)
        for prompt, kept, bad in zip(desk.prompts, chosen, rejected, strict=True)
        for ids in kept
        if bad is not None
    ]
    figures = {**figures, **_alike(preferences)}
    if member.name != STUDENT:
        preferences += [
            Preference(row.prompt, member.context(row.prompt), member.spell(row.chosen), member.spell(row.rejected))
            for row in data.a
        ] * rounds.rehearse
    pairs = preference_pairs(member.engine, policy, preferences, reference(recipe, member))
    length = None
    if preferences and rounds.sft_mean == "tokens":
        length = sum(len(preference.chosen) for preference in preferences) / len(preferences)
    loss = DPOLoss(rounds.beta, rounds.sft, length)
    return Lesson(pairs, loss, rounds.epochs, rounds.batch, rounds.lr, figures)


def confident(desk: Desk, units: Sequence[Unit], epoch: int) -> Sequence[Unit]:
    """A student's samples of an epoch under the confident loss (Burns et al. 2023, appendix A).

    (1 − a)·CE(weak label) + a·CE(own hardened prediction); a rises linearly from 0 in the first epoch to
    `tuning.confident` in the last. Carried over to generation: what the student is sure of is the answer that it would
    give greedily, written anew before every epoch; being text, it passes no gradient. Weights are per token.
    """
    tuning, student = desk.recipe.tuning, desk.crew.student
    a = tuning.confident * epoch / max(1, tuning.epochs - 1)
    if not a:
        return units
    own = desk.write(0, student, student.positive, f"own-{epoch}", temperature=0.0)
    return [
        (_weighted(weak, 1 - a), _weighted(_sample(student.positive, turn.context, turn.ids), a))
        for weak, turn in zip(units, own, strict=True)
        if isinstance(weak, Sample)
    ]


def _start(desk: Desk, data: Halves, member: Member, positive: bool) -> list[tuple[Prompt, Ids]]:
    if member.name != STUDENT:
        return [(row.prompt, member.spell(row.chosen if positive else row.rejected)) for row in data.a]
    if data.ceiling:
        return [(row.prompt, member.spell(row.chosen)) for row in data.ceiling]
    written = weak_labels(desk) if positive else weak_negatives(desk)
    return [(prompt, ids) for prompt, kept in zip(desk.prompts, written, strict=True) for ids in kept]


def _begin_twin(member: Member) -> None:
    """The student's negative twin begins where its positive one stands after its start."""
    member.team.load_state_dict(member.negative, member.team.state_dict(member.positive))


def _is_student_start(phase: Phase) -> bool:
    return phase.round == 0 and phase.member == STUDENT and phase.side == "+"


def _weighted(sample: Sample, weight: float) -> Sample:
    return replace(sample, advantages=(weight,) * len(sample.ids))


def _sample(policy: str, context: Ids, ids: Ids) -> Sample:
    return Sample(policy, context, ids, logprobs=(), group="", reward=0.0)


def _in_share(desk: Desk, data: Halves, member: Member, chosen: Chosen) -> tuple[Chosen, dict[str, float]]:
    """The positives that are left when as large a share of them refuses as of half A's chosen answers, and figures:
    the share that is left, and the shares of refusals before and after."""
    share = _refusing(desk, data)
    flat = [(i, ids) for i, kept in enumerate(chosen) for ids in kept]
    pairs = [(member.context(desk.prompts[i]), ids) for i, ids in flat]
    doubt = [perplexity(logprobs) for logprobs in member.engine.score(member.positive, pairs)]
    refuses = desk.refuses([desk.prompts[i] for i, _ in flat], [member.chat.decode(ids) for _, ids in flat])
    kept = in_share(share, refuses, doubt)
    left: Chosen = [[] for _ in chosen]
    for k in kept:
        left[flat[k][0]].append(flat[k][1])
    return left, {
        "learnt/left": len(kept) / max(1, len(flat)),
        "learnt/refusals-before": sum(refuses) / max(1, len(flat)),
        "learnt/refusals": sum(refuses[k] for k in kept) / max(1, len(kept)),
    }


def _refusing(desk: Desk, data: Halves) -> float:
    """The share of half A's chosen answers that refuse."""
    return sum(desk.refuses([row.prompt for row in data.a], [row.chosen for row in data.a])) / len(data.a)


def _alike(preferences: Sequence[Preference]) -> dict[str, float]:
    """How alike the two sides of the pairs are: share of equal ones, and mean Jaccard overlap of their tokens."""
    if not preferences:
        return {}
    overlap = [len({*p.chosen} & {*p.rejected}) / len({*p.chosen, *p.rejected}) for p in preferences]
    same = [p.chosen == p.rejected for p in preferences]
    return {"pairs/equal": sum(same) / len(same), "pairs/overlap": sum(overlap) / len(overlap)}


def _record(desk: Desk) -> tuple[list[Episode], list[dict[str, float]]]:
    """What was written since the last record, as episodes, with its writer's own perplexity of it."""
    episodes: list[Episode] = []
    paid: list[dict[str, float]] = []
    for turns in desk.book.fresh.values():
        for prompt, turn in zip(desk.prompts, turns, strict=True):
            episodes.append(Episode(prompt, len(episodes), (turn,)))
            paid.append({"perplexity": perplexity(turn.logprobs)})
    desk.book.fresh.clear()
    return episodes, paid


def _words(phase: Phase) -> str:
    when = "start" if phase.round == 0 else f"round {phase.round}"
    return f"{when}, {phase.member}{phase.side}"
