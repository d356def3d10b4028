"""One decode step: feeds every row one token, or several that are known or guessed.

With a small model most of the time of a decode step is Python around the kernels. Models built like Llama have a step
of their own here, with a dozen kernels a layer and little between. All other models take the step of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from choreo.engine.agent import Team
from choreo.engine.cache import PoolView, Slots, as_cache
from choreo.engine.policies import Weights


class Feed(NamedTuple):
    """Rows that are fed the same number of tokens.

    token, position: int64 [rows, new]. cache: one entry for each layer. mask: float [rows, 1, new, slots], additive, or
    None: one new token then sees the whole cache, and several new tokens, before which the cache is empty, see the ones
    before them.
    """

    token: Tensor
    position: Tensor
    cache: Sequence[Slots | PoolView]
    mask: Tensor | None


Step = Callable[..., list[Tensor]]
"""(*parts) -> the last hidden states of each part, float [rows, new, d]. The tokens' keys and values are added to the
caches."""

LIKE_LLAMA = ("llama", "qwen2")


def step_of(team: Team, weights: Weights) -> Step:
    """The step of `team`'s base with `weights` laid over it."""
    config = team.decoder.model.config.get_text_config()
    like_llama = config.model_type in LIKE_LLAMA and config.hidden_act == "silu" and team.full_attention
    if like_llama and team.dtype == torch.float32:  # lower precision must round where the learner's forward does
        return LlamaStep(team.decoder.model, weights)

    def step(*parts: Feed) -> list[Tensor]:
        hidden = []
        for part in parts:
            inputs = {
                "input_ids": part.token,
                "position_ids": part.position,
                "attention_mask": part.mask,
                "past_key_values": as_cache(part.cache),
                "use_cache": True,
            }
            hidden.append(team.run(weights, inputs)[0].unflatten(0, part.token.shape))
        return hidden

    return step


class LlamaStep:
    """The step of a Llama: RMSNorm, rotary positions, (grouped) attention, SwiGLU. Equal to transformers' to rounding.

    Matrices that read the same input are joined, once for a whole decode. The tokens of all parts are joined too,
    except in attention.
    """

    def __init__(self, model: Any, weights: Weights):
        def joined(layer: str, names: tuple[str, ...]) -> tuple[Tensor, Tensor | None]:
            matrices = [whole(f"{layer}.{name}.weight") for name in names]
            biased = [model.get_submodule(f"{layer}.{name}").bias is not None for name in names]
            bias = torch.cat([whole(f"{layer}.{name}.bias") for name in names]) if all(biased) else None
            return torch.cat(matrices) if len(names) > 1 else matrices[0], bias

        def whole(name: str) -> Tensor:
            weight, layer = model.get_parameter(name), name.removesuffix(".weight")
            if f"{layer}.lora_A" in weights:  # for many steps one product is less than two more in each
                return torch.addmm(weight, weights[f"{layer}.lora_B"], weights[f"{layer}.lora_A"])
            return weights.get(name, weight)

        config = model.config.get_text_config()
        self.eps, self.rotary = config.rms_norm_eps, model.model.rotary_emb
        self.embedding, self.norm = whole("model.embed_tokens.weight"), whole("model.norm.weight")
        self.layers = []
        for i in range(config.num_hidden_layers):
            layer = f"model.layers.{i}"
            self.layers.append(
                (
                    whole(f"{layer}.input_layernorm.weight"),
                    joined(layer, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
                    joined(layer, ("self_attn.o_proj",)),
                    whole(f"{layer}.post_attention_layernorm.weight"),
                    joined(layer, ("mlp.gate_proj", "mlp.up_proj")),
                    joined(layer, ("mlp.down_proj",)),
                )
            )

    def __call__(self, *parts: Feed) -> list[Tensor]:
        sizes = [part.token.numel() for part in parts]
        x = F.embedding(_joined([part.token.flatten() for part in parts]), self.embedding)  # [n, d]
        cos, sin = self.rotary(x[:, None], _joined([part.position.flatten() for part in parts])[:, None])
        half = cos.shape[-1] // 2  # cos, sin: [n, 1, width of a head], the 1 in place of heads
        sin = torch.cat((-sin[..., :half], sin[..., half:]), -1)
        for i, (norm, qkv, out, norm2, gate_up, down) in enumerate(self.layers):
            slots = parts[0].cache[i]
            assert slots.keys is not None
            kv_heads, width = slots.keys.shape[1], slots.keys.shape[3]
            heads = qkv[0].shape[0] // width - 2 * kv_heads
            turned, value = (
                F.linear(self._norm(x, norm), *qkv)
                .unflatten(-1, (heads + 2 * kv_heads, width))
                .split((heads + kv_heads, kv_heads), 1)
            )
            turned = turned * cos + turned.roll(half, -1) * sin
            seen = []
            for part, mine, its_value in zip(parts, turned.split(sizes), value.split(sizes), strict=True):
                query, key = mine.unflatten(0, part.token.shape).transpose(1, 2).split((heads, kv_heads), 1)
                keys, values = part.cache[i].update(key, its_value.unflatten(0, part.token.shape).transpose(1, 2))
                causal = part.mask is None and query.shape[2] > 1
                found = F.scaled_dot_product_attention(
                    query, keys, values, attn_mask=part.mask, is_causal=causal, enable_gqa=heads != kv_heads
                )
                seen.append(found.transpose(1, 2).reshape(-1, heads * width))
            x = x + F.linear(_joined(seen), *out)
            gate, up = F.linear(self._norm(x, norm2), *gate_up).chunk(2, -1)
            x = x + F.linear(F.silu(gate) * up, *down)
        x = self._norm(x, self.norm)
        return [own.unflatten(0, part.token.shape) for part, own in zip(parts, x.split(sizes), strict=True)]

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.eps)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors))
