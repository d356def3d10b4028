"""A tiny chat model as a GGUF file, written as llama.cpp's converter writes a Llama."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from architectures import CHATML, tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
HEADS, KEY_HEADS, POSITIONS = 4, 2, 16384
# Hugging Face's names of a layer's weights by llama.cpp's.
LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def model(rope: dict[str, Any] | None, seed: int) -> tuple[Any, Any]:
    """A random Llama (d = 64, 2 layers) and its tokenizer, which takes digits one by one as SmolLM2's does."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    made = tokenizer(CHATML, SPECIAL, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>")
    made.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=POSITIONS,
        initializer_range=0.2,
        tie_word_embeddings=True,
        rope_parameters={"rope_theta": 500000.0, "rope_type": "default", **(rope or {})},
    )
    return LlamaForCausalLM(config).eval(), made


def stored(weights: dict[str, Any]) -> dict[str, tuple[str, np.ndarray, Any]]:
    """By llama.cpp's name: Hugging Face's, the values, and how they are quantised (float32 for vectors)."""
    names = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    names |= {f"blk.{i}.{a}": f"model.layers.{i}.{b}" for i in range(2) for a, b in LAYER.items()}
    kinds = gguf.GGMLQuantizationType
    found = {}
    for ours, theirs in names.items():
        values = weights[f"{theirs}.weight"].detach().numpy()
        kind = kinds.F32 if values.ndim == 1 else kinds.Q8_0 if ours == "token_embd" else kinds.Q4_1
        found[f"{ours}.weight"] = f"{theirs}.weight", values, kind
    return found


def permuted(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in llama.cpp's order: it turns neighbours, not halves of a head."""
    return values.reshape(heads, 2, -1, values.shape[1]).swapaxes(1, 2).reshape(values.shape)


def write(
    file: Path, *, seed: int = 0, rope: dict[str, Any] | None = None, parts: int = 0, **changed: Any
) -> tuple[Any, Any]:
    """Writes the model of `model` as `file`, and returns it. parts: the most tensors of a part; 0 is one file.

    changed: keys of the file's metadata by other values (in place of "." stands "__"); None leaves a key out.
    """
    made, words = model(rope, seed)
    writer = gguf.GGUFWriter(file, changed.pop("architecture", "llama"), split_max_tensors=parts)
    vocabulary = sorted(words.get_vocab().items(), key=lambda item: item[1])
    bpe = json.loads(words.backend_tokenizer.to_str())["model"]
    keys = {
        "general.name": "tiny",
        "general.license": "apache-2.0",
        "llama.block_count": 2,
        "llama.context_length": POSITIONS,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KEY_HEADS,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 64 // HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-6,
        "llama.vocab_size": len(words),
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": [token for token, _ in vocabulary],
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token, _ in vocabulary],
        "tokenizer.ggml.merges": [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": words.chat_template,
    }
    for key, value in (keys | {key.replace("__", "."): value for key, value in changed.items()}).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif value is not None:
            (writer.add_string if isinstance(value, str) else writer.add_array)(key, value)
    if rope:
        import torch

        plain = 500000.0 ** (-torch.arange(0, 64 // HEADS, 2).float() / (64 // HEADS))
        writer.add_tensor("rope_freqs.weight", (plain / made.model.rotary_emb.inv_freq).numpy())
    for name, (_, values, kind) in stored(dict(made.named_parameters())).items():
        heads = HEADS if "attn_q" in name else KEY_HEADS if "attn_k" in name else 0
        writer.add_tensor(name, gguf.quantize(permuted(values, heads) if heads else values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made, words
