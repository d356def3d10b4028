"""GGUF files (llama.cpp's format), written: a base, and LoRA adapters on it.

Bases of the Llama and Qwen shapes alone: for these, llama.cpp's names and its order of the rows of queries and keys are
known here. For others llama.cpp's own convert_hf_to_gguf.py writes the base, and convert_lora_to_gguf.py the adapters
of `choreo export`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from choreo.errors import BadInput
from choreo.models.gguf import INSTALL

PERMUTED = {"llama"}  # it turns neighbours, not halves of a head, so rows of queries and keys are laid otherwise
KNOWN = {*PERMUTED, "qwen2", "qwen3"}
# llama.cpp's names (src/llama-vocab.cpp) for ways to split a text before byte-level BPE: the steps of the tokenizers
# library, and the patterns of Llama 3's and Qwen2's tokenizer.json, which differ in how many digits go together.
BYTES, BYTES_ALONE = ("ByteLevel", True), ("ByteLevel", False)
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITTING: dict[tuple[tuple[str, Any], ...], str] = {
    (BYTES,): "gpt-2",
    (("Digits", True), BYTES): "smollm",
    (("Split", WORDS % r"\p{N}"), BYTES_ALONE): "qwen2",
    (("Split", WORDS % r"\p{N}{1,3}"), BYTES_ALONE): "llama-bpe",
}
CONVERTERS = "convert it with llama.cpp's convert_hf_to_gguf.py, and the adapters with its convert_lora_to_gguf.py"


def check_writable(config: Any) -> None:
    """Raises BadInput for a base whose layout is not known here, and where the package that writes GGUF is missing.

    config: transformers' own.
    """
    if find_spec("gguf") is None:
        raise BadInput(f"--gguf needs gguf: {INSTALL}")
    if config.model_type not in KNOWN:
        known = ", ".join(sorted(KNOWN))
        raise BadInput(f"--gguf writes {known}, and the base is {config.model_type}: {CONVERTERS}")
    rope = config.rope_parameters["rope_type"]
    if rope not in ("default", "llama3"):
        raise BadInput(f"--gguf does not write the base's scaling of positions ({rope}): {CONVERTERS}")
    if rope == "llama3" and config.model_type != "llama":  # llama.cpp reads its divisors for this type alone
        raise BadInput(f"--gguf does not write Llama 3's scaling of positions for {config.model_type}: {CONVERTERS}")
    if getattr(config, "use_sliding_window", False):
        raise BadInput(f"--gguf does not write sliding windows: {CONVERTERS}")


def write_base_gguf(model: Any, tokenizer: Any, file: Path, end_id: int) -> None:
    """Writes a model of transformers as `file`, its matrices in its own dtype. Raises BadInput as `check_writable`, and
    for a tokenizer that is no byte-level BPE.

    tokenizer: of transformers, with the chat template. end_id: the token at which a turn ends.
    """
    check_writable(model.config)
    import gguf

    config, words = model.config, json.loads(tokenizer.backend_tokenizer.to_str())
    if words["model"]["type"] != "BPE" or "ByteLevel" not in json.dumps(words["decoder"]):
        raise BadInput(f"--gguf writes byte-level BPE alone, and the base has another tokenizer: {CONVERTERS}")
    way = splitting(words["pre_tokenizer"])
    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_name(file.stem)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head(config))
    writer.add_value_length(_head(config))
    writer.add_rope_dimension_count(_head(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(way)
    _add_vocabulary(writer, tokenizer, words, config.vocab_size, end_id)
    if config.rope_parameters["rope_type"] == "llama3":
        plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, _head(config), 2).float() / _head(config))
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq.cpu()).numpy())
    tied = config.tie_word_embeddings
    for name, value in model.state_dict().items():
        if not (tied and name == "lm_head.weight"):
            _add(writer, _named(config, name), _rows(config, name, value), value.dtype)
    _write(writer)


def splitting(step: Mapping[str, Any] | None) -> str:
    """llama.cpp's name for the way in which a pre-tokenizer splits texts. Raises BadInput where it is not known here.

    step: of the tokenizers library, as in a tokenizer.json.
    """
    steps = step["pretokenizers"] if step and step["type"] == "Sequence" else [step or {"type": "none"}]
    name = SPLITTING.get(tuple((one["type"], _decisive(one)) for one in steps))
    if name is None:
        raise BadInput(f"--gguf knows no name of llama.cpp's for how the base's tokenizer splits texts: {CONVERTERS}")
    return name


def _decisive(step: Mapping[str, Any]) -> Any:
    """What a step of a pre-tokenizer depends on; None where it is a step that is not known here."""
    match step:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(own)}:
            return own
        case {"type": "Digits", "individual_digits": bool(single)}:
            return single
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated", "invert": False}:
            return pattern
    return None


def write_adapter_gguf(config: Any, factors: Mapping[str, tuple[Tensor, Tensor]], alpha: float, file: Path) -> None:
    """Writes a LoRA adapter as `file`, in float32. Raises BadInput as `check_writable`.

    config: of its base. factors: A [rank, in] and B [out, rank] by the name of the linear layer.
    """
    check_writable(config)
    import gguf

    writer = gguf.GGUFWriter(file, config.model_type)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, (down, up) in factors.items():
        theirs = _named(config, f"{name}.weight")
        _add(writer, f"{theirs}.lora_a", down, torch.float32)
        _add(writer, f"{theirs}.lora_b", _rows(config, f"{name}.weight", up), torch.float32)
    _write(writer)


def _head(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _named(config: Any, name: str) -> str:
    """llama.cpp's name of a weight."""
    import gguf

    kind = next(number for number, own in gguf.MODEL_ARCH_NAMES.items() if own == config.model_type)
    found = gguf.get_tensor_name_map(kind, config.num_hidden_layers).get_name(name, (".weight", ".bias"))
    if found is None:
        raise BadInput(f"--gguf knows no name of llama.cpp's for {name}: {CONVERTERS}")
    return str(found)


