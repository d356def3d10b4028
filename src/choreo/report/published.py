"""Published figures of WaltzRL (arXiv 2510.08240, Llama-3.1-8B-Instruct), as fractions in [0, 1].

They are averages over public data sets, judged by a language model. They stand beside choreo's figures for
orientation: another model, other prompts and another judge made them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Published:
    """One row of the paper's main table: ASR and ORR averaged over its data sets, and their F1."""

    label: str
    asr: float
    orr: float
    f1: float


# Keyed by the system names of summary.json, in the paper's order.
SYSTEMS = {
    "base": Published("base model", 0.265, 0.257, 0.739),
    "base+guard": Published("base + blocking safeguard", 0.090, 0.298, 0.793),
    "single-agent": Published("single-agent RL", 0.122, 0.086, 0.896),
    "single-agent+guard": Published("single-agent RL + safeguard", 0.053, 0.149, 0.896),
    "collaboration-untrained": Published("collaboration, untrained", 0.134, 0.127, 0.870),
    "oracle-feedback": Published("true labels as template feedback", 0.070, 0.166, 0.879),
    "waltz-frozen-conversation": Published("WaltzRL, conversation agent frozen", 0.051, 0.142, 0.901),
    "waltz": Published("WaltzRL", 0.037, 0.076, 0.943),
}

# Single data sets, before (the base, or untrained collaboration where feedback is measured) and after WaltzRL.
CHANGES = {
    "asr": ("WildJailbreak", 0.390, 0.046),
    "orr": ("OR-Bench", 0.453, 0.099),
    "f1": ("average", 0.739, 0.943),
    "ftr": ("AlpacaEval", 0.426, 0.067),
    "label_accuracy": ("WildJailbreak", 0.314, 0.701),
}
