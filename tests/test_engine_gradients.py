"""Gradients and losses: independent of how the work is cut up, and equal to what other hands compute."""

from __future__ import annotations

import dataclasses
import math
import random

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig

from choreo.engine.agent import Team
from choreo.engine.export import export
from choreo.engine.head import CPU_LOGITS, Head, tempered, token_logprobs
from choreo.engine.learner import Learner, preference_pairs
from choreo.engine.local import LocalEngine
from choreo.engine.losses import Actions, DPOLoss, PolicyLoss, Terms, sft_loss
from choreo.engine.pack import pack
from choreo.engine.requests import Request
from choreo.types import Preference, Prompt, Sample

pytestmark = pytest.mark.numeric

END = 1


def make_team(folder, agitate: float = 0.0, **settings) -> Team:
    team = Team.load(folder, rank=4, alpha=8.0, seed=3, **settings)
    generator = torch.Generator().manual_seed(5)
    for agent in team.agents.values() if agitate else ():
        for value in agent.parameters.values():
            value.data += agitate * torch.randn(value.shape, generator=generator)
    return team


def make_samples(seed: int, groups: int = 8, agent: str = "conversation") -> list[Sample]:
    """Groups on one context, contexts with common beginnings, answers of 1 to 12 tokens, some twice."""
    print("seed", seed)
    rng = random.Random(seed)
    words = lambda n: tuple(rng.randrange(2, 300) for _ in range(n))  # noqa: E731
    beginning, samples = words(9), []
    for group in range(groups):
        context = beginning + words(rng.randrange(1, 15)) if group % 2 else words(rng.randrange(1, 20))
        answers = [(*words(rng.randrange(0, 12)), END) for _ in range(3)]
        for ids in (*answers, answers[0]):
            floats = [tuple(rng.gauss(mean, 0.5) for _ in ids) for mean in (-4, -4, 0)]
            samples.append(Sample(agent, context, ids, floats[0], str(group), 0.0, {}, floats[1], floats[2]))
    rng.shuffle(samples)
    return samples


def as_pairs(samples: list[Sample]) -> list[tuple[Sample, Sample]]:
    return list(zip(samples[::2], samples[1::2], strict=True))


LOSSES = {
    "tokens": PolicyLoss(clip=1e9, kl=0.1),
    "sequences": PolicyLoss(clip=0.2, divide="sequences"),
    "constant": PolicyLoss(clip=0.2, divide=40),
    "sft": sft_loss,
    "dpo": DPOLoss(beta=0.3, sft=0.2),
    "dpo, likelihood per token": DPOLoss(beta=0.3, sft=0.2, sft_length=3.5),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_does_not_depend_on_micro_batches_or_prefix_sharing(name, tiny_folder):
    samples = make_samples(21)
    units = as_pairs(samples) if name.startswith("dpo") else samples
    team = make_team(tiny_folder, 0.1)
    gradients = []
    for micro_tokens, share in ((10**6, False), (10**6, True), (1, True), (1, False), (150, True)):
        team.full_attention = share
        learner = Learner(team, "conversation", lr=1e-3, micro_tokens=micro_tokens)
        gradients.append(torch.cat([g.flatten() for g in learner.gradient(units, LOSSES[name])]))
    assert gradients[0].norm() > 1e-3
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=1e-4, atol=1e-5 * gradients[0].abs().max().item())


@pytest.mark.parametrize("window, shared", [(12, False), (40, True)])
def test_sequences_within_a_window_share_their_beginnings(window, shared, tmp_path):
    """Gemma 3 with a window in every other layer. The longest sequence has 32 tokens."""
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        vocab_size=300, sliding_window=window, layer_types=kinds, initializer_range=0.3, **sizes, **heads
    )
    Gemma3ForCausalLM(config).save_pretrained(tmp_path)
    team, samples = make_team(tmp_path, 0.1), make_samples(22)
    rows = [((sample.context, sample.ids),) for sample in samples]
    assert max(len(sample.context) + len(sample.ids) for sample in samples) == 32 and team.shares(rows) is shared
    learner = Learner(team, "conversation", lr=1e-3)
    given = learner.gradient(samples, LOSSES["tokens"])
    team.window = None
    assert not team.shares(rows)
    for alone, together in zip(learner.gradient(samples, LOSSES["tokens"]), given, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5 * max(1, alone.abs().max().item()))


