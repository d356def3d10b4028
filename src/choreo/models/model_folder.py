"""Opens a model's folder in Hugging Face format, and says in one line what is wrong with it.

What needs no weights is checked first, so that `choreo plan` can check it too: the configuration, a model of it without
weights (on PyTorch's meta device), the names, shapes and dtypes in the headers of the weights' files, the tokenizer,
and whether the model has an embedding for each of the tokenizer's ids.
"""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from choreo.errors import BadInput, opening
from choreo.files.json_file import instead, read_object
from choreo.models.hub import has_tokenizer

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED, PICKLED_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"  # loaded without running its code
NO_WEIGHTS = f"has no weights; expected {WEIGHTS}, or parts of it and {INDEX}"
NO_TOKENIZER = "has no tokenizer; expected tokenizer.json, or the files of another kind of one"
OWN_CODE: dict[str, Any] = {"trust_remote_code": False}  # without it transformers asks on the terminal
FLOATS = ("F64", "F32", "F16", "BF16")
ALIGNMENT = 64  # bytes: PyTorch puts every tensor that it makes on a CPU at a multiple of this
HEADER = 2**27  # the most bytes of a safetensors header (the format allows 100 MB)


class TensorHeader(NamedTuple):
    """A tensor as a header describes it. file: the file that holds it."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def load(folder: str | Path, dtype: Any, device: Any = "cpu", *, quantised: bool = False) -> Any:
    """The causal language model in `folder`, ready to run.

    It is checked that every weight is there, has its shape and is finite, and that the model runs on four tokens. On
    one machine, files with equal weights give models that are equal to the bit.

    dtype: torch's, or "auto". quantised: whether quantised weights are allowed, as for a judge, which is not trained.
    Raises BadInput.
    """
    import torch
    from transformers import AutoModelForCausalLM

    folder = Path(folder)
    config = configuration(folder, quantised=quantised)
    if not has_weights(folder):
        raise BadInput(f"{folder}: {NO_WEIGHTS}")
    if not is_quantised(config):
        check_weights(folder, blank(folder, config))
    loader: Any = AutoModelForCausalLM
    with opening(folder, "its weights cannot be loaded"), quietly():
        model, report = loader.from_pretrained(
            str(folder), dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **OWN_CODE
        )
    # transformers itself fills missing and mismatched weights with random numbers.
    if missing := report["missing_keys"]:
        raise BadInput(f"{folder}: its weights lack {_some(missing)}")
    if wrong := report["mismatched_keys"]:
        name, found, wanted = min(wrong)
        raise BadInput(f"{folder}: {name} has shape {_shape(found)}, and its config.json means {_shape(wanted)}")
    for name, value in model.named_parameters():
        if value.numel() and value.is_floating_point():
            low, high = torch.aminmax(value.detach().flatten())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise BadInput(f"{folder}: {name} holds numbers that are not finite (NaN or infinity)")
    model = model.to(device).eval()
    _align(model)
    # Some wrong configurations, whose numbers do not fit together, show only when the model runs.
    with opening(folder, "its model cannot be run"), quietly(), torch.inference_mode():
        model(input_ids=torch.zeros((1, 4), dtype=torch.long, device=device), use_cache=False)
    return model


def configuration(folder: str | Path, *, quantised: bool = False) -> Any:
    """The configuration of the model in `folder`. Raises BadInput, also for quantised weights unless `quantised`."""
    from transformers import AutoConfig

    folder = Path(folder)
    read_object(file := folder / "config.json")
    if (other := folder / "generation_config.json").exists():
        read_object(other)
    with opening(file), quietly():
        config = AutoConfig.from_pretrained(str(folder), **OWN_CODE)
        text = config.get_text_config()
        decodes = not config.is_encoder_decoder
    if not decodes:
        raise BadInput(f"{file}: {config.model_type} is an encoder-decoder; expected a causal language model")
    if is_quantised(config) and not quantised:
        how = config.quantization_config
        method = how.get("quant_method") if isinstance(how, dict) else getattr(how, "quant_method", None)
        raise BadInput(f"{file}: its weights are quantised ({method}); expected them as float32, float16 or bfloat16")
    for name in ("vocab_size", "num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings"):
        number = getattr(text, name, None)
        if name == "vocab_size" if number is None else not isinstance(number, int) or number < 1:
            raise BadInput(f"{file}: {name}: expected a whole number of at least 1, got {number!r}")
    return config


def is_quantised(config: Any) -> bool:
    """Whether the weights of a model with this configuration are quantised."""
    return bool(getattr(config, "quantization_config", None))


def blank(folder: str | Path, config: Any) -> Any:
    """The model of `config` without weights (on the meta device), for its modules and shapes. Raises BadInput."""
    import torch
    from transformers import AutoModelForCausalLM

    with opening(Path(folder) / "config.json", "means no causal language model"), quietly(), torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, **OWN_CODE)


def check_whole(folder: Path) -> bool:
    """Whether `folder` has weights and a tokenizer. Raises BadInput where it has only one of the two."""
    weights, tokens = has_weights(folder), has_tokenizer(folder)
    if weights != tokens:
        raise BadInput(f"{folder}: {NO_TOKENIZER if weights else NO_WEIGHTS}")
    return weights


def has_weights(folder: Path) -> bool:
    """Whether the folder has files of weights."""
    return any(is_there(folder / name) for name in (WEIGHTS, INDEX, PICKLED, PICKLED_INDEX))


def check_weights(folder: Path, model: Any) -> None:
    """Compares the headers of the files of weights with `model`, which may be `blank`. Raises BadInput.

    transformers may convert weights with names that `model` does not know while it loads them, such as experts that are
    stored one by one. Where it may, missing weights are not reported here but by `load`.
    """
    found = headers(folder)
    if not found:
        return
    tied = _tied(model)
    wanted = {name: value for name, value in model.named_parameters() if name not in tied}
    prefix = f"{model.base_model_prefix}."
    if not found.keys() & wanted.keys():  # saved as the model without its output layer
        found = {prefix + name: tensor for name, tensor in found.items()}
    for name in sorted(found.keys() & wanted.keys()):
        tensor = found[name]
        if wanted[name].is_floating_point() and tensor.dtype not in FLOATS:
            raise BadInput(f"{tensor.file}: {name} is {tensor.dtype}; expected one of {', '.join(FLOATS)}")
        if tensor.shape != tuple(wanted[name].shape):
            raise BadInput(
                f"{tensor.file}: {name} has shape {_shape(tensor.shape)}, and config.json means "
                f"{_shape(wanted[name].shape)}"
            )
    missing = wanted.keys() - found.keys()
    unknown = found.keys() - wanted.keys() - tied
    if missing and not (unknown and _converts(model, unknown)):
        raise BadInput(f"{folder}: its weights lack {_some(missing)}")


def headers(folder: Path) -> dict[str, TensorHeader]:
    """The tensors in the folder's files of weights, by name. Only headers are read. Raises BadInput."""
    for whole, index in ((folder / WEIGHTS, folder / INDEX), (folder / PICKLED, folder / PICKLED_INDEX)):
        if files := [whole] if is_there(whole) else _parts(index) if is_there(index) else []:
            read = _header if whole.suffix == ".safetensors" else _pickled
            return {name: tensor for file in files for name, tensor in read(file).items()}
    return {}


