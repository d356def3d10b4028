"""Peak memory of one update at vocabularies of 8k and 128k, the same model otherwise and the same tokens.

    python benchmarks/memory.py [--json]

Each vocabulary has a process of its own, on the CPU in float32. `added` is how far resident memory rises above where it
stood before the update, `resident` where it stood: weights of the embedding and the output layer are there whatever is
done about logits. `planned` is what `choreo plan` foresees for `added`. Linux only: it resets the kernel's mark.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

VOCABULARIES = (8192, 131072)
SEQUENCES, CONTEXT, ANSWER = 16, 64, 64
MIB = 2**20


def measure(vocabulary: int) -> dict[str, float]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from choreo.config.common import Weights
    from choreo.engine.agent import Team
    from choreo.engine.learner import Learner
    from choreo.engine.losses import sft_loss
    from choreo.experiment.sizing import Model, updating
    from choreo.types import Sample

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
        team = Team.load(folder, ("conversation",), rank=8)
        how = Weights(rank=8)
        planned = updating(Model.read(folder), how, SEQUENCES * (CONTEXT + ANSWER))
    rng = random.Random(0)

    def words(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(8192) for _ in range(n))

    def samples(n: int) -> list[Sample]:
        return [Sample("conversation", words(CONTEXT), words(ANSWER), (), "", 0.0) for _ in range(n)]

    learner = Learner(team, "conversation", lr=1e-4, micro_tokens=SEQUENCES * (CONTEXT + ANSWER))
    learner.update(samples(1), sft_loss)  # what is allocated once
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    learner.update(samples(SEQUENCES), sft_loss)
    return {"vocabulary": vocabulary, "resident": before, "added": resident("VmHWM") - before, "planned": planned / MIB}


def resident(name: str) -> float:
    """MiB, of this process: VmRSS now, VmHWM the highest since the mark was reset."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith(f"{name}:"))
    return int(line.split()[1]) / 1024


def main() -> int:
    if sys.argv[1:2] == ["--vocabulary"]:
        print(json.dumps(measure(int(sys.argv[2]))))
        return 0
    rows: list[dict[str, Any]] = []
    for vocabulary in VOCABULARIES:
        command = [sys.executable, __file__, "--vocabulary", str(vocabulary)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    small, large = rows
    ratio = large["added"] / small["added"]
    if "--json" in sys.argv:
        print(json.dumps({"rows": rows, "ratio": ratio}))
        return 0
    for row in rows:
        print(
            f"vocabulary {row['vocabulary']:>7,}: {row['resident']:,.0f} MiB before, {row['added']:,.0f} MiB added "
            f"({row['planned']:,.0f} planned)"
        )
    print(f"ratio of what is added: {ratio:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
