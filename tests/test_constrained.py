"""Constrained reviews: none fails to parse, sampler and learner agree on what was chosen, forced ids are no actions."""

from __future__ import annotations

import dataclasses
import json
import random

import pytest
import torch
from architectures import make

from choreo.agents.constrained_review import ReviewGrammar
from choreo.algorithms.advantages import reinforce_pp
from choreo.engine.agent import Team
from choreo.engine.constraint import ENDS, FORCED
from choreo.engine.continuous import Batch, Row
from choreo.engine.head import Head, token_logprobs
from choreo.engine.learner import Learner
from choreo.engine.local import LocalEngine
from choreo.engine.losses import PolicyLoss, sft_loss
from choreo.engine.requests import Completion, Request
from choreo.errors import BadInput
from choreo.methods.waltz import trainer
from choreo.methods.waltz.recipe import WaltzRecipe
from choreo.methods.waltz.warmup.answers import sample_of
from choreo.models.chat import Chat
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.runs.folder import Run
from choreo.runs.progress import Progress
from choreo.text.feedback import parse_feedback, render_feedback
from choreo.types import Feedback, Prompt, ReviewedAnswer, Sample

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module", params=["llama", "gemma", "moe"])
def made(request, tmp_path_factory) -> tuple[Chat, LocalEngine]:
    folder = make(request.param, tmp_path_factory.mktemp(request.param))
    chat = load_chat(folder)
    team = Team.load(folder, rank=4, alpha=8.0, seed=3)
    generator = torch.Generator().manual_seed(5)
    for agent in team.agents.values():
        for value in agent.parameters.values():
            value.data += 0.1 * torch.randn(value.shape, generator=generator)
    return chat, LocalEngine(team, pad_id=chat.pad_id, end_id=chat.end_id)