def _parts(index: Path) -> list[Path]:
    parts = read_object(index).get("weight_map")
    if not isinstance(parts, dict) or not all(isinstance(part, str) for part in parts.values()):
        raise BadInput(f"{index}: weight_map: expected the names of files by the names of tensors")
    files = [index.parent / part for part in sorted(set(parts.values()))]
    if missing := [file.name for file in files if not is_there(file)]:
        raise BadInput(f"{index}: names {_some(missing)}, and there is no such file here")
    return files


def _header(file: Path) -> dict[str, TensorHeader]:
    with opening(file), open(file, "rb") as stream:
        size, begin = file.stat().st_size, stream.read(64)
        length = int.from_bytes(begin[:8], "little")
        stream.seek(8)
        text = stream.read(length if length <= min(HEADER, size) else 0)
    try:
        rows = {name: row for name, row in json.loads(text).items() if name != "__metadata__"}
        found = {name: TensorHeader(file, str(row["dtype"]), tuple(row["shape"])) for name, row in rows.items()}
        ends = 8 + length + max((int(row["data_offsets"][1]) for row in rows.values()), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise BadInput(f"{file}: no safetensors: {instead(begin, size) or 'its header cannot be read'}") from None
    if ends != size:
        raise BadInput(f"{file}: is not whole: it has {size} bytes, and its header means {ends}")
    return found


def _pickled(file: Path) -> dict[str, TensorHeader]:
    import torch

    with opening(file), open(file, "rb") as stream:
        kind = instead(stream.read(64), file.stat().st_size)
    if kind:
        raise BadInput(f"{file}: no weights: {kind}")
    with opening(file), quietly():
        try:
            state = torch.load(file, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(file))
        except pickle.UnpicklingError:
            raise BadInput(
                f"{file}: holds no tensors, or code beside them, which is not run; best give {WEIGHTS}"
            ) from None
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise BadInput(f"{file}: expected tensors by their names")
    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
    return {
        name: TensorHeader(file, names.get(value.dtype, str(value.dtype)), tuple(value.shape))
        for name, value in state.items()
    }


def tokenizer(folder: str | Path, config: Any = None) -> Any:
    """The tokenizer in `folder`. Raises BadInput, also where the model has no embedding for one of its ids.

    config: the folder's configuration, if it was read already.
    """
    from transformers import AutoTokenizer

    folder = Path(folder)
    if config is None and is_there(folder / "config.json"):
        config = configuration(folder, quantised=True)
    if not has_tokenizer(folder):
        raise BadInput(f"{folder}: {NO_TOKENIZER}")
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (file := folder / name).exists():
            read_object(file)
    with opening(folder, "its tokenizer cannot be loaded"), quietly():
        made = AutoTokenizer.from_pretrained(str(folder), **OWN_CODE)
        vocabulary = made.get_vocab()
        special = {*made.all_special_ids, *(i for i, one in made.added_tokens_decoder.items() if one.special)}
    # Special tokens are in no text, and transformers adds some that the model lacks. Chats check those that they write.
    if config is not None:
        check_ids(folder, made, set(vocabulary.values()) - special, config)
        _check_ends(folder, config)
    return made


def check_ids(folder: str | Path, tokenizer: Any, ids: Iterable[int], config: Any = None) -> None:
    """Raises BadInput where the model in `folder` has no embedding for one of `ids`. Nothing without a model there.

    config: the model's configuration, if it was read already.
    """
    if config is None and not is_there(Path(folder) / "config.json"):
        return
    rows = (config or configuration(folder, quantised=True)).get_text_config().vocab_size
    if (highest := max(ids, default=0)) >= rows:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise BadInput(
            f"{folder}: its tokenizer has {token!r} as id {highest}, and the model embeds ids below {rows}: "
            "one of the two is another model's"
        )


def _check_ends(folder: Path, config: Any) -> None:
    """Raises BadInput where the configuration ends texts with an id that the model has no embedding for."""
    text, file = config.get_text_config(), folder / "generation_config.json"
    generation = read_object(file) if file.exists() else {}
    for where, ends in (
        (folder / "config.json", getattr(text, "eos_token_id", None)),
        (file, generation.get("eos_token_id")),
    ):
        for end in ends if isinstance(ends, list) else [ends]:
            if end is not None and not (isinstance(end, int) and 0 <= end < text.vocab_size):
                raise BadInput(
                    f"{where}: eos_token_id: {end!r} is no id below {text.vocab_size}, which the model embeds"
                )


@contextmanager
def quietly() -> Iterator[None]:
    """Silences the many warnings of transformers and PyTorch about a folder. This module reports what matters."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _align(model: Any) -> None:
    """Copies every weight that does not begin at a multiple of ALIGNMENT bytes to an address that does.

    Weights of a file that is mapped into memory may begin at any address, and the rounding of MKL's product with one
    row depends on the address (measured on a processor with AVX2). So equal weights at two addresses would give
    different logits.
    """
    for value in (*model.parameters(), *model.buffers()):
        if value.data_ptr() % ALIGNMENT:
            value.data = value.data.clone()


def is_there(file: Path) -> bool:
    """Whether anything has that name, also a folder or a broken link, which cannot be read."""
    return file.exists() or file.is_symlink()


def _tied(model: Any) -> set[str]:
    """The names of weights that are shared with other names, and so may be missing in a file."""
    tied = getattr(model, "all_tied_weights_keys", None)
    if tied is None and model.config.get_text_config().tie_word_embeddings:  # before transformers 5
        tied = model._tied_weights_keys
    return set(tied or ())


def _converts(model: Any, unknown: Iterable[str]) -> bool:
    """Whether transformers may rename or join the `unknown` weights of this model while it loads them."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:  # an older version, which converts in other ways
        return True
    legacy = any(name.endswith((".gamma", ".beta", ".weight_g", ".weight_v")) for name in unknown)
    return legacy or bool(get_model_conversion_mapping(model, add_legacy=False))


def _some(names: Any) -> str:
    first, *more = sorted(names)
    return f"{first} and {len(more)} more" if more else str(first)


def _shape(shape: Any) -> str:
    return "×".join(map(str, shape)) or "()"
