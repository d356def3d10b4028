"""What is lost between a GGUF model as llama.cpp runs it and the float32 model that choreo makes of it.

    python benchmarks/quantisation.py FILE.gguf --llama PYTHON [--text FILE] [--chunks 20] [--context 512]

PYTHON is the interpreter of an environment with cyllama (`pip install cyllama numpy`). Both read the same tokens of a
text, by default the pages of docs/ one after the other, in chunks of --context; the second half of each counts, as in
llama-perplexity. Prints both perplexities, the difference token by token, and whether both tokenizers give the same
ids. llama.cpp computes with quantised weights and activations and keeps keys and values in float16.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import tempfile
from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from choreo.models import model_folder
from choreo.models.resolve import base_folder

ROOT = Path(__file__).resolve().parents[1]


@torch.inference_mode()
def logprobs(folder: Path, chunks: list[list[int]]) -> torch.Tensor:
    """float64 [tokens]: of the second half of every chunk, by the model in `folder` in float32."""
    model = model_folder.load(folder, torch.float32)
    found = []
    for chunk in chunks:
        ids = torch.tensor([chunk])
        half = len(chunk) // 2
        rows = model(input_ids=ids, use_cache=False).logits[0, half - 1 : -1].double().log_softmax(-1)
        found.append(rows.gather(1, ids[0, half:, None])[:, 0])
    return torch.cat(found)


def mean(values: torch.Tensor) -> tuple[float, float]:
    """The mean, and its standard error over tokens."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a GGUF file")
    parser.add_argument("--llama", required=True, metavar="PYTHON", help="an interpreter with cyllama")
    parser.add_argument("--text", type=Path, help="a file (default: the pages of docs/)")
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--context", type=int, default=512, help="tokens of a chunk")
    args = parser.parse_args()
    disable_progress_bar()
    pages = [args.text] if args.text else sorted((ROOT / "docs").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as kept:
        kept.write(text)
        kept.flush()
        side = [args.llama, ROOT / "benchmarks" / "llama_side.py", args.file, kept.name]
        numbers = ["--chunks", str(args.chunks), "--context", str(args.context)]
        done = subprocess.run([*side, *numbers, "--threads", str(torch.get_num_threads())], stdout=subprocess.PIPE)
    if done.returncode or not (theirs := json.loads(done.stdout))["chunks"]:
        raise SystemExit("llama.cpp gave nothing: is the text shorter than a chunk?")
    folder = base_folder(args.file)
    # As on llama.cpp's side, special tokens that the text spells are text.
    ids = model_folder.tokenizer(folder).encode(text, add_special_tokens=False, split_special_tokens=True)
    ours = logprobs(folder, theirs["chunks"])
    llama = torch.tensor(theirs["logprobs"], dtype=torch.float64).flatten()
    print(f"{len(ours)} tokens of {len(theirs['chunks'])} chunks of {args.context}, ggml {theirs['version']}")
    for name, found in (("as llama.cpp runs it", llama), ("as choreo loads it", ours)):
        nats, error = mean(-found)
        print(f"perplexity {name}: {math.exp(nats):.3f} ± {math.exp(nats) * error:.3f}")
    nats, error = mean(llama - ours)
    print(f"difference (llama.cpp − choreo): {nats:+.5f} ± {error:.5f} nats a token, ", end="")
    print(f"{float((ours - llama).abs().mean()):.4f} in size on average")
    print(f"ids of the whole text: {'the same' if ids == theirs['ids'] else 'OTHER'} ({len(ids)} tokens)")


if __name__ == "__main__":
    main()