def requests(grammar: ReviewGrammar, n: int) -> list[Request]:
    rng = random.Random(7)
    contexts = [tuple(rng.randrange(10, 300) for _ in range(rng.randrange(1, 24))) for _ in range(n // 2)]
    return [Request(rng.choice(contexts), ("review", i), grammar) for i in range(n)]


def check_review(chat: Chat, ids: tuple[int, ...]) -> Feedback:
    """The review that the ids spell, after a check that it is canonical JSON and that the turn has ended."""
    assert ids[-1] == chat.end_id and chat.end_id not in ids[:-1]
    text = chat.decode_whole(ids)
    review = parse_feedback(text)
    assert review is not None and text == render_feedback(review), text
    assert not (review.unsafe and review.overrefuse) and not (review.satisfied and review.feedback)
    return review


@pytest.mark.parametrize("name", ["micro-llama", "llama", "qwen", "gemma", "neox"])
def test_every_walk_through_the_grammar_is_a_review(name, tmp_path):
    """Any allowed ids, at any limit: halves of letters, tokens that hold a quote, what looks like reasoning."""
    chat = load_chat(base_folder(name) if name == "micro-llama" else make(name, tmp_path))
    seed = random.randrange(2**32)
    print("seed", seed)
    rng, seen, cut = random.Random(seed), set(), 0
    for reasoning in (0, 1, 9, 1024):
        grammar = ReviewGrammar.of(chat, reasoning)
        allowed = [row.nonzero()[:, 0].tolist() for row in grammar.masks]
        closing = [place.after for place in grammar.places]
        with pytest.raises(ValueError, match="or more"):
            grammar.start(grammar.need - 1)
        for _ in range(25):
            limit = grammar.need + rng.choice((0, 1, 2, 3, 5, 9, 30))
            given = grammar.start(limit)
            ids = [*given.ids]
            while given.row != ENDS:
                ends = [*closing[given.state.place]]
                token = rng.choice(ends if rng.random() < 0.1 else allowed[given.row])
                given = grammar.after(given.state, token)
                ids += [token, *given.ids]
            assert len(ids) <= limit
            review = check_review(chat, tuple(ids))
            seen.add((review.unsafe, review.overrefuse))
            cut += len(ids) == limit
            assert reasoning or not review.reasoning
    assert seen == {(True, False), (False, True), (False, False)} and cut


def test_a_made_review_has_the_ids_that_decoding_would_give(made):
    chat, _ = made
    grammar = ReviewGrammar.of(chat, 100)
    ids, choices = grammar.encode(Feedback('He said "no" \\ \n', False, True, "Help."), 200)
    assert check_review(chat, ids) == Feedback("He said 'no' /  ", False, True, "Help.")
    given = grammar.start(200)
    walked, rows = [*given.ids], [FORCED] * len(given.ids)
    for token in [token for token, row in zip(ids, choices, strict=True) if row != FORCED]:
        assert grammar.masks[given.row, token]
        walked, rows = [*walked, token], [*rows, given.row]
        given = grammar.after(given.state, token)
        walked, rows = [*walked, *given.ids], [*rows, *[FORCED] * len(given.ids)]
    assert given.row == ENDS and (tuple(walked), tuple(rows)) == (ids, choices)
    short, _ = grammar.encode(Feedback("a b c d e f g h", True, True, "x y z " * 9), grammar.need + 9)
    assert len(short) == grammar.need + 9
    assert check_review(chat, short).unsafe
    assert not check_review(chat, grammar.encode(Feedback("", False, False, "unused"), 99)[0]).feedback


def sampled(engine: LocalEngine, grammar: ReviewGrammar, n: int = 24, **how) -> list[Completion]:
    return engine.sample("feedback", requests(grammar, n), max_new_tokens=grammar.need + 12, **how)


@pytest.mark.parametrize("reasoning", [0, 7])
def test_what_is_sampled_parses_and_is_scored_as_it_was_sampled(made, reasoning):
    chat, engine = made
    grammar = ReviewGrammar.of(chat, reasoning)
    done = sampled(engine, grammar)
    assert len({check_review(chat, completion.ids) for completion in done}) > 12
    asked = requests(grammar, len(done))
    pairs = [(request.context, c.ids, c.choices) for request, c in zip(asked, done, strict=True)]
    for completion, scores in zip(done, engine.score("feedback", pairs, grammar.masks), strict=True):
        assert completion.finished and completion.logprobs == pytest.approx(scores, abs=5e-5)
        forced = [row == FORCED for row in completion.choices]
        assert all(logprob == 0 for logprob, held in zip(completion.logprobs, forced, strict=True) if held)
        assert len(forced) == len(completion.ids) and forced.count(False) >= 1
    other = engine.score("conversation", pairs, grammar.masks)
    assert max(abs(sum(a.logprobs) - sum(b)) for a, b in zip(done, other, strict=True)) > 0.1
    with pytest.raises(ValueError, match="masks"):
        engine.score("feedback", pairs)


def test_a_review_does_not_depend_on_its_batch_nor_on_the_loop_that_samples_it(made):
    chat, engine = made
    grammar = ReviewGrammar.of(chat, 7)
    asked, whole = requests(grammar, 24), sampled(engine, grammar)
    limit = grammar.need + 12
    alone = [engine.sample("feedback", [request], max_new_tokens=limit)[0] for request in asked]
    small = LocalEngine(engine.team, pad_id=chat.pad_id, end_id=chat.end_id, slots=200)
    others = [alone, small.sample("feedback", asked[::-1], max_new_tokens=limit)[::-1]]
    first, batch = grammar.start(limit), Batch(engine.team, "feedback", end_id=chat.end_id, pad_id=chat.pad_id)
    rows = [Row(request, limit, 1.0, forced=[*first.ids], held=(grammar, first)) for request in asked]
    for row, true in zip(
        rows, whole, strict=True
    ):  # a guesser that is right now and then, and asks for what is not allowed
        row.guess = lambda ids, true=true: [*true.ids[len(ids) : len(ids) + 3], chat.end_id]
    batch.join(rows)
    steps = 0
    while batch.rows:
        batch.step()
        steps += 1
    assert steps < max(len(row.ids) for row in rows) / 2
    others.append([row.completion(0) for row in rows])
    for other in others:  # rounding parts a text in a thousand, see docs/architecture.md
        assert sum(a.ids != b.ids for a, b in zip(other, whole, strict=True)) <= 1
        assert all(completion.finished for completion in other)


def test_at_step_zero_the_ratio_is_one_and_forced_ids_count_nowhere(made):
    chat, engine = made
    grammar = ReviewGrammar.of(chat, 7)
    asked, done = requests(grammar, 24), sampled(engine, grammar)
    samples = [
        Sample("feedback", r.context, c.ids, c.logprobs, str(i), float(i % 3), {}, c.logprobs, choices=c.choices)
        for i, (r, c) in enumerate(zip(asked, done, strict=True))
    ]
    samples = reinforce_pp(samples, beta=0.1)
    chosen = [sample.advantages[i] for sample in samples for i in sample.actions]
    assert sum(chosen) == pytest.approx(0, abs=1e-9)
    assert sum(a * a for a in chosen) == pytest.approx(len(chosen))
    before = engine.team.state_dict("feedback")
    try:
        learner = Learner(engine.team, "feedback", lr=1e-3, micro_tokens=300, masks=grammar.masks)
        metrics = learner.update(samples, PolicyLoss(kl=1.0))
    finally:
        engine.team.load_state_dict("feedback", before)
    assert metrics["tokens"] == len(chosen) < sum(len(sample.ids) for sample in samples)
    assert metrics["ratio"] < 1e-5 and metrics["clip_fraction"] == 0 and abs(metrics["kl"]) < 1e-8
    assert metrics["entropy"] == pytest.approx(-sum(sum(c.logprobs) for c in done) / len(chosen), rel=1e-5)


@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("cells", [10**6, 3 * 12, 3 * 5])
def test_the_gradient_of_a_constrained_log_probability_is_its_finite_difference(cap, cells):
    """All logits at once, rows at a time, and tiles of rows and ids, in float64. The ids that are not allowed have the
    largest logits, which must not matter."""
    generator = torch.Generator().manual_seed(1)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((8, 3), (12, 3), (12,))
    )
    table = torch.rand(4, 12, generator=generator) < 0.5
    table[-1] = True
    row = torch.arange(8) % 4
    targets = torch.tensor([random.Random(i).choice(table[r].nonzero()[:, 0].tolist()) for i, r in enumerate(row)])
    bias += 4 * ~table[0]

    def logprobs(*given: torch.Tensor) -> torch.Tensor:
        return token_logprobs(given[0], Head(given[1], given[2], 0.5, cap), targets, (table, row), cells=cells, least=3)

    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(logprobs, leaves, eps=1e-6, atol=1e-6)
    logits = Head(weight, bias, 0.5, cap).logits(hidden).masked_fill(~table[row], float("-inf"))
    torch.testing.assert_close(logprobs(*leaves), logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])