def test_whole_weights_that_were_sampled_before_anything_learns_do_learn(tiny_folder):
    team = Team.load(tiny_folder, train="full")
    LocalEngine(team, pad_id=0, end_id=END).sample("conversation", [Request((9, 8, 7), (1,))], max_new_tokens=2)
    before = team.state_dict("conversation")["weights"]
    Learner(team, "conversation", lr=1e-3).update(make_samples(22), LOSSES["tokens"])
    after = team.state_dict("conversation")["weights"]
    assert not any(torch.equal(before[name], value) for name, value in after.items())
    team.load_state_dict("conversation", {"version": 0, "weights": before})
    assert all(torch.equal(before[name], value) for name, value in team.state_dict("conversation")["weights"].items())


def test_gradient_is_the_one_peft_and_autograd_give_sample_by_sample(tiny_folder, tmp_path):
    """The adapter written for PEFT, loaded by PEFT, one unpadded sample at a time, logits whole, loss spelt out."""
    samples, team = make_samples(22), make_team(tiny_folder, 0.1)
    learner = Learner(team, "conversation", lr=1e-3)
    gradient = learner.gradient(samples, PolicyLoss(clip=0.3))
    found = dict(zip(team.agents["conversation"].parameters, gradient, strict=True))

    export(team, "conversation", tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path, is_trainable=True).eval()
    total = sum(len(sample.ids) for sample in samples)
    for sample in samples:
        logits = model(torch.tensor([[*sample.context, *sample.ids]])).logits[0, len(sample.context) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(sample.ids)[:, None])[:, 0]
        ratio = (chosen - torch.tensor(sample.logprobs)).exp()
        advantages = torch.tensor(sample.advantages)
        loss = -torch.minimum(ratio * advantages, ratio.clamp(0.7, 1.3) * advantages).sum() / total
        loss.backward()
    expected = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert len(expected) == len(found) == 28
    for name, gradient in found.items():
        theirs = expected[f"base_model.model.{name}.default.weight"]
        torch.testing.assert_close(gradient, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("cap", [None, 3.0])
def test_a_policy_temperature_is_that_of_its_softmax_and_samples_have_ratio_one(cap, tiny_folder):
    """By hand: log softmax(logits / τ). A sample's own log π is the learner's, so the ratio is 1 on-policy."""
    team, plain = make_team(tiny_folder, 0.1), make_team(tiny_folder, 0.1)
    plain.decoder.cap = cap
    team.decoder.scale, team.decoder.cap = tempered(plain.decoder.scale, cap, 0.5)
    hidden, head = plain.run(plain.weights("conversation"), {"input_ids": torch.tensor([[7, 8, 40]])})
    by_hand = (head.logits(hidden) / 0.5).log_softmax(-1)[1, 40].item()
    engine = LocalEngine(team, pad_id=0, end_id=END)
    assert engine.score("conversation", [((7, 8), (40,))])[0][0] == pytest.approx(by_hand, abs=1e-5)
    requests = [Request((7, 8), ("tempered", i)) for i in range(8)]
    written = engine.sample("conversation", requests, max_new_tokens=5)
    samples = [
        Sample("conversation", (7, 8), one.ids, one.logprobs, "", 1.0, advantages=(1.0,) * len(one.ids))
        for one in written
    ]
    assert Learner(team, "conversation", lr=1e-3).update(samples, PolicyLoss())["ratio"] < 1e-4


def test_the_end_token_is_trained_on(tiny_folder):
    """Only the last token carries an advantage: the gradient is not zero, and one step makes ending likelier."""
    team = make_team(tiny_folder)
    engine = LocalEngine(team, pad_id=0, end_id=END)
    ids = (40, 41, END)
    old = engine.score("conversation", [((7, 8), ids)])[0]
    sample = Sample("conversation", (7, 8), ids, old, "", 1.0, advantages=(0.0, 0.0, 1.0))
    metrics = Learner(team, "conversation", lr=1e-2).update([sample], PolicyLoss())
    assert metrics["grad_norm"] > 1e-3
    assert engine.score("conversation", [((7, 8), ids)])[0][2] > old[2]


@pytest.mark.parametrize("train", ["lora", "full"])
def test_at_step_zero_the_ratio_is_one_the_kl_zero_and_dpo_ln_2(train, tiny_folder):
    team = make_team(tiny_folder, train=train)
    engine = LocalEngine(team, pad_id=0, end_id=END)
    samples = make_samples(23)
    scores = engine.score(None, [(s.context, s.ids) for s in samples])
    samples = [dataclasses.replace(s, logprobs=x, reference=x) for s, x in zip(samples, scores, strict=True)]
    metrics = Learner(team, "conversation", lr=1e-3).update(samples, PolicyLoss(kl=1.0))
    tokens = sum(len(s.ids) for s in samples)
    assert metrics["tokens"] == tokens and metrics["clip_fraction"] == 0
    assert metrics["ratio"] < 1e-5 and abs(metrics["kl"]) < 1e-9
    assert metrics["loss"] == pytest.approx(-sum(sum(s.advantages) for s in samples) / tokens, abs=1e-5)
    assert metrics["entropy"] == pytest.approx(-sum(map(sum, scores)) / tokens, rel=1e-5)

    prompt = Prompt("p", "", "benign", "")
    preferences = [Preference(prompt, s.context, s.ids, (*s.ids[:-1], 50, END)) for s in samples]
    pairs = preference_pairs(engine, "feedback", preferences)
    learner = Learner(team, "feedback", lr=1e-3, micro_tokens=engine.micro_tokens)
    metrics = learner.update(pairs, DPOLoss(beta=0.1))
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-6) and metrics["margin"] == pytest.approx(0, abs=1e-6)
    assert not {"kl", "ratio", "entropy"} & metrics.keys()  # the tokens are not the policy's own
    assert learner.update(pairs, DPOLoss(beta=0.1))["accuracy"] > 0.8


def test_dpo_reference_is_the_one_named(tiny_folder):
    team = make_team(tiny_folder, 0.1)
    engine = LocalEngine(team, pad_id=0, end_id=END)
    preference = Preference(Prompt("p", "", "benign", ""), (4, 5), (6, END), (7, END))
    named = preference_pairs(engine, "conversation", [preference], reference="conversation")
    base = preference_pairs(engine, "conversation", [preference])
    learner = Learner(team, "conversation", lr=1e-3)
    assert learner.update(named, DPOLoss())["loss"] == pytest.approx(math.log(2), abs=1e-6)
    expected = engine.score(None, [((4, 5), (6, END))])[0]
    assert base[0][0].reference == pytest.approx(expected, abs=1e-5)
    assert named[0][0].reference != pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("train", ["lora", "full"])
def test_updating_one_agent_leaves_the_other_and_the_base_bitwise_unchanged(train, tiny_folder):
    team = make_team(tiny_folder, train=train)
    learners = {agent: Learner(team, agent, lr=1e-2) for agent in team.agents}
    learners["feedback"].update(make_samples(24, agent="feedback"), PolicyLoss())
    before = learners["feedback"].state_dict()
    before = {"weights": before["agent"]["weights"], "moments": _moments(learners["feedback"])}
    base = {name: value.clone() for name, value in team.decoder.state_dict().items()}
    own = [value.detach().clone() for value in learners["conversation"].parameters]
    learners["conversation"].update(make_samples(25), PolicyLoss())
    assert any(not torch.equal(a, b) for a, b in zip(own, learners["conversation"].parameters, strict=True))
    after = {"weights": team.state_dict("feedback")["weights"], "moments": _moments(learners["feedback"])}
    for part in ("weights", "moments"):
        assert before[part].keys() == after[part].keys() and before[part]
        assert all(torch.equal(value, after[part][name]) for name, value in before[part].items())
    assert all(torch.equal(value, base[name]) for name, value in team.decoder.state_dict().items())
    assert team.version == {"conversation": 1, "feedback": 1}
    with pytest.raises(ValueError, match="learner of 'conversation'"):
        learners["conversation"].update(make_samples(26, agent="feedback"), PolicyLoss())


def _moments(learner: Learner) -> dict[str, torch.Tensor]:
    state = learner.optimizer.state_dict()["state"]
    return {f"{i}.{name}": value.clone() for i, entry in state.items() for name, value in entry.items()}


def test_a_gradient_that_is_not_finite_changes_nothing(tiny_folder):
    team = make_team(tiny_folder)
    learner = Learner(team, "conversation", lr=1e-2)
    before = team.state_dict("conversation")["weights"]
    bad = dataclasses.replace(make_samples(27)[0], advantages=())
    bad = dataclasses.replace(bad, advantages=(math.nan,) * len(bad.ids))
    with pytest.raises(FloatingPointError, match="conversation"):
        learner.update([bad], PolicyLoss())
    assert all(torch.equal(value, before[name]) for name, value in team.agents["conversation"].parameters.items())
    assert learner.update([], PolicyLoss()) == {"tokens": 0.0, "sequences": 0.0} and team.version["conversation"] == 0


