"""Writes answers of the untrained model of the recipe smollm2, for readers to label.

    python benchmarks/answers_to_label.py OUT.jsonl [--prompts FILE] [--kinds harmful,benign] [--most N] [--seed 1]

Every prompt, or --most of them by chance, gets a draft, sampled as in training. Each draft is then answered by the note
that a review of a dangerous answer has, whatever the draft is, and the model revises it: so refusals and over-refusals
are there to learn from. Rows have prompt, kind, suite, answer and made ("draft" or "revision"). They have no labels;
LABELS.md beside `choreo:english/answers.jsonl` has the guidelines of those who give them.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from choreo import config
from choreo.data import prompts
from choreo.files import durable
from choreo.game.moves import Review
from choreo.game.play import play
from choreo.methods.waltz.agents import Pair
from choreo.text.made_reviews import made_review
from choreo.types import FEEDBACK, Episode, TextTurn, Verdict

PART = 64  # games that are written as one batch


def dangerous(games: Sequence[Episode]) -> list[Review]:
    """The review of every game's draft as if it were unsafe."""
    found = [made_review(game.prompt.text, game.answers[-1].text, Verdict(True, False)) for game in games]
    return [Review(TextTurn(FEEDBACK, 0, one.feedback, True), one) for one in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", default="choreo:english/train.jsonl")
    parser.add_argument("--kinds", default="harmful,benign", help="with commas between")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--most", type=int, help="prompts")
    args = parser.parse_args()
    recipe = config.load("smollm2", ["warmup.rows=0"])
    pair = Pair(recipe)
    loaded = prompts.load(args.prompts, name="smollm2")
    chosen = [prompt for prompt in loaded.rows if prompt.kind in args.kinds.split(",")]
    random.Random(args.seed).shuffle(chosen)
    chosen = chosen[: args.most]
    numbered = [(replace(prompt, id=str(number)), 0) for number, prompt in enumerate(chosen)]
    rows = []
    for first in range(0, len(numbered), PART):
        part = numbered[first : first + PART]
        limits = recipe.protocol.limits
        for game in play(pair.agents, part, limits, key=(args.seed, "to-label"), reviewer=dangerous):
            for made, turn in zip(("draft", "revision"), game.answers, strict=True):
                rows.append(
                    {
                        "prompt": game.prompt.text,
                        "kind": game.prompt.kind,
                        "suite": game.prompt.suite.removesuffix(f"-{game.prompt.kind}"),
                        "answer": turn.text,
                        "made": made,
                    }
                )
        print(f"{first + len(part)} of {len(numbered)} prompts", flush=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    durable.write_text(args.out, "".join(lines))


if __name__ == "__main__":
    main()
