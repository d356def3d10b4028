"""Losses, gradients and advantages against TRL's own code on the same tensors (tests/golden/trl.json).

The file is made by benchmarks/trl_reference.py; where TRL is installed, it is also made again and compared.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from choreo.algorithms.advantages import dr_grpo, grpo, rloo
from choreo.engine.head import Head, token_logprobs
from choreo.engine.learner import monitored
from choreo.engine.losses import Actions, DPOLoss, PolicyLoss
from choreo.types import CONVERSATION, Sample

pytestmark = pytest.mark.numeric

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def made() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trl_reference", ROOT / "benchmarks" / "trl_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden(made):
    golden = json.loads(made.GOLDEN.read_text(encoding="utf-8"))
    print("TRL", golden["trl"], "seed", golden["seed"])
    return golden


def ours(given, loss, *, on_policy=False):
    """(terms, figures, gradient) of choreo on the tensors: logits [4, 5, 6] to log π to the loss, padding left out."""
    logits = torch.tensor(given["logits"], requires_grad=True)
    mask = torch.tensor(given["mask"]).bool()
    head, targets = Head(torch.eye(logits.shape[-1])), torch.tensor(given["ids"])[mask]
    values = token_logprobs(logits[mask], head, targets, cells=3 * logits.shape[-1], least=3)
    sequence = mask.nonzero()[:, 0]
    old = values.detach() if on_policy else torch.tensor(given["old"])[mask]
    reference, advantages = torch.tensor(given["reference"])[mask], torch.tensor(given["advantages"])[sequence]
    actions = Actions(values, sequence, len(mask), old, reference, advantages)
    terms = loss(actions)
    (terms.total / terms.over).backward()
    return terms, monitored(actions), logits.grad


def agree(terms, gradient, theirs):
    torch.testing.assert_close((terms.total / terms.over).item(), theirs["loss"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, torch.tensor(theirs["gradient"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["dapo", "bnpo", "grpo", "dr_grpo"])
def test_clipped_policy_losses(made, golden, name):
    loss = {
        "dapo": PolicyLoss(made.CLIP, made.CLIP_HIGH),
        "bnpo": PolicyLoss(made.CLIP),
        "grpo": PolicyLoss(made.CLIP, divide="sequences"),
        "dr_grpo": PolicyLoss(made.CLIP, divide=made.MAX_LENGTH),
    }[name]
    terms, _, gradient = ours(golden["given"], loss)
    agree(terms, gradient, golden["losses"][name])
    assert 0 < terms.record["clip_fraction"] / terms.over < 1  # otherwise the clip was not compared


def test_kl(made, golden):
    """The k2 loss steps where TRL's corrected k3 does; our kl figure is its k3."""
    theirs = golden["losses"]["kl"]
    terms, figures, gradient = ours(golden["given"], PolicyLoss(made.CLIP, kl=made.KL), on_policy=True)
    torch.testing.assert_close(gradient, torch.tensor(theirs["gradient"]), rtol=1e-5, atol=1e-6)
    assert figures["kl"].item() / terms.over.item() == pytest.approx(theirs["kl"], rel=1e-5)
    without, _, _ = ours(golden["given"], PolicyLoss(made.CLIP), on_policy=True)
    policy = (without.total / without.over).item()
    assert theirs["loss"] == pytest.approx(policy + made.KL * theirs["kl"], rel=1e-5)  # the values differ: k3, not k2


def test_dpo(made, golden):
    theirs = golden["losses"]["dpo"]
    terms, _, gradient = ours(golden["given"], DPOLoss(made.DPO_BETA))
    agree(terms, gradient, theirs)
    assert terms.record["margin"].item() / 2 == pytest.approx(theirs["margins"], rel=1e-5)
    assert terms.record["accuracy"].item() / 2 == theirs["accuracies"]


def test_group_advantages(made, golden):
    samples = [
        Sample(CONVERSATION, (1,), (2,), (-1.0,), str(group), reward)
        for group, rewards in enumerate(made.REWARDS)
        for reward in rewards
    ]
    theirs = {name: torch.tensor(values).double() for name, values in golden["advantages"].items()}

    def found(estimate):
        return torch.tensor([sample.advantages[0] for sample in estimate(samples)]).double()

    torch.testing.assert_close(found(rloo), theirs["rloo"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found(dr_grpo), theirs["dr_grpo"], rtol=1e-5, atol=1e-6)
    # TRL divides by Bessel's deviation plus 1e-4, choreo by the population's, as the GRPO paper defines std.
    rewards = torch.tensor(made.REWARDS).double()
    scale = (rewards.std(1) + 1e-4) / rewards.std(1, correction=0).clamp(min=1e-4)
    rescaled = theirs["grpo"] * scale.repeat_interleave(rewards.shape[1])
    torch.testing.assert_close(found(grpo), rescaled, rtol=1e-5, atol=1e-6)


def test_golden_file_is_of_these_tensors_and_of_trl(made, golden):
    pytest.importorskip("trl", reason="TRL comes with the `bench` extra")

    def same(a, b, path=""):
        if isinstance(a, dict):
            assert a.keys() == b.keys()
            for name in a:
                same(a[name], b[name], f"{path}/{name}")
        else:
            torch.testing.assert_close(torch.tensor(a), torch.tensor(b), rtol=1e-5, atol=1e-6, msg=path)

    given = made.tensors()
    same(given, golden["given"])
    same(made.outputs(given), {name: golden[name] for name in ("losses", "advantages")})
