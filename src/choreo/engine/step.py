"""One more token for every row.

A small model's decode step is mostly the Python around its kernels. Models built like Llama get a step of
their own here, a dozen kernels a layer and nothing between; all others take the one that transformers has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.cache import Places, Slots, as_cache
from choreo.engine.policies import Weights

Layers = Sequence[Slots | Places]
Step = Callable[[Tensor, Tensor, Layers, Tensor | None], Tensor]
"""(token int64 [rows], position int64 [rows], cache by layer, additive mask [rows, 1, 1, slots] or None) -> the last
hidden state, float [rows, d]. The keys and values of the token are added to the cache."""

LIKE_LLAMA = ("llama", "qwen2")


def step_of(team: Team, weights: Weights) -> Step:
    """The step of `team`'s base with `weights` laid over it."""
    config = team.decoder.model.config.get_text_config()
    like_llama = config.model_type in LIKE_LLAMA and config.hidden_act == "silu" and team.full_attention
    if like_llama and team.dtype == torch.float32:  # lower precision must round where the learner's forward does
        return LlamaStep(team.decoder.model, weights)

    def step(token: Tensor, position: Tensor, cache: Layers, mask: Tensor | None) -> Tensor:
        inputs = {
            "input_ids": token[:, None],
            "position_ids": position[:, None],
            "attention_mask": mask,
            "past_key_values": as_cache(cache),
            "use_cache": True,
        }
        return team.run(weights, inputs)[0]

    return step


class LlamaStep:
    """The step of a Llama: RMSNorm, rotary positions, (grouped) attention, SwiGLU. Equal to transformers' to rounding.

    Matrices that read the same input are joined, once for a whole decode.
    """

    def __init__(self, model: Any, weights: Weights):
        def joined(layer: str, names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
            matrices = [whole(f"{layer}.{name}.weight") for name in names]
            biased = [model.get_submodule(f"{layer}.{name}").bias is not None for name in names]
            bias = torch.cat([whole(f"{layer}.{name}.bias") for name in names]) if all(biased) else None
            return torch.cat(matrices) if len(names) > 1 else matrices[0], bias

        def whole(name: str) -> Tensor:
            return weights[name] if name in weights else model.get_parameter(name)

        config = model.config.get_text_config()
        self.eps, self.rotary = config.rms_norm_eps, model.model.rotary_emb
        self.embedding, self.norm = whole("model.embed_tokens.weight"), whole("model.norm.weight")
        self.layers = []
        for i in range(config.num_hidden_layers):
            layer = f"model.layers.{i}"
            self.layers.append((
                whole(f"{layer}.input_layernorm.weight"),
                joined(layer, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                joined(layer, ("self_attn.o_proj",)),
                whole(f"{layer}.post_attention_layernorm.weight"),
                joined(layer, ("mlp.gate_proj", "mlp.up_proj")),
                joined(layer, ("mlp.down_proj",)),
            ))  # fmt: skip

    def __call__(self, token: Tensor, position: Tensor, cache: Layers, mask: Tensor | None) -> Tensor:
        x = F.embedding(token, self.embedding)
        cos, sin = self.rotary(x[:, None], position[:, None])  # [rows, 1, width of a head], the 1 in place of heads
        half = cos.shape[-1] // 2
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        for (norm, qkv, out, norm2, gate_up, down), slots in zip(self.layers, cache, strict=True):
            assert slots.keys is not None and slots.values is not None
            kv_heads, width = slots.keys.shape[1], slots.keys.shape[3]
            heads = qkv[0].shape[0] // width - 2 * kv_heads
            turned, value = (
                F.linear(self._norm(x, norm), *qkv)
                .unflatten(-1, (heads + 2 * kv_heads, width))
                .split((heads + kv_heads, kv_heads), 1)
            )
            turned = turned * cos + turned.roll(half, -1) * sin
            query, key = turned.split((heads, kv_heads), 1)
            keys, values = slots.update(key[:, :, None], value[:, :, None])
            seen = F.scaled_dot_product_attention(
                query[:, :, None], keys, values, attn_mask=mask, enable_gqa=heads != kv_heads
            )
            x = x + F.linear(seen.flatten(1), *out)
            gate, up = F.linear(self._norm(x, norm2), *gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, *down)
        return self._norm(x, self.norm)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)
