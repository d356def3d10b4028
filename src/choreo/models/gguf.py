"""GGUF files (llama.cpp's format), converted once into a folder in Hugging Face format, as float32.

transformers reads the file. What it leaves out without a word is made good here, or said: the splitting of texts
(`pretokenizer`), Llama 3's scaling of positions (`llama3_scaling`), and weights that are missing or have no place.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import lru_cache
from hashlib import sha256
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from choreo.errors import BadInput, opening
from choreo.models import cache
from choreo.models.gguf_parts import join, parts_of
from choreo.models.model_folder import OWN_CODE, quietly

MAGIC = b"GGUF"
PIECE = 2**20  # bytes that are read at once
INSTALL = "pip install 'choreo-rl[smollm2]'"
# llama.cpp's names for ways to split a text before byte-level BPE (src/llama-vocab.cpp). transformers knows others, and
# takes GPT-2's way for every name that it does not know.
SINGLE_DIGITS = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"}
AS_GPT2 = {"gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "mellum", "modern-bert"}
# Llama 3's numbers (its config.json on the hub); its factor, 8 or 32, is the largest that the file has.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def is_gguf(name: str | Path) -> bool:
    """Whether `name` can only be a GGUF file, by its suffix. It need not exist."""
    return Path(name).suffix.lower() == ".gguf"


def converted(file: Path) -> Path:
    """The folder that the GGUF `file` was converted into, now or before. Of a model in parts, `file` is the first.

    Raises BadInput for what is no GGUF file, for what transformers cannot read, and where the packages that read GGUF
    files are missing.
    """
    parts = parts_of(file)
    for part in parts:
        with opening(part), open(part, "rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise BadInput(f"{part}: is no GGUF file: it does not begin with {MAGIC.decode()}")
    digest = contents(parts)
    if found := cache.kept(digest):
        return found
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise BadInput(f"{file}: a GGUF file needs {' and '.join(missing)}: {INSTALL}")

    def write(folder: Path) -> None:
        say(f"{file.name}: converting into {cache.models_folder()}, once …")
        with tempfile.TemporaryDirectory(prefix="choreo-gguf-") as place:
            # Alone in a folder, because transformers also reads what lies beside the file.
            source = Path(place) / "model.gguf"
            if len(parts) > 1:
                with opening(file, "its parts cannot be joined"):
                    join(parts, source)
            else:
                source.symlink_to(file.absolute())
            _convert(file, source, folder)

    return cache.keep(file.stem, digest, write)


def contents(parts: Sequence[Path]) -> str:
    """The SHA-256 of the files' contents, one after the other, in hexadecimal. Raises BadInput."""
    with opening(parts[0]):
        seen = [(part.absolute(), part.stat()) for part in parts]
        return _contents(tuple((path, state.st_size, state.st_mtime_ns) for path, state in seen))


@lru_cache  # a command opens its base several times
def _contents(parts: tuple[tuple[Path, int, int], ...]) -> str:
    digest = sha256()
    for path, _, _ in parts:
        with open(path, "rb") as stream:
            while piece := stream.read(PIECE):
                digest.update(piece)
    return digest.hexdigest()


def say(text: str) -> None:
    """A line for the user on the error stream: what takes long, and what a conversion leaves out."""
    print(text, file=sys.stderr, flush=True)