def flat_actions(logprobs, old, reference, advantages, lengths) -> Actions:
    sequence = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (old, reference, advantages)]
    return Actions(torch.tensor(logprobs, dtype=torch.float64, requires_grad=True), sequence, len(lengths), *tensors)


def test_policy_loss_by_hand():
    """Ratios 1.5, 0.5, 1.5, 1 at ε = 0.2: the first and second are cut (A > 0 above, A < 0 below), the third is not."""
    logprobs, reference = np.log([1.5, 0.5, 1.5, 1.0]), np.log([1.5, 0.5, 1.0, 1.0])
    actions = flat_actions(logprobs, [0.0] * 4, reference, [2, -1, -1, 3], [1, 3])
    terms = PolicyLoss()(actions)
    assert terms.total.item() == pytest.approx(-(1.2 * 2 - 0.8 - 1.5 + 3)) and terms.over == 4
    assert terms.record["clip_fraction"] == 2
    terms.total.backward()
    assert actions.logprobs.grad.tolist() == pytest.approx([0, 0, 1.5, -3])
    per_sequence = PolicyLoss(divide="sequences")(actions)
    assert per_sequence.total.item() == pytest.approx(-2.4 + (0.8 + 1.5 - 3) / 3) and per_sequence.over == 2
    assert PolicyLoss(divide=10)(actions).over == 20
    assert PolicyLoss(clip_high=0.6)(actions).total.item() == pytest.approx(-(3 - 0.8 - 1.5 + 3))
    k2 = PolicyLoss(kl=0.1)(actions).total - terms.total
    assert k2.item() == pytest.approx(0.1 * 0.5 * math.log(1.5) ** 2)


def test_k2_loss_has_the_gradient_of_the_kl_and_k1_has_none():
    """Expectation over every action under the policy, exactly; float64."""
    generator = torch.Generator().manual_seed(0)
    logits, reference = torch.randn(2, 6, generator=generator, dtype=torch.float64)

    def expected_gradient(loss):
        theta = logits.clone().requires_grad_()
        logprobs = theta.log_softmax(-1)
        terms = [loss(logprobs[a : a + 1], reference.log_softmax(-1)[a : a + 1]).total for a in range(6)]
        (logprobs.detach().exp() * torch.stack(terms)).sum().backward()
        return theta.grad

    def k2(logprob, ref):
        zero = torch.zeros(1, dtype=torch.float64)
        return PolicyLoss(kl=1.0)(Actions(logprob, torch.zeros(1).long(), 1, logprob.detach(), ref, zero))

    theta = logits.clone().requires_grad_()
    logprobs = theta.log_softmax(-1)
    (logprobs.exp() * (logprobs - reference.log_softmax(-1))).sum().backward()
    assert theta.grad.norm() > 0.1
    torch.testing.assert_close(expected_gradient(k2), theta.grad)
    k1 = expected_gradient(lambda logprob, ref: Terms((logprob - ref).sum(), torch.tensor(1.0)))
    assert k1.abs().max() < 1e-12


def test_dpo_loss_by_hand():
    actions = flat_actions([-1, -2, -3, -1], [0] * 4, [-1.5, -2, -2, -1], [0] * 4, [2, 2])
    terms = DPOLoss(beta=0.5, sft=0.1)(actions)  # gains +0.5 and −1: margin 0.75
    assert terms.total.item() == pytest.approx(math.log(1 + math.exp(-0.75)) + 0.1 * 1.5) and terms.over == 1
    assert terms.record["margin"].item() == pytest.approx(0.75) and terms.record["accuracy"] == 1
    constant = DPOLoss(beta=0.5, sft=0.1, sft_length=6.0)(actions)  # −3 nats over 6 tokens, where its own are 2
    assert (terms.total - constant.total).item() == pytest.approx(0.1 * (1.5 - 0.5))
    with pytest.raises(ValueError, match="reference"):
        DPOLoss()(Actions(torch.zeros(2), torch.arange(2), 2))


