"""A learnt value baseline V(s) ≈ E[R | s], for the ablation of shared against separate value functions.

REINFORCE++ has no critic; this one is deliberately small: a two-layer regressor on the reference model's
features of the state. It never touches a policy's weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from choreo.engine.checkpoint import of_optimizer
from choreo.types import AGENTS

HIDDEN = 32
LR, PASSES = 1e-2, 4  # of Adam, full-batch steps of a fit


class ValueBaseline:
    """kind: "separate" has one regressor per agent, "shared" one that reads the states of both.

    widths: d of each agent's features; for a shared regressor both are of one base, and so the same.
    Predicts 0 until the first `fit`. Call `predict` before `fit` on a batch: a baseline that has seen a batch's rewards
    depends on its actions, and biases the gradient.
    """

    def __init__(self, kind: Literal["separate", "shared"], widths: Mapping[str, int], *, seed: int):
        self._head_of = {agent: agent if kind == "separate" else "shared" for agent in AGENTS}
        width_of = {name: widths[agent] for agent, name in self._head_of.items()}
        self._heads = {name: _head(width, seed + i) for i, (name, width) in enumerate(width_of.items())}
        self._adam = {name: torch.optim.Adam(head.parameters(), lr=LR) for name, head in self._heads.items()}

    @torch.no_grad()
    def predict(self, agents: Sequence[str], features: Sequence[Tensor]) -> list[float]:
        """V of every state. agents: who acts in it, [n]; features: n of float32 [d], d that of the agent."""
        values = torch.zeros(len(agents))
        for name, rows in self._rows(agents).items():
            values[rows] = self._heads[name](_batch(features, rows)).squeeze(-1)
        return values.tolist()

    def fit(self, agents: Sequence[str], features: Sequence[Tensor], rewards: Sequence[float]) -> dict[str, float]:
        """PASSES full-batch Adam steps on the squared error. Returns each regressor's mean error before them."""
        targets = torch.tensor(rewards, dtype=torch.float32)
        before = {}
        for name, rows in self._rows(agents).items():
            head, adam, states = self._heads[name], self._adam[name], _batch(features, rows)
            for step in range(PASSES):
                loss = (head(states).squeeze(-1) - targets[rows]).square().mean()
                if step == 0:
                    before[name] = loss.item()
                adam.zero_grad()
                loss.backward()
                adam.step()
        return before

    def state_dict(self) -> dict[str, Any]:
        """A copy: loading one into another baseline must not tie the two optimisers' moments together."""
        pairs = {name: (head, self._adam[name]) for name, head in self._heads.items()}
        return deepcopy({name: {"head": h.state_dict(), "adam": a.state_dict()} for name, (h, a) in pairs.items()})

    def example(self) -> dict[str, Any]:
        """What a saved state is like (`checkpoint.check`)."""
        heads = self._heads.items()
        return {name: {"head": {**head.state_dict()}, "adam": of_optimizer(self._adam[name])} for name, head in heads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, head in self._heads.items():
            head.load_state_dict(state[name]["head"])
            self._adam[name].load_state_dict(state[name]["adam"])

    def _rows(self, agents: Sequence[str]) -> dict[str, list[int]]:
        """The rows each regressor answers for; regressors with none are left out."""
        rows: dict[str, list[int]] = {}
        for i, agent in enumerate(agents):
            rows.setdefault(self._head_of[agent], []).append(i)
        return rows


def _batch(features: Sequence[Tensor], rows: Sequence[int]) -> Tensor:
    return torch.stack([features[row] for row in rows])


def _head(width: int, seed: int) -> nn.Module:
    """Starts at V = 0, so the first step is that of no baseline."""
    first, last = nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.uniform_(-(width**-0.5), width**-0.5, generator=generator)
        for parameter in last.parameters():
            parameter.zero_()
    return nn.Sequential(nn.LayerNorm(width, elementwise_affine=False), first, nn.Tanh(), last)
