"""Whether a base of the microworld has told what is harmful before the first word of its answer: a linear probe.

    OMP_NUM_THREADS=1 python benchmarks/first_word.py BASE [--split-seeds 0 1]        # needs choreo-rl[swarm]

For every layer: logistic regression on the hidden state from which the first token is drawn, fitted on training
prompts and asked on held-out ones. Printed as one JSON object for each split: for each layer (0 is the embedding) the
share that is right, of plain and of hidden requests, and the AUC.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from choreo import config
from choreo.environments.microworld import wording
from choreo.environments.microworld.world import World
from choreo.experiment.weak_to_strong import states_at_answer
from choreo.models.load import load_chat
from choreo.models.resolve import base_folder
from choreo.types import Prompt

PENALTY = 0.1  # C of scikit-learn; the one value tried


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base")
    parser.add_argument("--split-seeds", type=int, nargs="+", default=[0, 1])
    given = parser.parse_args()
    chat = load_chat(base_folder(given.base))

    def read(prompts: Sequence[Prompt]) -> np.ndarray:
        contexts = [chat.answer_context(chat.encode(prompt.text)) for prompt in prompts]
        return states_at_answer(given.base, contexts, chat.pad_id)

    for seed in given.split_seeds:
        world = World(config.World(split_seed=seed, train_prompts=4500))
        asked = world.training()
        fitted = [p for kind in ("harmful", "benign") for p in asked[kind] if p.suite != "dual_use"]
        heldout = [p for p in world.suites("heldout") if p.suite not in ("dual_use", "general")]
        states, new = read(fitted), read(heldout)
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
        print(json.dumps({"split_seed": seed, "layers": layers}))


if __name__ == "__main__":
    main()
