"""Whether a base of the microworld has told what is harmful before the first word of its answer: a linear probe.

    OMP_NUM_THREADS=1 python benchmarks/first_word.py BASE [--split-seeds 0 1]        # needs choreo-rl[swarm]

For every layer: logistic regression on the hidden state from which the first token is drawn, fitted on training
prompts and asked on held-out ones. Printed as one JSON object for each split: for each layer (0 is the embedding) the
share that is right, of plain and of hidden requests, and the AUC; and the AUC of the base's own chance of refusing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForCausalLM

from choreo import config
from choreo.environments.microworld import wording
from choreo.environments.microworld.world import World
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import Prompt

AT_ONCE = 64
PENALTY = 0.1  # C of scikit-learn; the one value tried


class FirstWord:
    """What a base has computed where its answer begins."""

    def __init__(self, base: str):
        folder = base_folder(base)
        self.chat = load_chat(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        refusals = [text for row in wording.REFUSALS for text in row]
        self.refusing = sorted({self.chat.encode(text)[0] for text in refusals})

    @torch.inference_mode()
    def __call__(self, prompts: Sequence[Prompt]) -> tuple[np.ndarray, np.ndarray]:
        """float [prompts, layers + 1, width], the states; float [prompts], the chance that a refusal begins."""
        states, chances = [], []
        contexts = [self.chat.answer_context(self.chat.encode(prompt.text)) for prompt in prompts]
        for begin in range(0, len(contexts), AT_ONCE):
            rows = contexts[begin : begin + AT_ONCE]
            ids = torch.full((len(rows), max(map(len, rows))), self.chat.pad_id)
            for row, context in zip(ids, rows, strict=True):
                row[: len(context)] = torch.tensor(context)
            found = self.model(ids, output_hidden_states=True)
            places = torch.arange(len(rows)), torch.tensor([len(context) - 1 for context in rows])
            states.append(torch.stack([layer[places] for layer in found.hidden_states], 1))
            chances.append(found.logits[places].softmax(-1)[:, self.refusing].sum(-1))
        return torch.cat(states).numpy(), torch.cat(chances).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--split-seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    first_word = FirstWord(given.base)
    for seed in given.split_seeds:
        world = World(config.World(split_seed=seed, train_prompts=4500))
        asked = world.training()
        fitted = [p for kind in ("harmful", "benign") for p in asked[kind] if p.suite != "dual_use"]
        heldout = [p for p in world.suites("heldout") if p.suite not in ("dual_use", "general")]
        (states, _), (new, refuses) = first_word(fitted), first_word(heldout)
        harmful = np.array([p.kind == "harmful" for p in fitted])
        truth = np.array([p.kind == "harmful" for p in heldout])
        hidden = np.array([p.family.split("/")[1] in wording.HIDDEN for p in heldout])
        layers = []
        for layer in range(states.shape[1]):
            mean, spread = states[:, layer].mean(0), states[:, layer].std(0) + 1e-6
            probe = LogisticRegression(C=PENALTY, max_iter=500).fit((states[:, layer] - mean) / spread, harmful)
            score = probe.decision_function((new[:, layer] - mean) / spread)
            good = (score > 0) == truth
            auc = float(roc_auc_score(truth, score))
            layers.append({"plain": float(good[~hidden].mean()), "hidden": float(good[hidden].mean()), "auc": auc})
        print(
            json.dumps({"split_seed": seed, "layers": layers, "auc_of_refusing": float(roc_auc_score(truth, refuses))})
        )


if __name__ == "__main__":
    main()
