"""The work that both sides do, fixed before either starts: a model folder, sizes, and texts in a JSON file.

policy    WARM_UP + steps batches of `prompts` contexts, each answered `group` times with exactly `new_tokens` tokens
pairs     as many batches of `pairs` (context, chosen, rejected)
contexts  of WaltzRL, on the microworld alone: per agent, as many batches of the states that its own training visits

TRL is given contexts as text. It reads the ids there that choreo's chat format makes; sampled answers inside the
states of WaltzRL, which a tokenizer need not spell as the model did, may come out a little longer or shorter.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

WARM_UP = 2
BETA, DPO_BETA, LEARNING_RATE, CLIP = 0.01, 0.1, 1e-4, 0.2
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """Of the work on one base. rank: of LoRA with alpha twice that on both sides; 0 trains all weights."""

    base: str
    steps: int
    prompts: int
    group: int
    new_tokens: int
    pairs: int
    rank: int

    def weights(self) -> dict[str, Any]:
        """As `Team.load` takes them."""
        return {"train": "lora", "rank": self.rank, "alpha": 2.0 * self.rank} if self.rank else {"train": "full"}


SIZES = {
    "micro-llama": Sizes("micro-llama", steps=10, prompts=24, group=8, new_tokens=32, pairs=64, rank=0),
    "smollm2": Sizes("smollm2", steps=5, prompts=4, group=4, new_tokens=48, pairs=8, rank=8),
}


def reward(ids: list[int]) -> float:
    """Any number that differs within a group, and costs nothing."""
    return sum(i % 2 for i in ids) / len(ids)


def overrides(folder: str, steps: int) -> list[str]:
    """The settings of the WaltzRL run that is timed: full weights as TRL trains them, both agents from the start."""
    return [
        f'model.base="{folder}"',
        'model.train="full"',
        "stages.stage1_share=0",
        f"learning.steps={WARM_UP + steps}",
        f"learning.lr={LEARNING_RATE}",
        f"learning.beta={BETA}",
        f"seed={SEED}",
        f"checkpoint_every={WARM_UP + steps}",
    ]


def prepare(folder: Path, base: str) -> dict[str, Any]:
    """Writes `folder`/model, when no base is shipped, and `folder`/work.json. Returns what the latter holds."""
    from choreo.errors import BadInput
    from choreo.models.load import load_chat
    from choreo.models.resolve import base_folder

    sizes = SIZES[base]
    try:
        place, shipped = base_folder(base), True
    except BadInput:
        if base == "smollm2":
            raise
        place, shipped = random_base(folder / "model", base), False
    chat = load_chat(place)
    batches = WARM_UP + sizes.steps
    half = batches * sizes.pairs
    make = english if base == "smollm2" else documents
    answers = make(random.Random(SEED), max(batches * sizes.prompts, 2 * half))
    contexts = [prompt for prompt, _ in answers[: batches * sizes.prompts]]
    # chosen: the prompt's own answer; rejected: another prompt's
    pairs = [(answers[i][0], answers[i][1], answers[half + i][1]) for i in range(half)]
    work = {
        "model": str(place),
        "shipped": shipped,
        "sizes": asdict(sizes),
        "policy": contexts,
        "pairs": pairs,
        "contexts": {} if sizes.rank else waltz_contexts(chat, str(place), sizes.steps),
    }
    for text in [prompt for prompt, _ in answers]:
        context = chat.answer_context(chat.encode(text))
        assert encode(chat, spell(chat, context)) == context, f"not the same ids again: {text!r}"
    (folder / "work.json").write_text(json.dumps(work), encoding="utf-8")
    return work


def random_base(folder: Path, base: str) -> Path:
    """A model of the shipped base's shape with random weights: as fast, and as good for timing."""
    from choreo.environments.microworld.pretrain import make_model, make_tokenizer
    from choreo.models.chat import Chat

    chat = Chat(make_tokenizer(SEED, samples=4000))
    make_model(base, chat, SEED).save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


def documents(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(prompt, answer) texts of the microworld."""
    from choreo.environments.microworld.documents import texts

    found = []
    while len(found) < count:
        sort, before, target = texts(rng)
        if sort == "answer":
            found.append((before[0], target))
    return found


def english(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(prompt, answer) texts of the labelled answers that ship, as often as it takes."""
    from choreo.data.answers import load

    rows = [(row.prompt.text, row.answer) for row in load("choreo:english/answers.jsonl").rows]
    rng.shuffle(rows)
    return [rows[i % len(rows)] for i in range(count)]


def waltz_contexts(chat: Any, base: str, steps: int) -> dict[str, list[str]]:
    """What the agents of the timed WaltzRL run are asked, from the untrained pair: the first answer's state p and
    the review's (p, c_0), one of each per prompt, step after step. TRL then samples each `samples` times."""
    from choreo import config
    from choreo.environments.microworld.world import World
    from choreo.game.play import play
    from choreo.methods.waltz.agents import Pair
    from choreo.methods.waltz.trainer import draw
    from choreo.types import CONVERSATION, FEEDBACK

    recipe = config.load("waltz", overrides(base, steps))
    pair, prompts = Pair(recipe), World(recipe.world).training()
    states: dict[str, list[str]] = {CONVERSATION: [], FEEDBACK: []}
    for step in range(1, WARM_UP + steps + 1):
        first = [(prompt, 0) for prompt, sample in draw(prompts, recipe.learning, SEED, step) if sample == 0]
        games = play(
            pair.agents,
            first,
            replace(recipe.protocol.limits, rounds=0),
            key=(SEED, step),
        )
        for game in games:
            prompt, answer = chat.encode(game.prompt.text), game.answers[0].ids
            states[CONVERSATION].append(spell(chat, game.answers[0].context))
            states[FEEDBACK].append(spell(chat, chat.review_context(prompt, answer)))
    return states


def spell(chat: Any, ids: tuple[int, ...]) -> str:
    """The text of a context, role tokens included."""
    return chat.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def encode(chat: Any, text: str) -> tuple[int, ...]:
    """As a trainer that is given text does it: role tokens are read as such."""
    return tuple(chat.tokenizer(text)["input_ids"])


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), sys.argv[2])
