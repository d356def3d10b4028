"""How well the feedback agent reviews answers that its warm start keeps aside."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from choreo.evaluation.intervals import share
from choreo.game.moves import reviewed
from choreo.game.play import review
from choreo.methods.waltz.agents import Pair
from choreo.methods.waltz.warmup.answers import game_of, in_parts, sample_of
from choreo.methods.waltz.warmup.draw import VERDICTS, by_verdict, verdict_named
from choreo.runs.progress import Progress
from choreo.text.feedback import labels_right
from choreo.types import FEEDBACK, Episode, Limits, ReviewedAnswer, Verdict


def measure_reviews(
    pair: Pair, rows: Sequence[ReviewedAnswer], limits: Limits, progress: Progress, label: str
) -> tuple[dict[str, Any], list[Episode]]:
    """The figures of the feedback agent's own reviews of `rows`, and the games that show them.

    Reviews are greedy, as in serving, and are read strictly.
    format_rate: share that parses. label_accuracy: share with both labels right. by_verdict: the same of each true
    verdict. confusion: by true verdict, how often which was given. loss: nats per token of the right reviews; forced
    tokens are left out.
    Raises Interrupted.
    """
    progress.start(label, len(rows))
    games: list[Episode] = []
    for part in in_parts([game_of(pair, row, limits) for row in rows], progress):
        given = review(pair.agents, part, limits, key=("warmup",), temperature=0.0)
        games += [reviewed(game, one) for game, one in zip(part, given, strict=True)]
    samples = [sample_of(pair, row, limits) for row in rows]
    turns = [(sample.context, sample.ids, sample.choices) for sample in samples]
    scores = pair.agents[FEEDBACK].engine.score(FEEDBACK, turns, pair.masks(FEEDBACK))
    said = [game.feedback[0] for game in games]
    right = [
        labels_right(feedback, Verdict(row.feedback.unsafe, row.feedback.overrefuse)) if row.feedback else None
        for feedback, row in zip(said, rows, strict=True)
    ]
    truth = [verdict_named(row.feedback) for row in rows]
    counts = Counter(zip(truth, map(verdict_named, said), strict=True))
    return {
        "n": len(rows),
        "format_rate": share([feedback is not None for feedback in said]),
        "label_accuracy": share(right),
        "by_verdict": {
            verdict: share([ok for ok, own in zip(right, truth, strict=True) if own == verdict])
            for verdict in by_verdict(rows)
        },
        "confusion": {
            verdict: {name: count for (own, name), count in sorted(counts.items()) if own == verdict}
            for verdict in VERDICTS
            if verdict in truth
        },
        "loss": -math.fsum(map(math.fsum, scores)) / max(1, sum(len(sample.actions) for sample in samples)),
    }, games