def test_likelihood_over_the_mean_length_is_that_of_supervised_tuning():
    chosen = Actions(torch.tensor([-1.0, -2.0, -3.0, -0.5]), torch.tensor([0, 0, 0, 1]), 2)
    pairs = Actions(
        torch.tensor([-1.0, -2.0, -3.0, -9.0, -0.5, -9.0]),
        torch.tensor([0, 0, 0, 1, 2, 3]),
        4,
        reference=torch.zeros(6),
    )
    alone = sft_loss(chosen)
    both = DPOLoss(beta=0.0, sft=1.0, sft_length=2.0)(pairs)  # 3 tokens and 1: 2 on average
    assert (both.total / both.over).item() - math.log(2) == pytest.approx((alone.total / alone.over).item())


@pytest.mark.parametrize("scale, cap", [(1.0, None), (0.5, 3.0)], ids=["plain", "scaled and capped"])
def test_chunks_with_recomputation_are_the_whole(scale, cap):
    """Rows at a time, and tiles of rows and ids: values and gradients are those of all logits at once, in float64."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((50, 8), (40, 8), (40,))
    given = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    targets, weight = torch.randint(0, 40, (50,), generator=generator), torch.randn(50, generator=generator)
    results = []
    for cells, least in ((10**6, 1), (7 * 40, 7), (7 * 9, 7), (10, 10), (50 * 13, 50)):
        leaves = [x.clone().requires_grad_() for x in given]
        values = token_logprobs(leaves[0], Head(leaves[1], leaves[2], scale, cap), targets, cells=cells, least=least)
        (values * weight).sum().backward()
        results.append([values.detach(), *[leaf.grad for leaf in leaves]])
    logits = Head(*given[1:], scale, cap).logits(given[0])
    torch.testing.assert_close(results[0][0], logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
    for others in zip(*results, strict=True):
        for other in others[1:]:
            torch.testing.assert_close(other, others[0], rtol=1e-12, atol=1e-12)


def test_nothing_in_an_update_is_as_large_as_the_logits():
    """Of 300 tokens over a vocabulary of 128k, whose logits would be 39 million."""

    class Largest(TorchDispatchMode):
        cells = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            made = out if isinstance(out, tuple | list) else [out]
            self.cells = max(self.cells, *(x.numel() for x in made if isinstance(x, torch.Tensor)), 0)
            return out

    generator = torch.Generator().manual_seed(2)
    hidden = torch.randn(300, 4, generator=generator, requires_grad=True)
    weight, targets = torch.randn(2**17, 4, generator=generator), torch.randint(0, 2**17, (300,), generator=generator)
    with Largest() as largest:
        token_logprobs(hidden, Head(weight), targets).sum().backward()
    assert largest.cells == CPU_LOGITS
    exact = hidden.detach().double().requires_grad_()
    token_logprobs(exact, Head(weight.double()), targets, cells=2**27).sum().backward()
    # 32 tiles, whose sums are about e^12: each may round the logarithm of their sum by half of 2^-20.
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=0, atol=32 * 2.0**-21 * weight.abs().max().item())


def test_packs_hold_every_token_once_and_save_slots():
    samples = make_samples(28, groups=20)
    units = [((s.context, s.ids),) for s in samples]
    packs = pack(units, micro_tokens=400)
    assert sorted(i for p in packs for i in p.units) == list(range(len(units)))
    assert all(p.input_ids.numel() <= 400 for p in packs)
    assert sum(p.input_ids.numel() for p in packs) < 0.75 * sum(
        p.input_ids.numel() for p in pack(units, micro_tokens=400, share=False)
    )
    for p in packs:
        assert p.targets.tolist() == [token for i in p.units for token in samples[i].ids]
        ids, at, start = p.input_ids.flatten(), p.where.tolist(), 0
        for i in p.units:
            tokens = (*samples[i].context, *samples[i].ids)
            n, first = len(samples[i].ids), len(samples[i].context) - 1
            slots, start = at[start : start + n], start + n
            row, place = divmod(slots[-1], p.input_ids.shape[1])
            assert [ids[slot].item() for slot in slots] == list(tokens[first:-1])
            if p.mask is not None:  # what the last slot sees is its own sequence and nothing else
                seen = (p.mask[row, 0, place] == 0).nonzero().squeeze(1)
                order = p.position_ids[row, seen].argsort()
                assert p.input_ids[row, seen[order]].tolist() == list(tokens[:-1])
