"""What each part of the engine gains: a rollout, an update and scoring, with the part and without it, by turns.

    OMP_NUM_THREADS=1 python benchmarks/engine.py [--base micro-llama|smollm2] [--turns 7] [--rate] [--json]

A part is switched off by what it stands on inside the engine, in this process alone. With it and without it the result
is the same to rounding; the tests named in docs/performance.md hold that. The work is a batch of games' first answers:
prompts × samples of the microworld's training prompts (on smollm2: of questions in English), answers as the untrained
base writes them. `gain` is the seconds without the part over the seconds with it: median, lowest and highest turn.
`rate` holds the update against what this processor does of plain matrix products of the base's width.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from transformers.utils.logging import disable_progress_bar
from work import documents, english

from choreo.algorithms.advantages import grpo
from choreo.config.common import Weights
from choreo.engine import prefill, sample, step
from choreo.engine.agent import Team
from choreo.engine.learner import Learner
from choreo.engine.local import LocalEngine
from choreo.engine.losses import PolicyLoss
from choreo.engine.pack import pack
from choreo.engine.requests import Completion, Request
from choreo.experiment.costs import update
from choreo.experiment.machine import product_rate
from choreo.experiment.sizing import Model, shape
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import CONVERSATION, Sample

NEVER = -1  # an end token that no model writes
Work = Callable[[], Any]
SIZES = {"micro-llama": (24, 8, 48), "smollm2": (4, 4, 48)}  # prompts, samples of each, the most tokens of an answer
RANK = {"micro-llama": 0, "smollm2": 8}  # 0: all weights, as the recipes of these bases


class Alone(tuple[int, ...]):
    """A context that equals no other: rows that share one are then read one by one."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


class Batch:
    """The games of a step of single-agent RL, and what is learnt from them."""

    def __init__(self, base: str, prompts: int, group: int, tokens: int, *, ends: bool = True):
        """ends: answers end where the model ends them; otherwise all have `tokens` tokens."""
        self.base, self.tokens = base, tokens
        disable_progress_bar()  # of reading weights
        chat = load_chat(base_folder(base))
        lora = {"train": "lora", "rank": RANK[base], "alpha": 2.0 * RANK[base]}
        self.how = Weights(device="cpu", **(lora if RANK[base] else {"train": "full"}))
        self.team = Team.load(base_folder(base), (CONVERSATION,), **self.how.loading())
        self.engine = LocalEngine(self.team, pad_id=chat.pad_id, end_id=chat.end_id if ends else NEVER)
        self.learner = Learner(self.team, CONVERSATION, lr=0.0)  # at this rate every turn has the same work
        make = documents if base == "micro-llama" else english
        asked = [chat.answer_context(chat.encode(text)) for text, _ in make(random.Random(0), prompts)]
        self.requests = [Request(context, (i, k)) for i, context in enumerate(asked) for k in range(group)]
        done = self.rollout()
        samples = [
            Sample(CONVERSATION, one.context, made.ids, made.logprobs, str(one.key[0]), float(sum(made.ids) % 2))
            for one, made in zip(self.requests, done, strict=True)
        ]
        self.pairs = [(s.context, s.ids) for s in samples]
        reference = self.engine.score(None, self.pairs)
        self.samples = grpo([replace(s, reference=r) for s, r in zip(samples, reference, strict=True)], beta=0.01)

    def rollout(self) -> list[Completion]:
        return self.engine.sample(CONVERSATION, self.requests, max_new_tokens=self.tokens)

    def update(self) -> dict[str, float]:
        return self.learner.update(self.samples, PolicyLoss(0.2))

    def score(self) -> list[tuple[float, ...]]:
        return self.engine.score(None, self.pairs)


@contextmanager
def read_by_each_row() -> Iterator[None]:
    whole = prefill.prefill
    with patch.object(sample, "prefill", lambda t, w, rows, *rest: whole(t, w, [Alone(row) for row in rows], *rest)):
        yield


def parts(batch: Batch) -> list[tuple[str, str, Any, Work]]:
    """(part, work, what switches it off, the work)."""

    def apart() -> Any:
        return patch.object(batch.team, "shares", lambda units: False)

    found: list[tuple[str, str, Any, Work]] = [
        ("a prompt is read once for its group", "rollout", read_by_each_row, batch.rollout),
        ("finished rows leave the batch", "rollout", lambda: patch.object(sample, "COMPACT", 0.0), batch.rollout),
        ("a decode step of our own", "rollout", lambda: patch.object(step, "LIKE_LLAMA", ()), batch.rollout),
        ("shared beginnings are computed once", "update", apart, batch.update),
        ("shared beginnings are computed once", "score", apart, batch.score),
    ]
    if batch.team.decoder.model.config.hidden_size >= prefill.BESIDE:
        common = lambda: patch.object(prefill, "COMMON", 2**20)  # noqa: E731
        found.append(("what all contexts begin with is read once", "rollout", common, batch.rollout))
    return found


def seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def by_turns(work: Work, off: Any, turns: int) -> dict[str, float]:
    work()
    ratios, on_times = [], []
    for _ in range(turns):
        with_it = seconds(work)
        with off():
            without = seconds(work)
        ratios.append(without / with_it)
        on_times.append(with_it)
    return {"gain": median(ratios), "low": min(ratios), "high": max(ratios), "seconds": median(on_times)}


def rate(batch: Batch, turns: int) -> dict[str, float]:
    """Operations a second of an update, by `choreo plan`'s arithmetic of the tokens that it computes, padding and all,
    beside those of plain products."""
    one = shape(Model.read(str(base_folder(batch.base)), batch.how), batch.how)
    units = [(pair,) for pair in batch.pairs]
    packs = pack(units, micro_tokens=batch.learner.micro_tokens, share=batch.team.shares(units))
    spent = sum(update(one, made.input_ids.numel(), made.input_ids.shape[1] / 2, len(made.targets)) for made in packs)
    times, rates = [], []
    for _ in range(turns):
        times.append(seconds(batch.update))
        rates.append(product_rate(512, one.width, "float32"))
    return {
        "matmul_gflops": median(rates) / 1e9,
        "model_gflops": spent / median(times) / 1e9,
        "share": spent / median(times) / median(rates),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", choices=sorted(SIZES), default="micro-llama", help="default: micro-llama")
    parser.add_argument("--turns", type=int, default=7, help="of each part, with and without it (default: 7)")
    parser.add_argument("--rate", action="store_true", help="the rate alone, without the parts")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    batch = Batch(given.base, *SIZES[given.base])
    lengths = [len(ids) for _, ids in batch.pairs]
    about = {"base": given.base, "threads": torch.get_num_threads(), "answers": len(lengths), "tokens": sum(lengths)}
    asked = [] if given.rate else parts(batch)
    rows = [{"part": part, "work": what, **by_turns(work, off, given.turns)} for part, what, off, work in asked]
    found = {**about, "parts": rows, "limit": rate(batch, given.turns)}
    if given.json:
        print(json.dumps(found))
        return 0
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for row in rows:
        print(f"{row['work']:8} {row['gain']:5.2f} [{row['low']:.2f}, {row['high']:.2f}]  {row['part']}")
    limit = found["limit"]
    print(f"update: {limit['model_gflops']:.1f} of {limit['matmul_gflops']:.1f} GFLOP/s, {limit['share']:.0%}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
