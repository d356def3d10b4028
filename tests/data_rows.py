"""One made row of every published schema, and files of rows."""

from __future__ import annotations

import json
from pathlib import Path

# One made row of every schema, and (kind, part of the text) of what is read in it.
TALK = [
    {"role": "user", "content": "Is it a door?"},
    {"role": "assistant", "content": "Yes."},
    {"role": "user", "content": "And how do I open it?"},
]
TOLD = [{"from": "gpt" if turn["role"] == "assistant" else "human", "value": turn["content"]} for turn in TALK]
END = {"role": "assistant", "content": "Turn the knob."}
MADE = {
    "own-messages": ({"messages": TALK, "kind": "benign"}, [("benign", "open it")]),
    "own-conversation": ({"conversation": TALK, "kind": "harmful"}, [("harmful", "open it")]),
    "own-conversations": ({"conversations": TOLD, "kind": "general"}, [("general", "open it")]),
    "messages": ({"messages": TALK}, []),  # what a right answer does is not said
    "wildchat": ({"conversation": [*TALK, END], "turn": 2, "language": "English", "toxic": False}, []),
    "sharegpt": ({"id": "x", "conversations": [*TOLD, {"from": "gpt", "value": "Turn the knob."}]}, []),
    "hh-rlhf": ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}, []),
    "wildjailbreak": (
        {"vanilla": "", "adversarial": "Pretend to help", "completion": "", "data_type": "adversarial_benign"},
        [("benign", "Pretend")],
    ),
    "fortress": (
        {
            "ID": 1,
            "adversarial_prompt": "Break it",
            "benign_prompt": "Mend it",
            "rubric": [],
            "risk_domain": "x",
            "risk_subdomain": "y",
        },
        [("harmful", "Break"), ("benign", "Mend")],
    ),
    "xstest": (
        {"id": "1", "prompt": "How to kill a process?", "type": "homonyms", "label": "safe"},
        [("benign", "kill")],
    ),
    "harmbench": (
        {"Behavior": "Do it", "ContextString": "A story", "BehaviorID": "b"},
        [("harmful", "A story\n\n---")],
    ),
    "advbench": ({"goal": "Write it", "target": "Sure"}, [("harmful", "Write")]),
    "jailbreakbench-artifacts": (
        {"goal": "g", "prompt": "Attack", "response": "", "method": "GCG"},
        [("harmful", "Attack")],
    ),
    "jailbreakbench": ({"index": 1, "goal": "Defame", "behavior": "b", "category": "c"}, [("harmful", "Defame")]),
    "jailbreakbench-table": (
        {"Index": "1", "Goal": "Defame", "Target": "t", "Behavior": "b", "Category": "c"},
        [("harmful", "Defame")],
    ),
    "do-not-answer": ({"risk_area": "r", "question": "Where?"}, [("harmful", "Where")]),
    "coconot": (
        {"id": "1", "category": "Requests with safety concerns", "subcategory": "s", "prompt": "Insult"},
        [("harmful", "Insult")],
    ),
    "cyberseceval-frr": ({"mutated_prompt": "Scan", "is_malicious": False, "attack_type": "a"}, [("benign", "Scan")]),
    "cyberseceval-injection": (
        {"test_case_prompt": "Rules", "user_input": "Ignore", "injection_type": "direct", "judge_question": "?"},
        [("harmful", "Rules\n\nIgnore")],
    ),
    "ifeval": ({"key": 1, "prompt": "No commas", "instruction_id_list": [], "kwargs": []}, [("general", "commas")]),
    "mmlu": ({"question": "2+2?", "subject": "maths", "choices": ["3", "4"], "answer": 1}, [("general", "B. 4")]),
    "truthfulqa": ({"question": "Is it?", "best_answer": "No", "category": "c"}, [("general", "Is it")]),
    "truthfulqa-table": (
        {"Type": "t", "Category": "c", "Question": "Is it?", "Best Answer": "No"},
        [("general", "Is it")],
    ),
    "alpaca": ({"instruction": "Sort", "input": "b a"}, [("general", "Sort\n\nb a")]),
    "own": ({"prompt": "Hi", "kind": "general", "language": "de"}, [("general", "Hi")]),
    "or-bench": ({"prompt": "Knives?", "category": "violence"}, [("benign", "Knives")]),
}


def write(file: Path, *made: object) -> Path:
    file.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in made), encoding="utf-8")
    return file
