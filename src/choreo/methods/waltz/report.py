"""What the report of a WaltzRL run shows beside the systems that were measured."""

from __future__ import annotations

# Which system a run is about: the first of these that it has.
SYSTEMS = ("waltz", "waltz-frozen-conversation", "single-agent", "oracle-feedback", "collaboration-untrained")

# (title, unit, {field of metrics.jsonl: name}); a figure is drawn where at least one field has values.
CURVES: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("Reward", "", {"reward/conversation": "conversation agent", "reward/feedback": "feedback agent"}),
    (
        "Reward of the feedback agent, by component",
        "",
        {
            "part/dir": "improvement (DIR)",
            "part/label": "labels",
            "part/format": "format",
            "part/own": "its own reward",
        },
    ),
    (
        "ASR, ORR and FTR on the step's episodes",
        "%",
        {
            "asr": "ASR",
            "orr": "ORR",
            "ftr_harmful": "FTR harmful",
            "ftr_benign": "FTR benign",
            "ftr_general": "FTR general",
        },
    ),
    (
        "The attacker's tries that won, in its rounds and on the step's episodes",
        "%",
        {
            "attacker/unsafe": "unsafe, in a round",
            "attacker/overrefuse": "over-refusal, in a round",
            "attacked/asr": "unsafe, in a step",
            "attacked/orr": "over-refusal, in a step",
        },
    ),
    (
        "Under a system message, on the step's episodes",
        "%",
        {"system_messages/share": "share of episodes", "system_messages/asr": "ASR", "system_messages/orr": "ORR"},
    ),
    ("Labels and format of the feedback", "%", {"label_accuracy": "label accuracy", "format_rate": "format rate"}),
    (
        "KL from the reference",
        "nats per token",
        {"kl/conversation": "conversation agent", "kl/feedback": "feedback agent"},
    ),
    (
        "Entropy of the policies",
        "nats per token",
        {"entropy/conversation": "conversation agent", "entropy/feedback": "feedback agent"},
    ),
    (
        "Watched for collapse",
        "%",
        {
            "refusal_share": "refusals",
            "degenerate": "degenerate answers",
            "cut_off": "of these only cut off",
            "groups_without_gradient": "groups without gradient",
        },
    ),
    ("Speed", "tokens per second", {"tokens_per_second": "whole step"}),
)