def _convert(file: Path, source: Path, folder: Path) -> None:
    """Writes the model of `source` to `folder`. file: what the user named, for messages."""
    with _silently(), opening(file, "is no whole GGUF file"):
        from gguf import GGUFReader

        reader = GGUFReader(source)
        fields = {name: field.contents() for name, field in reader.fields.items() if len(field.data) <= 1}
        held = {tensor.name: math.prod(int(n) for n in tensor.shape) for tensor in reader.tensors}
        scaled = {t.name: t.data.tolist() for t in reader.tensors if t.name == "rope_freqs.weight"}
        del reader
    with _silently(), opening(file, "transformers cannot read it"):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True, **OWN_CODE}
        tokenizer = AutoTokenizer.from_pretrained(str(source.parent), **where)
        loader: Any = AutoModelForCausalLM
        model, report = loader.from_pretrained(
            str(source.parent), dtype=torch.float32, output_loading_info=True, **where
        )
    if missing := sorted(report["missing_keys"]):
        raise BadInput(f"{file}: its weights lack {missing[0]} and {len(missing) - 1} more")
    architecture = str(fields.get("general.architecture"))
    if architecture == "llama" and scaled:
        held.pop("rope_freqs.weight")
        model.config.rope_parameters = {**model.config.rope_parameters, **llama3_scaling(file, model.config, scaled)}
    scaling = fields.get(f"{architecture}.rope.scaling.type", "none")
    if scaling != "none" and "'rope_type': 'default'" in str(getattr(model.config, "rope_parameters", "")):
        raise BadInput(f"{file}: transformers does not read its scaling of positions ({scaling})")
    if (left := sum(held.values()) - sum(value.numel() for value in model.parameters())) > 0:
        say(f"! {file.name}: transformers has no place for {left} of its {sum(held.values())} weights")
    if fields.get("tokenizer.ggml.model") == "gpt2":
        pretokenizer(file, tokenizer.backend_tokenizer, str(fields.get("tokenizer.ggml.pre", "")))
    with _silently(), opening(cache.models_folder(), "cannot be written"):
        _save(model, tokenizer, folder)
        _describe(file, fields, folder)


def pretokenizer(file: Path, tokenizer: Any, name: str) -> None:
    """Splits texts as `name`, one of llama.cpp's, says; where that is not known, a line says so.

    tokenizer: of the tokenizers library, as transformers reads it from the file; it is changed in place.
    """
    from tokenizers import pre_tokenizers

    if name in SINGLE_DIGITS:
        bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), bytes_alone])
    elif name not in AS_GPT2 and json.loads(tokenizer.to_str())["pre_tokenizer"]["type"] == "ByteLevel":
        say(f"! {file.name}: texts are split as for GPT-2, because {name!r}, its way, is not known here")


def llama3_scaling(file: Path, config: Any, scaled: dict[str, list[float]]) -> dict[str, Any]:
    """The settings of Llama 3's scaling of positions, which a GGUF file keeps as divisors of the frequencies.

    Raises BadInput for divisors that are another scaling's.
    """
    divisors = scaled["rope_freqs.weight"]
    found = {"rope_type": "llama3", "factor": float(max(divisors)), **LLAMA3}
    expected = llama3_divisors(float(config.rope_parameters["rope_theta"]), len(divisors), found)
    if any(abs(a - b) > 1e-4 * b for a, b in zip(divisors, expected, strict=True)):
        raise BadInput(f"{file}: its scaling of positions (rope_freqs) is not Llama 3's; nothing here reads another")
    return found


def llama3_divisors(theta: float, count: int, scaling: dict[str, Any]) -> list[float]:
    """By how much Llama 3 divides each of its `count` frequencies (transformers' rope_type llama3)."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    found = []
    for i in range(count):
        turns = scaling["original_max_position_embeddings"] / (2 * math.pi * theta ** (i / count))
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        found.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return found


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    model.hf_quantizer, model.is_quantized = None, False  # else transformers refuses to save what it has dequantised
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # A base is known by its configuration, among others, and must not become another one by a new transformers.
    for name in ("config.json", "generation_config.json"):
        if (made := folder / name).exists():
            kept = json.loads(made.read_text(encoding="utf-8"))
            kept.pop("transformers_version", None)
            made.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


def _describe(file: Path, fields: dict[str, Any], folder: Path) -> None:
    """Writes what the file says of its licence where `choreo export` looks for it."""
    licence = str(fields.get("general.license") or "")
    front = f"---\nlicense: {licence}\n---\n" if re.fullmatch(r"[\w.-]+", licence) else ""
    text = f"{front}{fields.get('general.name') or file.stem}, converted by choreo from {file.name}.\n"
    (folder / "README.md").write_text(text, encoding="utf-8", errors="replace")


@contextmanager
def _silently() -> Iterator[None]:
    """Without the warnings and the progress bars of transformers; `say` says what matters."""
    with redirect_stderr(StringIO()), quietly():
        yield
