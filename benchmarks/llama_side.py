"""llama.cpp's side of quantisation.py: a text in its tokens, and their log-probabilities by the quantised model.

    PYTHON benchmarks/llama_side.py FILE.gguf TEXT --context 512 --chunks 20 --threads 1

PYTHON has cyllama (0.2.18), which brings llama.cpp, and numpy; choreo is not needed. Prints one JSON object. A chunk is
read as llama-perplexity reads it: alone, with BOS as its first token where the model wants one, and only its second
half counts.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from cyllama.llama import llama_cpp


class Model(llama_cpp.LlamaModel):
    """With what `get_logits_ith` of cyllama 0.2.18 looks for in vain."""

    @property
    def n_vocab(self) -> int:
        return self.get_vocab().n_vocab


def logprobs(context: llama_cpp.LlamaContext, chunk: list[int]) -> list[float]:
    """Of the second half of `chunk`, computed in float64 from llama.cpp's float32 logits."""
    half = len(chunk) // 2
    context.kv_cache_clear()
    batch = llama_cpp.LlamaBatch(n_tokens=len(chunk), embd=0, n_seq_max=1)
    for i, token in enumerate(chunk):
        batch.add(token, i, [0], i >= half - 1)
    context.decode(batch)
    found = []
    for i in range(half, len(chunk)):
        row = np.asarray(context.get_logits_ith(i - 1), dtype=np.float64)
        top = row.max()
        found.append(float(row[chunk[i]] - top - np.log(np.exp(row - top).sum())))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("text", type=Path)
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    n = args.context
    llama_cpp.disable_logging()
    model = Model(args.file)
    settings = llama_cpp.LlamaContextParams()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = n
    settings.n_threads = settings.n_threads_batch = args.threads
    context, vocabulary = llama_cpp.LlamaContext(model, settings), model.get_vocab()
    ids = list(vocabulary.tokenize(args.text.read_text(encoding="utf-8"), False, False))
    chunks = [ids[at : at + n] for at in range(0, min(len(ids) - n + 1, args.chunks * n), n)]
    if vocabulary.get_add_bos():
        chunks = [[vocabulary.token_bos(), *chunk[1:]] for chunk in chunks]
    found = [logprobs(context, chunk) for chunk in chunks]
    print(json.dumps({"version": llama_cpp.ggml_version(), "ids": ids, "chunks": chunks, "logprobs": found}))


if __name__ == "__main__":
    main()
