"""What the warm start learns from: answers with a verdict and a review, from files and from the model itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from choreo.agents.base import state_of
from choreo.agents.local import LocalAgent, context_of
from choreo.data.overlap import Overlap, overlaps
from choreo.data.reading import counted
from choreo.data.reviews import load
from choreo.engine.constraint import Choices
from choreo.engine.requests import Ids
from choreo.environments.task import Task
from choreo.errors import BadInput, Interrupted, TooFew
from choreo.files import durable
from choreo.game.play import play
from choreo.judges.base import judge_all
from choreo.judges.resolve import strict
from choreo.methods.waltz.batches import draw, training_prompts
from choreo.methods.waltz.pair import AnyPair
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.system_messages import trained_messages, under_some
from choreo.methods.waltz.work import PART
from choreo.runs.progress import Progress
from choreo.text.feedback import render_feedback
from choreo.text.made_reviews import made_review
from choreo.types import (
    CONVERSATION,
    FEEDBACK,
    Episode,
    Feedback,
    Limits,
    Prompt,
    ReviewedAnswer,
    Sample,
    Turn,
    Verdict,
)

UNCUT = 2**31  # tokens that no review has

MEASURED = "their prompts are measured on"
LONG_PROMPT = "prompts longer than warmup.prompt_tokens"
LONG_REVIEW = "reviews longer than protocol.feedback_tokens"
NO_ROOM = "no room in the model's positions"
OPEN = "left open by the judge"

Counts = dict[str, dict[str, Any]]
"""By source, how many answers were read and used, and how many were left out for each reason."""


def answers_of_files(recipe: WaltzRecipe, task: Task) -> tuple[dict[str, list[ReviewedAnswer]], Counts]:
    """The answers of the recipe's files, by the file's name, as the files have them.

    An answer whose prompt, or what it was made from, is a held-out prompt of the run, or nearly one, is left out: what
    the run measures has to be new to both agents. Raises BadInput for a file that does not fit, and for answers without
    labels where the run's judge reads no text.
    """
    heldout = task.suites("heldout") if recipe.warmup.answers else []
    found: dict[str, list[ReviewedAnswer]] = {}
    counts: Counts = {}
    for name, source in recipe.warmup.answers.items():
        loaded = load(source.file, source.format or None)
        known = {overlap.measured.turns for overlap in held_out(loaded.rows, heldout)}
        found[name] = [
            replace(row, prompt=replace(row.prompt, id=f"{name}-{number}"))
            for number, row in enumerate(loaded.rows, start=1)
            if not known & {row.prompt.turns, _made_from(row).turns}
        ]
        counts[name] = {"file": source.file} | counted(loaded) | {"used": len(found[name])}
        counts[name] |= _reasons({MEASURED: len(loaded.rows) - len(found[name])})
        if "exact" in recipe.judge.kinds() and any(row.verdict is None for row in found[name]):
            raise BadInput(
                f"{source.file}: has answers without labels, and the judge of this recipe knows its environment alone; "
                "name a judge that reads text in [judge]"
            )
    return found, counts


def held_out(rows: Sequence[ReviewedAnswer], heldout: Sequence[Prompt]) -> list[Overlap]:
    """The prompts of rows, and what they were made from, that are held-out prompts or nearly so."""
    return overlaps(heldout, [prompt for row in rows for prompt in (row.prompt, _made_from(row))])


def _made_from(row: ReviewedAnswer) -> Prompt:
    return replace(row.prompt, text=row.group, earlier=())


def own_prompts(recipe: WaltzRecipe, pair: AnyPair[Any], task: Task) -> list[tuple[Prompt, int]]:
    """The training prompts that the model answers for its warm start, kinds mixed as in a training step, and some
    under a system message as there.

    Raises TooFew where there are fewer than `warmup.own`.
    """
    if not recipe.warmup.own:
        return []
    once = recipe.learning.model_copy(update={"prompts": recipe.warmup.own, "samples": 1})
    try:
        asked = draw(training_prompts(pair, task, once), once, recipe.seed, 0, task.weights)
    except TooFew as error:
        raise TooFew(f"warmup.own: {error}") from None
    share, key = recipe.system_messages.share, (recipe.seed, 0, "system message")
    return under_some(asked, trained_messages(recipe), share, key, pair.has_room)


def gather(
    recipe: WaltzRecipe, pair: AnyPair[Any], task: Task, progress: Progress, written: Path
) -> tuple[list[ReviewedAnswer], Counts]:
    """All answers of the warm start, each with its review, and what became of those that it cannot use.

    pair: as it begins; its conversation agent writes the own answers at temperature 1, as it would in training. An
    answer is cut to `protocol.answer_tokens`, as drafts are in play; labels that a file has stay those of the whole.
    written: the file that own answers are in as soon as they are written, and go on from.
    Raises BadInput where nothing is left; JudgeDown; Interrupted.
    """
    found, counts = answers_of_files(recipe, task)
    if asked := own_prompts(recipe, pair, task):
        found["own"] = _own(recipe, pair, asked, progress, written)
        counts["own"] = {"read": len(asked), "used": len(asked)}
    rows: list[ReviewedAnswer] = []
    for name, some in found.items():
        cut = [replace(row, answer=_cut(pair, row.answer, recipe.protocol.answer_tokens)) for row in some]
        reviewed = [_reviewed(row, task, own=name == "own") for row in _judged(cut, task)]
        why = [_unfit(row, recipe, pair) for row in reviewed]
        kept = [row for row, reason in zip(reviewed, why, strict=True) if not reason]
        rows += kept
        counts[name] |= {"used": len(kept)} | _reasons(Counter(reason for reason in why if reason))
    if not rows:
        raise BadInput(f"warmup: no answer is left to learn from ({_all_reasons(counts)})")
    return rows, counts


def save(file: Path, rows: Sequence[ReviewedAnswer]) -> None:
    """Writes the rows, one a line; the meaning of a prompt is left out."""
    durable.write_lines(file, (asdict(replace(row, prompt=replace(row.prompt, meaning=None))) for row in rows))


def read(file: Path) -> list[ReviewedAnswer]:
    """The rows that `save` wrote. Raises BadInput where the file is damaged."""
    rows = []
    for line in durable.read_lines(file):
        prompt = Prompt(**{**line["prompt"], "earlier": tuple(map(tuple, line["prompt"]["earlier"]))})
        verdict, feedback = Verdict(**line["verdict"]), Feedback(**line["feedback"])
        rows.append(ReviewedAnswer(prompt, line["answer"], line["group"], verdict, feedback))
    return rows


def game_of(pair: AnyPair[Any], row: ReviewedAnswer, limits: Limits) -> Episode:
    """The game in which the answer of a row is to be reviewed."""
    chat = pair.agents[CONVERSATION].chat
    ids = chat.encode(row.answer)[: limits.answer_tokens]
    ended = len(ids) < limits.answer_tokens
    turn = Turn(CONVERSATION, 0, (), (*ids, chat.end_id) if ended else ids, (), 0, row.answer, ended)
    return Episode(row.prompt, 0, (turn,), verdicts=(row.verdict,) if row.verdict else ())


def sample_of(pair: AnyPair[Any], row: ReviewedAnswer, limits: Limits, label_share: float | None = None) -> Sample:
    """What the feedback agent learns from a row: the state that it sees in the game, and the review as its action.

    label_share: see `weights_of`; None gives no weights. A review without a grammar has no known places of labels, so
    all its ids weigh the same.
    """
    assert row.feedback is not None
    agent = pair.agents[FEEDBACK]
    state = state_of(game_of(pair, row, limits), FEEDBACK)
    context = context_of(agent.chat, state, limits.feedback_tokens, agent.writer)
    ids, choices = _written(agent, row.feedback, limits.feedback_tokens)
    weights: tuple[float, ...] = ()
    if agent.grammar and label_share is not None:
        weights = weights_of(choices, agent.grammar.masks.sum(1).tolist(), label_share)
    return Sample(FEEDBACK, context, ids, logprobs=(), group="", reward=0.0, choices=choices, advantages=weights)


def weights_of(choices: Choices, allowed: Sequence[int], label_share: float) -> tuple[float, ...]:
    """A weight for every id of a review, which sum to 1: its labels have `label_share`, and its words the rest.

    Two labels beside forty words would be a twentieth of the likelihood, and the words are easier to learn. A review
    without words has all its weight on its labels. allowed: how many ids each row of the masks allows; 2 is a label.
    """
    labels = [row >= 0 and allowed[row] == 2 for row in choices]
    words = [row >= 0 and not label for row, label in zip(choices, labels, strict=True)]
    share = label_share if any(words) else 1.0
    of_label, of_word = share / max(1, sum(labels)), (1 - share) / max(1, sum(words))
    return tuple(of_label * label + of_word * word for label, word in zip(labels, words, strict=True))


def _written(agent: LocalAgent, feedback: Feedback, limit: int) -> tuple[Ids, Choices]:
    """The ids of a review as the agent would write it, and its choices where it is held to the grammar.

    Longer than `limit` where the review is: what does not fit is left out, not cut.
    """
    if agent.grammar is None:
        return (*agent.chat.encode(render_feedback(feedback)), agent.chat.end_id), ()
    whole = agent.grammar.encode(feedback, UNCUT)
    return whole if len(whole[0]) > limit else agent.grammar.encode(feedback, limit)


def in_parts(games: Sequence[Any], progress: Progress, done: int = 0) -> Iterator[Sequence[Any]]:
    """`games` in parts that are one batch each, without the first `done`. Raises Interrupted between two where the user
    asks to stop."""
    for first in range(done, len(games), PART):
        yield games[first : first + PART]
        progress.advance(min(first + PART, len(games)))
        if progress.interrupted:
            raise Interrupted("in the warm start; the answers written so far are kept")


def seconds_of(written: Path) -> float:
    """How long the own answers in the file took."""
    return sum(line["seconds"] for line in durable.read_lines(written))


def _own(
    recipe: WaltzRecipe, pair: AnyPair[Any], asked: Sequence[tuple[Prompt, int]], progress: Progress, written: Path
) -> list[ReviewedAnswer]:
    """Whole parts are kept, one a line: rounding depends on a batch, so a resumed start has to make the same ones."""
    limits = replace(recipe.protocol.limits, rounds=0)
    durable.cut_half_line(written)
    texts = [text for line in durable.read_lines(written) for text in line["answers"]]
    progress.start("warm start: answers", len(asked), len(texts))
    for part in in_parts(asked, progress, len(texts)):
        began = time.monotonic()
        played = play(pair.agents, part, limits, key=(recipe.seed, "warmup"))
        own = [game.answers[0].text for game in played]
        durable.append_line(written, {"answers": own, "seconds": time.monotonic() - began})
        texts += own
    return [ReviewedAnswer(prompt, text, prompt.text) for (prompt, _), text in zip(asked, texts, strict=True)]


def _cut(pair: AnyPair[Any], answer: str, tokens: int) -> str:
    chat = pair.agents[CONVERSATION].chat
    ids = chat.encode(answer)
    return answer if len(ids) <= tokens else chat.decode(ids[:tokens])


def _judged(rows: Sequence[ReviewedAnswer], task: Task) -> list[ReviewedAnswer]:
    """The rows with a verdict: a file's, else the judge's on the answer as it is read here."""
    asked = [(row.prompt, row.answer) for row in rows if row.verdict is None]
    given = iter(judge_all(strict(task.judge), asked) if asked else ())
    return [row if row.verdict else replace(row, verdict=next(given)) for row in rows]


def _reviewed(row: ReviewedAnswer, task: Task, own: bool) -> ReviewedAnswer:
    """The row with a review, where its verdict is not open. own: it answers a prompt of the run."""
    if row.feedback is not None or row.verdict is None or row.verdict.undetermined:
        return row
    if own:
        return replace(row, feedback=task.review(row.prompt, row.answer, row.verdict))
    return replace(row, feedback=made_review(row.prompt.text, row.answer, row.verdict))


def _unfit(row: ReviewedAnswer, recipe: WaltzRecipe, pair: AnyPair[Any]) -> str:
    """Why a row cannot be learnt from, or ""."""
    if row.feedback is None:
        return OPEN
    agent, limits = pair.agents[FEEDBACK], recipe.protocol.limits
    if len(agent.chat.encode(row.prompt.words)) > recipe.warmup.prompt_tokens:
        return LONG_PROMPT
    sample = sample_of(pair, row, limits)
    if len(sample.ids) > limits.feedback_tokens:
        return LONG_REVIEW
    positions = agent.engine.positions
    return NO_ROOM if positions is not None and len(sample.context) + limits.feedback_tokens > positions else ""


def _reasons(counts: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count}


def _all_reasons(counts: Counts) -> str:
    known = (MEASURED, OPEN, LONG_PROMPT, LONG_REVIEW, NO_ROOM)
    found = {reason: sum(own.get(reason, 0) for own in counts.values()) for reason in known}
    return "; ".join(f"{reason}: {count}" for reason, count in found.items() if count)