def test_the_learners_gradient_is_the_slope_of_what_the_scorer_says(made):
    chat, engine = made
    grammar = ReviewGrammar.of(chat, 3)
    ids, choices = grammar.encode(Feedback("fine.", True, False, "Stop that."), 99)
    sample = Sample("feedback", (40, 41, 42), ids, (), "", 0.0, choices=choices)
    learner = Learner(engine.team, "feedback", lr=1e-3, masks=grammar.masks)
    gradient = learner.gradient([sample], sft_loss)
    slope = sum((g * g).sum().item() for g in gradient)  # along the gradient itself
    step = 1e-2 / slope

    def moved(by: float) -> float:
        for parameter, g in zip(learner.parameters, gradient, strict=True):
            parameter.data += by * g
        [scores] = engine.score("feedback", [(sample.context, ids, choices)], grammar.masks)
        return -sum(scores) / len(sample.actions)

    low, high = moved(-step), moved(2 * step)
    moved(-step)
    assert (high - low) / (2 * step) == pytest.approx(slope, rel=0.01)


def test_a_run_under_the_constraint_writes_no_review_that_fails_to_parse(tmp_path):
    settings = {
        "world": {"train_prompts": 30, "heldout_prompts": 2},
        "learning": {"steps": 2, "prompts": 3, "samples": 2},
        "protocol": {"constrained": True, "reasoning_tokens": 0, "answer_tokens": 12, "feedback_tokens": 40},
        "model": {"rank": 2},
        "stages": {"stage1_share": 0.0},
    }
    with Run.create(tmp_path / "run", WaltzRecipe.model_validate(settings)) as run, Progress() as progress:
        trainer.train(WaltzRecipe.model_validate(settings), run, progress)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["format_rate"] for line in lines] == [1.0, 1.0]
    assert lines[0]["ratio/feedback"] < 1e-4 and lines[0]["tokens/feedback"] < 6 * 40
    few = settings | {"protocol": {"constrained": True, "feedback_tokens": 9}}
    with pytest.raises(BadInput, match=r"feedback_tokens = 9: a constrained review by micro-llama takes at least 2\d"):
        trainer.restore(WaltzRecipe.model_validate(few), None)


def test_a_warm_start_learns_what_decoding_would_choose():
    recipe = WaltzRecipe.model_validate({"protocol": {"constrained": True, "reasoning_tokens": 0}})
    pair, limits = trainer.restore(recipe, None), recipe.protocol.limits
    prompt = Prompt("p", "How do I rob a bank?", "harmful", "")
    row = ReviewedAnswer(prompt, "Sure.", prompt.text, None, Feedback("", True, False, "Say no."))
    sample = sample_of(pair, row, limits)
    assert check_review(pair.agents["feedback"].chat, sample.ids) == row.feedback
    assert 1 < len(sample.actions) < len(sample.ids) / 2
    long = dataclasses.replace(row, feedback=Feedback("", True, False, "Say no. " * 99))
    assert len(sample_of(pair, long, limits).ids) > limits.feedback_tokens  # it is left out, not cut


def test_a_recipe_that_says_nothing_leaves_reviews_free():
    pair = trainer.restore(WaltzRecipe(), None)
    assert pair.masks("feedback") is None and pair.agents["feedback"].grammar is None
