"""Models by their names on the Hugging Face hub. A model in the local cache is taken from there, without a network."""

from __future__ import annotations

import json
import re
from hashlib import blake2b
from pathlib import Path

from choreo.errors import BadInput, Unavailable, opening
from choreo.models import cache

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
# The files that transformers reads. Weights as safetensors only, because the older format runs code from the file.
_WEIGHTS = "*.safetensors"
_WANTED = ("*.json", "*.jinja", "*.model", "*.txt", _WEIGHTS)
# Any of these files is a tokenizer: of the tokenizers library, of SentencePiece, or of byte-level BPE in two files.
_TOKENIZERS = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "tekken.json")
_UNWANTED = ("original/*", "consolidated*", "onnx/*")
PIECE = 2**20  # bytes of a file that a fingerprint reads at once


def is_name(name: str) -> bool:
    """Whether `name` has the form owner/name, which the path of a folder may have too."""
    return bool(_NAME.fullmatch(name)) and not name.startswith(".")


def is_whole(folder: Path) -> bool:
    """Whether a model's folder has all weights and a tokenizer. A download may have been stopped between two files.

    Weights in parts need every part that the index names. A link into the cache whose file is missing does not count.
    """
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            parts = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError):
            return False
    else:
        parts = {"model.safetensors"}
    return has_tokenizer(folder) and all((folder / part).is_file() for part in parts)


def has_tokenizer(folder: Path) -> bool:
    """Whether the folder has the files of a tokenizer."""
    return any(file.is_file() for pattern in _TOKENIZERS for file in folder.glob(pattern))


def snapshot(name: str, *, config_only: bool = False, weights: bool = True) -> Path:
    """The folder of model `name` in the local cache. It is downloaded from the hub if it is not there yet.

    config_only: only the configuration is needed. weights: whether they are, too. Raises BadInput, with a line that
    says how to get the model, where it is not in the cache and cannot be downloaded: offline (HF_HUB_OFFLINE), unknown,
    or closed to this account.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    wanted = ["config.json"] if config_only else [one for one in _WANTED if weights or one != _WEIGHTS]
    whole = is_whole if weights else has_tokenizer
    try:
        here = Path(snapshot_download(name, local_files_only=True, allow_patterns=wanted))
        if (here / "config.json").is_file() and (config_only or whole(here)):
            return here
    except (OSError, ValueError):  # not in the cache, or not a valid name
        pass
    get = f"get it with `hf download {name}` where there is a network, or name a folder"
    if is_offline():
        raise BadInput(f"model {name!r}: not here, and the hub is not asked (HF_HUB_OFFLINE); {get}")
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=list(_UNWANTED)))
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        closed = "no such model, or one that this account may not read (`hf auth login`)"
        why = closed if status in (401, 403, 404) else status
        raise BadInput(f"model {name!r}: not here, and the hub says: {why}") from None
    except Exception:  # a network can raise anything
        raise Unavailable(f"model {name!r}: not here, and the hub cannot be reached; {get}") from None


def is_offline() -> bool:
    """Whether the user's environment forbids to fetch models (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants

    return bool(constants.is_offline_mode())


def fingerprint(base: Path, *, weights: bool = True) -> str:
    """16 hex digits that change when a base changes: its configuration, its tokenizer, or a file of weights, unless
    `weights` is false.

    A converted model has those of what it was converted from: another version of transformers writes other files of the
    same model.
    Of a file of more than 64 MiB only the size and 64 pieces spread over it are read, since reading an 8B model takes
    minutes. Raises BadInput for a file that cannot be read.
    """
    if converted := cache.source(base):
        return converted[:16]
    digest = blake2b(digest_size=8)
    for file in sorted(base.glob("*")):
        named = file.name in ("config.json", "tokenizer.json", "chat_template.jinja")
        if named or (weights and file.suffix in (".safetensors", ".bin")):
            with opening(file), open(file, "rb") as stream:
                size = file.stat().st_size
                digest.update(f"{file.name}/{size}/".encode())
                for place in range(0, size, max(PIECE, size // 64)):
                    stream.seek(place)
                    digest.update(stream.read(PIECE))
    return digest.hexdigest()
