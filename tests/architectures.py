"""Tiny random models of real architectures, with tokenizers trained here and chat templates of the usual kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import SENTENCES

# Qwen's kind: a reasoning of an earlier turn is left out.
CHATML = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- set said = m.content %}
{%- if m.role == 'assistant' and '</think>' in said %}
{%- set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}
{{- said + '<|im_end|>\n' }}{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""
# Llama 3's kind: BOS in the template, a header with a date, contents trimmed.
HEADERS = """{{- bos_token }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}
{%- else %}{% set system = '' %}{% endif %}
{{- '<|start|>system<|stop|>\n\nToday: ' + (date_string if date_string is defined else strftime_now('%d %b %Y')) }}
{{- '\n\n' + system + '<|eot|>' }}
{%- for m in messages %}{{ '<|start|>' + m.role + '<|stop|>\n\n' + m.content | trim + '<|eot|>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"""
# Gemma's kind: no system message, turns must alternate, the assistant is the model.
TURNS = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
# Of a base model that was tuned on plain text: no token of its own but EOS.
PLAIN = """{%- for m in messages %}
{%- if m.role == 'assistant' %}{{ 'Assistant:\n' + m.content + eos_token + '\n' }}
{%- else %}{{ ('User:\n' if m.role == 'user' else '') + m.content + '\n' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:\n' }}{% endif %}"""

# Why a template can fail, and Jinja that does so.
REASONS = {
    "raises": "{{ raise_exception('not for you') }}",
    "raises nothing": "{{ raise_exception('') }}",
    "raises lines": "{{ raise_exception('one\n\ntwo') }}",
    "raises data": "{{ raise_exception(messages) }}",
    "raises no text": "{{ raise_exception('\\ud83d') }}",
    "undefined": "{{ nobody.home }}",
    "key": "{{ {}['content'] + '' }}",
    "type": "{{ 1 + 'a' }}",
    "none": "{{ none + messages[0].content }}",
    "attribute": "{{ messages[0].content.nothing() }}",
    "index": "{{ 'a'.index('b') }}",
    "zero": "{{ 1 // 0 }}",
    "filter": "{{ 5 | sort }}",
    "recursion": "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    "sandbox": "{{ messages.append(messages[0]) }}",
    "private": "{{ ''.__class__.__mro__ }}",
    "range": "{% for i in range(10 ** 9) %}{% endfor %}",
    "date": "{{ strftime_now(5) }}",
    "tools": "{% for tool in tools %}{{ tool.name }}{% endfor %}",
    "include": "{% include 'another' %}",
    "half a pair": "{{ '\\ud83d' }}",
}


def tokenizer(template: str | None, special: list[str], *, metaspace: bool = False, **names: str) -> Any:
    """Byte-level BPE of 400 ids, or one of SentencePiece's kind, which puts a space before a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if metaspace:
        made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
        special, alphabet = ["<unk>", *special], []
        size, given = 700, [*special, *(f"<0x{i:02X}>" for i in range(256))]
    else:
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        size, given = 400, special
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=given, initial_alphabet=alphabet, show_progress=False, min_frequency=1
    )
    made.train_from_iterator([*SENTENCES, "user assistant model system"], trainer)
    kept = json.loads(made.to_str())  # bytes had to be given to the trainer as special, and are not
    kept["added_tokens"] = [token for token in kept["added_tokens"] if token["content"] in special]
    made = Tokenizer.from_str(json.dumps(kept))
    fast = PreTrainedTokenizerFast(tokenizer_object=made, **names)
    fast.chat_template = template
    return fast


def make(name: str, folder: Path) -> Path:
    """One of KINDS, saved to `folder`: d = 32, 2 layers, 1024 positions."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    kind, template, special, more, shape = KINDS[name]
    made = tokenizer(template, special, **more)
    made.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=len(made),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=1024,
        initializer_range=0.2,
        pad_token_id=None,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        **shape,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


# name: model type, template, special tokens, names of special tokens, more of the shape
KINDS: dict[str, tuple[str, str | None, list[str], dict[str, Any], dict[str, Any]]] = {
    "llama": (
        "llama",
        HEADERS,
        ["<|begin|>", "<|eot|>", "<|start|>", "<|stop|>"],
        {"bos_token": "<|begin|>", "eos_token": "<|eot|>"},
        {"num_key_value_heads": 2},
    ),
    "qwen": (
        "qwen3",
        CHATML,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        {"num_key_value_heads": 2, "head_dim": 8},
    ),
    "moe": (
        "qwen3_moe",
        CHATML,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        {
            "num_key_value_heads": 2,
            "head_dim": 8,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
    ),
    "gemma": (
        "gemma",
        TURNS,
        ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
        {"metaspace": True, "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        {"num_key_value_heads": 1, "head_dim": 8},
    ),
    "neox": (
        "gpt_neox",
        PLAIN,
        ["<|endoftext|>"],
        {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        {},
    ),
}

# Mixtures of experts, by what can differ: stacks [experts, out, in] or [experts, in, out] with biases; a shared expert
# and a layer without any, whose matrices have the names that experts once had.
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8, "sliding_window": 8},
    "glm4_moe": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
    },
}


def experts(kind: str, folder: Path) -> Path:
    """A model of EXPERTS, without a tokenizer: d = 32, 2 layers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=400,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.2,
        pad_token_id=None,
        eos_token_id=1,
        **EXPERTS[kind],
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder
