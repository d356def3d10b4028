"""Muon against PyTorch's own, which computes in bfloat16, and against the singular values it promises."""

from __future__ import annotations

import pytest
import torch

from choreo.engine.muon import Muon, orthogonal

pytestmark = pytest.mark.numeric

SHAPES = [(16, 16), (24, 16), (16, 16), (16, 40)]


@pytest.mark.parametrize("seed", [0, 1])
def test_steps_like_pytorch(seed):
    print(f"seed {seed}")
    generator = torch.Generator().manual_seed(seed)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    theirs = [torch.nn.Parameter(p.detach().clone()) for p in ours]
    start = [p.detach().clone() for p in ours]
    optimizers = Muon(ours, lr=0.02), torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, momentum=0.95)
    for _ in range(3):
        for a, b in zip(ours, theirs, strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for a, b, s in zip(ours, theirs, start, strict=True):
        assert (a - b).norm() < 0.02 * (b - s).norm()  # bfloat16 has 8 bits


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 9), (2, 9, 5)], ids=str)
def test_singular_values_come_near_one(shape):
    seed = 3
    print(f"seed {seed}")
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(seed))))
    assert values.min() > 0.3 and values.max() < 1.3
