"""Sampling: right distribution, right positions, and noise that belongs to the sequence."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import compress

import numpy as np
import pytest
import torch
from rounding import all_same
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from choreo.engine import prefill
from choreo.engine.agent import Team
from choreo.engine.local import LocalEngine
from choreo.engine.noise import splitmix64
from choreo.engine.prefill import COMMON
from choreo.engine.requests import Request
from choreo.models.load import load_chat

pytestmark = pytest.mark.numeric

PAD, END = 0, 1


def make_engine(folder, agitate: float = 0.0, **settings) -> LocalEngine:
    """An engine whose agents differ from the base by random B of size `agitate`."""
    team = Team.load(folder, rank=4, alpha=8.0, seed=3)
    generator = torch.Generator().manual_seed(5)
    for agent in team.agents.values():
        for name, value in agent.parameters.items():
            if name.endswith("lora_B"):
                value.data.normal_(0, agitate, generator=generator) if agitate else None
    return LocalEngine(team, pad_id=PAD, end_id=END, **settings)


def make_requests(seed: int, n: int, vocabulary: int = 300) -> list[Request]:
    print("seed", seed)
    rng = random.Random(seed)
    contexts = [tuple(rng.randrange(2, vocabulary) for _ in range(rng.randrange(1, 24))) for _ in range(n // 2)]
    return [Request(rng.choice(contexts), (seed, i, "answer")) for i in range(n)]


def test_splitmix64_is_the_published_generator():
    first = [int(x) for x in splitmix64(np.array([1234567], dtype=np.uint64), 3)[0]]
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_completion_does_not_depend_on_its_batch(tiny_folder):
    requests = make_requests(7, 40)
    engine = make_engine(tiny_folder, 0.1)
    whole = engine.sample("feedback", requests, max_new_tokens=12)
    assert len({c.ids for c in whole}) > 20 and {len(c.ids) for c in whole} != {12}
    alone = [engine.sample("feedback", [request], max_new_tokens=12)[0] for request in requests]
    backwards = make_engine(tiny_folder, 0.1, slots=60).sample("feedback", requests[::-1], max_new_tokens=12)[::-1]
    for other in (alone, backwards):
        equal = all_same(engine, "feedback", requests, [c.ids for c in other], [c.ids for c in whole])
        for a, b in compress(zip(other, whole, strict=True), equal):
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)


def test_sampled_logprobs_are_the_scored_ones_and_the_adapter_counts(tiny_folder):
    requests = make_requests(8, 40)
    engine = make_engine(tiny_folder, 0.1)
    completions = engine.sample("feedback", requests, max_new_tokens=12, temperature=1.7)
    pairs = [(r.context, c.ids) for r, c in zip(requests, completions, strict=True)]
    for completion, score in zip(completions, engine.score("feedback", pairs), strict=True):
        assert completion.logprobs == pytest.approx(score, abs=2e-5)
    other = engine.score("conversation", pairs)
    assert max(abs(c.logprobs[0] - s[0]) for c, s in zip(completions, other, strict=True)) > 0.1


def test_stops_at_the_end_token_and_says_so(tiny_folder):
    completions = make_engine(tiny_folder).sample("conversation", make_requests(9, 200), max_new_tokens=15)
    assert {c.finished for c in completions} == {True, False}
    for c in completions:
        assert c.version == 0 and len(c.ids) == len(c.logprobs)
        assert c.finished == (c.ids[-1] == END) and END not in c.ids[:-1]
        assert c.finished or len(c.ids) == 15


def test_frequencies_are_the_probabilities(tiny_folder):
    engine = make_engine(tiny_folder)
    context, n = (5, 9, 77, 120), 20_000
    drawn = engine.sample("conversation", [Request(context, (11, i)) for i in range(n)], max_new_tokens=1)
    counts = np.bincount([c.ids[0] for c in drawn], minlength=330)
    scores = engine.score(None, [(context, (i,)) for i in range(len(counts))])
    expected = np.exp([s[0] for s in scores])
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    common = expected * n >= 5
    chi2 = ((counts - expected * n)[common] ** 2 / (expected * n)[common]).sum()
    degrees = int(common.sum())
    assert degrees > 20
    assert abs(chi2 - degrees) < 4 * (2 * degrees) ** 0.5  # four standard deviations


def neox(folder):
    config = GPTNeoXConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.3,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    GPTNeoXForCausalLM(config).save_pretrained(folder)


def qwen(folder):
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            value.data.normal_()
    model.save_pretrained(folder)


def mistral(folder):
    config = MistralConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        initializer_range=0.3,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    MistralForCausalLM(config).save_pretrained(folder)


def cohere(folder):
    """Scales its logits after the output layer."""
    config = CohereConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        logit_scale=0.3,
        initializer_range=0.3,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    CohereForCausalLM(config).save_pretrained(folder)


def gemma2(folder):
    """Caps its logits, and every other layer has a sliding window."""
    config = Gemma2Config(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=6,
        final_logit_softcapping=2.0,
        attn_logit_softcapping=None,
        query_pre_attn_scalar=8,
        initializer_range=0.3,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )
    Gemma2ForCausalLM(config).save_pretrained(folder)


@pytest.mark.parametrize("shared", [0, 20])
@pytest.mark.parametrize("make", [None, qwen, neox, mistral, cohere, gemma2], ids=lambda make: make and make.__name__)
def test_greedy_is_what_transformers_generates_one_by_one(make, shared, tiny_folder, tmp_path, monkeypatch):
    """Positions, gaps between contexts and new tokens, compaction, a beginning that all contexts share: the library
    alone on each context is the judge."""
    monkeypatch.setattr(prefill, "BESIDE", 0)  # these models are narrow
    folder = tiny_folder
    if make is not None:
        torch.manual_seed(1)
        make(folder := tmp_path)
    beginning = tuple(range(40, 40 + shared))
    requests = [replace(one, context=(*beginning, *one.context)) for one in make_requests(10, 24)]
    engine = make_engine(folder)
    completions = engine.sample("conversation", requests, max_new_tokens=14, temperature=0)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = []
    for request, completion in zip(requests, completions, strict=True):
        ids = torch.tensor([request.context])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=14, eos_token_id=END
            )
            whole = torch.tensor([[*request.context, *completion.ids]])
            logprobs = model(whole).logits[0].log_softmax(-1)
        theirs.append(tuple(out[0, ids.shape[1] :].tolist()))
        expected = [logprobs[ids.shape[1] - 1 + t, token].item() for t, token in enumerate(completion.ids)]
        assert completion.logprobs == pytest.approx(expected, abs=5e-5)
    all_same(engine, "conversation", requests, [c.ids for c in completions], theirs, 0.0)
    pairs = [(r.context, c.ids) for r, c in zip(requests, completions, strict=True)]
    for completion, score in zip(completions, engine.score(None, pairs), strict=True):
        assert completion.logprobs == pytest.approx(score, abs=5e-5)


def test_what_all_contexts_begin_with_is_read_once(tiny_folder, monkeypatch):
    """Each context has a token of its own at least, so a context that is the beginning of all others is one as well."""
    monkeypatch.setattr(prefill, "BESIDE", 0)
    engine = make_engine(tiny_folder, 0.1)
    read = []
    run = engine.team.run
    monkeypatch.setattr(
        engine.team, "run", lambda *given: read.append(tuple(given[1]["input_ids"].shape)) or run(*given)
    )
    beginning = tuple(range(40, 60))
    contexts = [beginning, (*beginning, 5, 6), (*beginning, 7), (*beginning, 7)]
    requests = [Request(context, (i, "answer")) for i, context in enumerate(contexts)]
    engine.sample("feedback", requests, max_new_tokens=1)
    assert read == [(1, 19), (3, 3)]
    read.clear()
    engine.sample(
        "feedback",
        [Request(context[-COMMON:], ("answer", i)) for i, context in enumerate(contexts[:2])],
        max_new_tokens=1,
    )
    assert read == [(2, 16)]


def test_features_are_the_last_hidden_state_of_the_reference(tiny_folder):
    contexts = [request.context for request in make_requests(12, 30)]
    engine = make_engine(tiny_folder, 0.3)
    found = engine.features(contexts)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected = torch.stack([model.model(torch.tensor([c])).last_hidden_state[0, -1] for c in contexts])
    assert found.shape == (30, 32)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-4)


def test_bad_input_is_refused(tiny_folder):
    engine = make_engine(tiny_folder)
    with pytest.raises(ValueError, match="context"):
        engine.sample("conversation", [Request((), (0,))], max_new_tokens=3)
    with pytest.raises(ValueError, match="context"):
        engine.score(None, [((), (4,))])
    with pytest.raises(ValueError, match="max_new_tokens"):
        engine.sample("conversation", [Request((3,), (0,))], max_new_tokens=0)
    with pytest.raises(ValueError, match="differ"):
        LocalEngine(engine.team, pad_id=1, end_id=1)
    assert engine.sample("conversation", [], max_new_tokens=3) == [] and engine.score(None, []) == []


def test_a_model_that_changes_its_logits_in_an_unknown_way_is_refused(tiny_folder, monkeypatch):
    plain = LlamaForCausalLM.forward

    def forward(self, *args, **options):
        out = plain(self, *args, **options)
        out.logits = out.logits.clamp(max=1.0)
        return out

    monkeypatch.setattr(LlamaForCausalLM, "forward", forward)
    with pytest.raises(ValueError, match="changes its logits"):
        Team.load(tiny_folder)


def test_the_fixture_speaks_the_chat_format(tiny_folder):
    chat = load_chat(tiny_folder)
    assert (chat.pad_id, chat.end_id) == (PAD, END)
    assert chat.decode(chat.encode("Wie? <|end|>")) == "Wie? <|end|>" and END not in chat.encode("<|end|>")


def test_a_model_with_two_ways_to_count_has_the_positions_of_the_first():
    """LongRoPE chooses by the longest row of a call, so that beyond them a row would read what others make of it."""
    config = Qwen2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": [1.0] * 4,
            "long_factor": [2.0] * 4,
            "original_max_position_embeddings": 16,
        },
    )
    assert Team(Qwen2ForCausalLM(config), {}).positions == 16