def _rows(config: Any, name: str, value: Tensor) -> Tensor:
    """The weight with its rows as llama.cpp lays them. value: [rows, ...]."""
    layer = name.rpartition(".")[0]
    if config.model_type not in PERMUTED or not layer.endswith(("q_proj", "k_proj")):
        return value
    heads = config.num_attention_heads if layer.endswith("q_proj") else config.num_key_value_heads
    return value.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(value.shape)


def _add(writer: Any, name: str, value: Tensor, dtype: torch.dtype) -> None:
    import gguf

    values = value.detach().cpu().float().numpy()
    kinds = gguf.GGMLQuantizationType
    kind = {torch.bfloat16: kinds.BF16, torch.float16: kinds.F16}.get(dtype, kinds.F32)
    if values.ndim == 1:  # llama.cpp reads norms and biases as float32 alone
        kind = kinds.F32
    writer.add_tensor(name, np.ascontiguousarray(gguf.quantize(values, kind)), raw_dtype=kind)


def _add_vocabulary(writer: Any, tokenizer: Any, words: Mapping[str, Any], size: int, end_id: int) -> None:
    """size: the ids that the model has; those without a token are filled up, as llama.cpp's converter does."""
    import gguf

    kinds, named = gguf.TokenType, {i: token for token, i in tokenizer.get_vocab().items()}
    marks = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special} | {end_id}
    types = [kinds.UNUSED if i not in named else kinds.CONTROL if i in marks else kinds.NORMAL for i in range(size)]
    writer.add_token_list([named.get(i, f"[PAD{i}]") for i in range(size)])
    writer.add_token_types(types)
    writer.add_token_merges(
        [pair if isinstance(pair, str) else " ".join(pair) for pair in words["model"]["merges"]] or ["a a"]
    )
    writer.add_eos_token_id(end_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _write(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
