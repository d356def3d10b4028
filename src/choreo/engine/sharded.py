"""Every weight of an agent, sharded over the ranks by FSDP2 (`torch.distributed.fsdp.fully_shard`).

An agent of its own kind: what `functional_call` lays over the base are plain tensors, and FSDP2 has to see the module
that its weights belong to, to gather a layer just before it runs. So this agent is a module of its own. Each rank keeps
1/R of every weight, of its gradient and of the optimiser's moments. While it learns, the weights of one layer after the
other are gathered. To sample and to score they are gathered whole (`whole`), in the base's precision: ranks write turns
of different lengths, and cannot stop at every layer of every token to wait for one another.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor, nn

from choreo import parallel
from choreo.engine.decoder import Decoder, layer_list
from choreo.engine.policies import Weights
from choreo.engine.recompute import recompute_layers
from choreo.errors import Unsupported

if TYPE_CHECKING:  # a second and a half to import, which only who shards has to wait
    from torch.distributed.tensor import DTensor


class HiddenStates(Decoder):
    """A decoder whose forward returns the hidden states alone. FSDP2 puts a hook on every tensor that a module returns.
    A hook on a weight stays, so each micro-batch of a run would add one to the output layer."""

    def forward(self, inputs: Mapping[str, Any], where: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Hidden states, as `hidden` gives them. `head` has the output layer from then until the backward pass."""
        return self.hidden(inputs, where)


class Sharded:
    """Every weight in float32, each rank with its rows of it. Starts equal to the base.

    parameters: DTensors, by the base's names. module: what runs forward and backward, on all ranks equally often; its
    gradients are summed over the ranks, not averaged.
    """

    def __init__(self, base: Any, *, recompute: bool = False):
        """base: a model that this rank has whole. Raises Unsupported as `check_shardable` does."""
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

        check_shardable(base)
        first = next(base.parameters())
        self.dtype, device = first.dtype, first.device
        blank = {
            id(v): nn.Parameter(torch.empty_like(v, dtype=torch.float32, device="meta")) for v in base.parameters()
        }
        model = copy.deepcopy(base, blank)  # so no rank ever has the agent whole in float32
        layers = layer_list(model, "shard = true")
        if recompute:
            recompute_layers(model, None)
        self.module = HiddenStates(model).eval()
        mixed = MixedPrecisionPolicy(
            param_dtype=None if self.dtype == torch.float32 else self.dtype,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        mesh = parallel.mesh(device.type)
        for unit in (*layers, self.module):
            fully_shard(unit, mesh=mesh, mp_policy=mixed)
        for unit in self.module.modules():
            if isinstance(unit, FSDPModule):
                unit.set_gradient_divide_factor(1.0)  # a sum; the learner divides, once
                unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other sum with a factor
        self.module.to_empty(device=device)
        for name, buffer in base.named_buffers():
            model.get_buffer(name).copy_(buffer)
        self.parameters: dict[str, nn.Parameter] = {
            name.removeprefix("model."): value for name, value in self.module.named_parameters()
        }
        for name, value in self.parameters.items():
            fill(value, base.get_parameter(name))
        self._whole: Weights | None = None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within it `weights` are there. All ranks enter it together."""
        if not parallel.active():
            raise RuntimeError("weights that are sharded over ranks are gathered by all of them, not by one alone")
        self._whole = {name: full(value.detach().to(self.dtype)) for name, value in self.parameters.items()}
        try:
            yield
        finally:
            self._whole = None

    def weights(self) -> Weights:
        """The weights to lay over the base, in its precision, without gradient. RuntimeError outside of `whole`."""
        if self._whole is None:
            raise RuntimeError("weights that are sharded over ranks are not gathered here")
        return self._whole


def check_shardable(base: Any) -> None:
    """Raises Unsupported where a model keeps its layers in no list, has weights of several precisions or a weight that
    is one number without a row; and of several processes where it is on a device that FSDP2 does not know. One goes on
    there, with an agent that is whole."""
    device = next(base.parameters()).device
    if len({value.dtype for value in base.parameters()}) > 1:
        raise Unsupported(f"{type(base).__name__} has weights of several precisions: shard = true is not supported")
    if any(value.ndim == 0 for value in base.parameters()):
        raise Unsupported(f"{type(base).__name__} has a weight without rows: shard = true is not supported")
    if device.type == "mps" and parallel.started() > 1:
        raise Unsupported('shard = true: FSDP2 is not for device = "mps"')
    layer_list(base, "shard = true")


def is_sharded(value: Any) -> TypeGuard[DTensor]:
    """Whether it is a tensor of which each rank has its rows."""
    return isinstance(value, Tensor) and hasattr(value, "full_tensor")


def full(value: Tensor) -> Tensor:
    """The whole of a tensor that is sharded over ranks, which all of them ask for together; any other as it is."""
    return value.full_tensor() if is_sharded(value) else value


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copies a value of the same shape into `target`, or of it this rank's rows where the target is sharded; then ranks
    say nothing to each other. The value may be sharded too."""
    if not is_sharded(target):
        target.copy_(full(value))
        return
    if not is_sharded(value):
        from torch.distributed.tensor import distribute_tensor

        value = distribute_tensor(value.detach(), target.device_mesh, target.placements, src_data_rank=None)
    target.to_local().copy_(value.to_local())


def moments(state: Mapping[int, Mapping[str, Any]], parameters: list[nn.Parameter]) -> dict[int, dict[str, Any]]:
    """An optimiser's state by parameter, with what has a parameter's shape sharded as the parameter is."""
    fitted: dict[int, dict[str, Any]] = {}
    for place, values in state.items():
        parameter, own = parameters[place], dict(values)
        for name, value in values.items():
            if is_sharded(parameter) and isinstance(value, Tensor) and value.shape == parameter.shape:
                own[name] = torch.zeros_like(parameter, requires_grad=False)
                fill(own[name], value)
        fitted[place] = own
    return fitted
