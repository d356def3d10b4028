"""One optimiser step of one agent on any loss. The learner knows no algorithm; the losses are in losses.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from choreo import parallel
from choreo.engine.agent import Team
from choreo.engine.checkpoint import of_optimizer
from choreo.engine.losses import Actions, Loss
from choreo.engine.pack import Pack, pack
from choreo.engine.requests import Engine
from choreo.engine.score import logprobs
from choreo.engine.sharded import Sharded, full, moments
from choreo.types import Preference, Sample

Unit = Sample | tuple[Sample, ...]
PER_TOKEN = ("kl", "entropy", "ratio")


class Learner:
    """The optimiser (AdamW, no weight decay) and the version counter of one agent of a team.

    micro_tokens: padded token slots per micro-batch. It changes speed and memory, never the gradient.
    masks: of the constraint that the agent's turns are held to, if any (`engine.constraint`). A forced token of a
        constrained turn is in no loss and in no count.
    """

    def __init__(
        self,
        team: Team,
        agent: str,
        *,
        lr: float,
        max_grad_norm: float = 1.0,
        micro_tokens: int = 8192,
        masks: Tensor | None = None,
    ):
        self.team, self.agent, self.masks = team, agent, masks
        self.max_grad_norm, self.micro_tokens = max_grad_norm, micro_tokens
        self.sharded = isinstance(team.agents[agent], Sharded)
        self.parameters = list(team.agents[agent].parameters.values())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0, fused=True)

    def update(self, samples: Sequence[Unit], loss: Loss, *, lr: float | None = None) -> dict[str, float]:
        """One step on `samples`, of which each rank takes a share. A unit of several samples reaches the loss whole,
        e.g. a DPO pair.

        lr: the learning rate from here on; None leaves it as it is.
        Returns loss, grad_norm (before clipping), tokens, sequences, what the loss records, and, where the
        samples have the fields for it: kl (k3 estimate of KL(π_θ‖π_ref), nats per token), entropy (−log π_old per
        token: unbiased when sampled at temperature 1), ratio (mean |π_θ/π_old − 1|).
        With no sample on any rank nothing changes, and only the counts are returned.
        Raises FloatingPointError, weights untouched, when the gradient is not finite.
        """
        figures = parallel.sum_figures(self._accumulate(parallel.shard(_units(samples)), loss))
        tokens, sequences = figures.pop("tokens"), figures.pop("sequences")
        count = figures.pop("count")
        if count == 0:
            return {"tokens": tokens, "sequences": sequences}
        if lr is not None:
            self.optimizer.param_groups[0]["lr"] = lr
        norm = self._step(count)
        metrics = {name: value / (tokens if name in PER_TOKEN else count) for name, value in figures.items()}
        return {**metrics, "grad_norm": norm, "tokens": tokens, "sequences": sequences}

    def gradient(self, samples: Sequence[Unit], loss: Loss) -> list[Tensor]:
        """The global gradient that `update` would step along, one tensor per parameter; changes nothing."""
        figures = parallel.sum_figures(self._accumulate(parallel.shard(_units(samples)), loss))
        self._divide(figures["count"])
        gradient = [full(parameter.grad).clone() for parameter in self.parameters if parameter.grad is not None]
        self.optimizer.zero_grad()
        return gradient

    def _accumulate(self, units: Sequence[tuple[Sample, ...]], loss: Loss) -> dict[str, float]:
        """Adds the gradient of the loss's sum over all micro-batches; returns this rank's sums and counts."""
        figures = {"tokens": 0.0, "sequences": 0.0, "count": 0.0}
        strangers = {sample.agent for unit in units for sample in unit} - {self.agent}
        if strangers:
            raise ValueError(f"samples of {sorted(strangers)} were given to the learner of {self.agent!r}")
        rows = [tuple((sample.context, sample.ids, sample.choices) for sample in unit) for unit in units]
        self.optimizer.zero_grad()
        team = self.team
        batches = pack(rows, micro_tokens=self.micro_tokens, share=team.shares(rows), device=team.device)
        idle = parallel.most(len(batches)) - len(batches) if self.sharded else 0
        for batch in batches:
            values = logprobs(team, team.learning(self.agent), batch, self.masks)
            actions = _actions(values, batch, units)
            terms = loss(actions)
            terms.total.backward()
            sums = {"loss": terms.total, "count": terms.over, **terms.record, **monitored(actions)}
            sums |= {"tokens": torch.tensor(len(values)), "sequences": torch.tensor(actions.sequences)}
            for name, value in sums.items():
                figures[name] = figures.get(name, 0.0) + float(value.detach())
        for _ in range(idle):  # every layer is gathered, and its gradient summed, by all ranks together
            [nothing] = pack([(((0,), (0,)),)], micro_tokens=1, device=team.device)
            values = logprobs(team, team.learning(self.agent), nothing)
            values.backward(torch.zeros_like(values))
        return figures

    def _divide(self, count: float) -> None:
        if not self.sharded:  # otherwise the backward pass has summed them
            parallel.sum_gradients(self.parameters)
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= count  # the only division, by the global count

    def _step(self, count: float) -> float:
        self._divide(count)
        norm = full(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not torch.isfinite(norm):
            self.optimizer.zero_grad()
            raise FloatingPointError(f"the gradient of agent {self.agent!r} is not finite; its weights are untouched")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.team.count_update(self.agent)
        return float(norm)

    def forget(self) -> None:
        """Drops the optimiser's moments, as for an objective whose gradients are of another size: AdamW divides by
        what it remembers of theirs. The agent's weights and version stay."""
        self.optimizer.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on exactly: the agent's weights and version, and the optimiser's moments."""
        return {"agent": self.team.state_dict(self.agent), "optimizer": self.optimizer.state_dict()}

    def example(self) -> dict[str, Any]:
        """An example of a saved state (`checkpoint.check`)."""
        return {"agent": self.team.example(self.agent), "optimizer": of_optimizer(self.optimizer)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave. Raises ValueError for a state of another base, rank or kind of training."""
        self.team.load_state_dict(self.agent, state["agent"])
        saved = state["optimizer"]
        self.optimizer.load_state_dict({**saved, "state": moments(saved["state"], self.parameters)})


def _units(samples: Sequence[Unit]) -> list[tuple[Sample, ...]]:
    return [(unit,) if isinstance(unit, Sample) else unit for unit in samples]


def preference_pairs(
    engine: Engine, agent: str, preferences: Sequence[Preference], reference: str | None = None
) -> list[tuple[Sample, Sample]]:
    """(chosen, rejected) for a DPO update, with log π_ref filled in.

    reference: the agent whose current weights are π_ref; None is the base without adapters.
    """
    texts = [(p.context, ids) for p in preferences for ids in (p.chosen, p.rejected)]
    scores = engine.score(reference, texts)
    samples = [
        Sample(agent, context, ids, logprobs=(), group="", reward=0.0, reference=score)
        for (context, ids), score in zip(texts, scores, strict=True)
    ]
    return list(zip(samples[::2], samples[1::2], strict=True))


def _actions(values: Tensor, batch: Pack, units: Sequence[tuple[Sample, ...]]) -> Actions:
    samples = [sample for i in batch.units for sample in units[i]]
    lengths = torch.tensor([len(sample.actions) for sample in samples])
    sequence = torch.repeat_interleave(torch.arange(len(samples)), lengths).to(values.device)
    old, reference, advantages = (_column(samples, name, values) for name in ("logprobs", "reference", "advantages"))
    return Actions(values, sequence, len(samples), old, reference, advantages)


def _column(samples: Sequence[Sample], name: str, like: Tensor) -> Tensor | None:
    """One float32 per action token, or None when no sample has the field. Forced tokens are left out."""
    columns = [getattr(sample, name) for sample in samples]
    if not any(columns):
        return None
    for column, sample in zip(columns, samples, strict=True):
        if len(column) != len(sample.ids):
            raise ValueError(f"a sample has {len(sample.ids)} ids and {len(column)} {name}")
    chosen = [column[i] for column, sample in zip(columns, samples, strict=True) for i in sample.actions]
    return torch.tensor(chosen, dtype=torch.float32, device=like.device)


@torch.no_grad()
def monitored(actions: Actions) -> dict[str, Tensor]:
    """Sums over tokens of the figures that are watched in an update on the policy's own samples.

    Of another's tokens, as those of preference pairs, there are none: only an expectation under the policy is a KL, and
    exp(log π_ref − log π_θ) of a token that the policy has unlearnt can have any size.
    """
    if actions.old is None:
        return {}
    sums = {"entropy": -actions.old.sum(), "ratio": ((actions.logprobs - actions.old).exp() - 1).abs().sum()}
    if actions.reference is not None:
        gap = actions.reference - actions.logprobs
        sums["kl"] = (gap.exp() - 1 - gap).sum()
    return sums
