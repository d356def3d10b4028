"""MACPO: what is learnt from, as pure functions."""

from __future__ import annotations

import math
import random

import pytest
import torch

from choreo.engine.losses import Actions, sft_loss
from choreo.engine.pack import pack
from choreo.methods.macpo.select import Candidate, best_and_worst, consensus, in_share, most_likely, perplexity


def test_perplexity_by_hand():
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4)
    assert perplexity([]) == math.inf


def test_the_published_filter_takes_the_least_perplexity_whatever_it_says():
    answers = [[Candidate(3.0, False), Candidate(1.5, True)], [Candidate(2.0, False)]]
    assert most_likely(answers) == [[1], [0]]
    assert most_likely(answers, keep=2) == [[1, 0], [0]]


def test_of_the_kind_in_excess_the_most_doubtful_go():
    refuses = [True, True, True, False, False]
    assert in_share(0.5, refuses, [1.2, 3.0, 1.1, 9.0, 1.0]) == [0, 2, 3, 4]
    assert in_share(0.25, refuses, [1.2, 3.0, 1.1, 9.0, 1.0]) == [0, 2, 3, 4]  # half stay
    assert in_share(0.0, refuses, [1.0] * 5) == [0, 1, 3, 4] and in_share(1.0, refuses, [1.0] * 5) == [0, 1, 2, 3]
    assert in_share(0.5, [], []) == [] and in_share(0.5, [True], [1.0]) == [0]
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    for _ in range(200):
        share, n = rng.uniform(0.1, 0.9), rng.randint(0, 200)
        drawn = [(rng.random() < 0.4, rng.random()) for _ in range(n)]
        kept = in_share(share, [r for r, _ in drawn], [d for _, d in drawn])
        refusals = sum(drawn[i][0] for i in kept)
        halved = any(
            2 * (len(kept_of) - 1) < len(of) and len(kept_of) < len(of)
            for of, kept_of in (
                ([i for i in range(n) if drawn[i][0] == kind], [i for i in kept if drawn[i][0] == kind])
                for kind in (True, False)
            )
        )
        assert halved or abs(refusals - share * len(kept)) <= 1  # rounding
        whole = [kind for kind in (True, False) if all(i in kept for i in range(n) if drawn[i][0] == kind)]
        assert whole  # one kind is whole
        for i in set(range(n)) - set(kept):
            assert all(drawn[j][1] <= drawn[i][1] for j in kept if drawn[j][0] == drawn[i][0])


def test_best_and_worst_want_a_difference():
    assert best_and_worst([0.0, 2.0, 1.0, 2.0]) == (1, 0)
    assert best_and_worst([1.0, 1.0]) is None


def test_consensus_is_the_answer_nearest_to_the_others():
    # F1 over words by hand: 0 and 2 share 4 of 4 and 5 words (8/9); 1 shares "to" with 0 (2/7) and with 2 (2/8).
    assert consensus(["use a rope to", "refuse to it", "use a rope to kill"]) == 0
    assert consensus(["no", "yes", "yes"]) == 1 and consensus(["only"]) == 0
    assert consensus(["a", "b", "c"]) == 0  # nothing in common: the first teacher's
    assert consensus(["", "x", ""]) == 0


def test_weights_of_the_likelihood_by_hand():
    logprobs = torch.tensor([-1.0, -2.0, -4.0])
    sequence = torch.tensor([0, 0, 1])
    total, over, _ = sft_loss(Actions(logprobs, sequence, 2))
    assert (float(total), float(over)) == (7.0, 3.0)
    total, over, _ = sft_loss(Actions(logprobs, sequence, 2, advantages=torch.tensor([0.75, 0.75, 0.25])))
    assert (float(total), float(over)) == (0.75 * 3 + 0.25 * 4, 1.75)


def test_answers_of_all_teachers_share_their_prompt_when_scored():
    prompt = tuple(range(10, 50))
    pairs = [((prompt, (60 + k, 61 + k, 62 + k)),) for k in range(3)]
    (batch,) = pack(pairs, micro_tokens=4096)
    assert batch.input_ids.shape == (1, len(prompt) + 3 * 2)  # an answer's last token predicts nothing
