"""The work that all sides do, fixed before any starts: a model folder, sizes, and texts in a JSON file.

policy    WARM_UP + steps batches of `prompts` contexts, each answered `group` times with exactly `new_tokens` tokens,
          by one agent, or by each of two (joint)
pairs     as many batches of `pairs` (context, chosen, rejected)
contexts  of WaltzRL, on the microworld alone: per agent, as many batches of the states that its own training visits

A peer is given contexts as text. It reads the ids there that choreo's chat format makes; sampled answers inside the
states of WaltzRL, which a tokenizer need not spell as the model did, may come out a little longer or shorter. Where the
model is random and has more ids than the tokenizer, reviews are of written answers, which are spelt as they are.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

WARM_UP = 2
BETA, DPO_BETA, LEARNING_RATE, CLIP = 0.01, 0.1, 1e-4, 0.2
SEED = 0


@dataclass(frozen=True)
class Sizes:
    """Of the work on one base. rank: of LoRA with alpha twice that on both sides; 0 trains all weights.

    parts: micro-batches of a step on TRL's side; micro_tokens: of one on choreo's.
    waltz: further settings of the WaltzRL run that is timed; None times none.
    shape: of a Llama with random weights in `dtype` and the tokenizer of micro-llama; None is a base by its name.
    joined: how many answers are put together as one, where they are English.
    """

    base: str
    steps: int
    prompts: int
    group: int
    new_tokens: int
    pairs: int
    rank: int
    device: str = "cpu"
    dtype: str = "float32"
    recompute: bool = False
    parts: int = 1
    micro_tokens: int = 8192
    waltz: tuple[str, ...] | None = ()
    shape: Mapping[str, Any] | None = None
    joined: int = 1

    def weights(self) -> dict[str, Any]:
        """As `Team.load` takes them, and `[model]` of a recipe."""
        how = {"dtype": self.dtype, "device": self.device, "recompute": self.recompute}
        if not self.rank:
            return {"train": "full", **how}
        return {"train": "lora", "rank": self.rank, "alpha": 2.0 * self.rank, **how}


def llama(width: int, mlp: int, layers: int, heads: int, keys: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    """The fields of a LlamaConfig."""
    return {
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
    }


def constrained(answer: int, review: int, prompts: int, *more: str) -> tuple[str, ...]:
    """Settings of a WaltzRL run on a random model. Its reviews are held to their grammar: free ones never parse, and
    no answer would be revised."""
    return (
        f"protocol.answer_tokens={answer}",
        f"protocol.feedback_tokens={review}",
        "protocol.constrained=true",
        "protocol.reasoning_tokens=16",
        f"learning.prompts={prompts}",
        *more,
    )


SIZES = {
    "micro-llama": Sizes("micro-llama", steps=10, prompts=24, group=8, new_tokens=32, pairs=64, rank=0),
    "smollm2": Sizes("smollm2", steps=5, prompts=4, group=4, new_tokens=48, pairs=8, rank=8, waltz=None),
    # Of benchmarks/gpu. The shapes are those of Llama 3.2 1B and Llama 3.1 8B.
    "toy": Sizes(
        "toy",
        steps=2,
        prompts=2,
        group=2,
        new_tokens=8,
        pairs=2,
        rank=4,
        dtype="bfloat16",
        recompute=True,
        parts=2,
        micro_tokens=128,
        waltz=constrained(8, 96, 3, "world.train_prompts=60", "world.heldout_prompts=3"),
        shape=llama(64, 128, 2, 4, 2, 4096, tied=True),
    ),
    "llama-1b": Sizes(
        "llama-1b",
        steps=5,
        prompts=16,
        group=8,
        new_tokens=256,
        pairs=32,
        rank=16,
        dtype="bfloat16",
        parts=4,
        waltz=constrained(256, 128, 32),
        shape=llama(2048, 8192, 16, 32, 8, 128256, tied=True),
        joined=4,
    ),
    "llama-8b": Sizes(
        "llama-8b",
        steps=5,
        prompts=8,
        group=8,
        new_tokens=256,
        pairs=16,
        rank=16,
        dtype="bfloat16",
        recompute=True,
        parts=2,
        waltz=constrained(256, 128, 16),
        shape=llama(4096, 14336, 32, 32, 8, 128256, tied=False),
        joined=4,
    ),
}


def reward(ids: list[int]) -> float:
    """Any number that differs within a group, and costs nothing."""
    return sum(i % 2 for i in ids) / len(ids)


def overrides(folder: str, sizes: Sizes) -> list[str]:
    """The settings of the WaltzRL run that is timed: the weights that TRL trains, both agents from the start."""
    batches = WARM_UP + sizes.steps
    return [
        f'model.base="{folder}"',
        *(f"model.{name}={json.dumps(value)}" for name, value in sizes.weights().items()),
        "stages.stage1_share=0",
        f"learning.steps={batches}",
        f"learning.lr={LEARNING_RATE}",
        f"learning.beta={BETA}",
        f"learning.micro_tokens={sizes.micro_tokens}",
        f"seed={SEED}",
        f"checkpoint_every={batches}",
        *(sizes.waltz or ()),
    ]


def prepare(folder: Path, base: str, **changed: Any) -> dict[str, Any]:
    """Writes `folder`/model, when no base is shipped, and `folder`/work.json. Returns what the latter holds.

    changed: of the base's `Sizes`.
    """
    from choreo.errors import BadInput
    from choreo.models.load import load_chat
    from choreo.models.resolve import base_folder

    sizes = replace(SIZES[base], **changed)
    shipped = sizes.shape is None
    try:
        place = base_folder(base) if sizes.shape is None else random_llama(folder / "model", sizes)
    except BadInput:
        if base == "smollm2":
            raise
        place, shipped = random_base(folder / "model", base), False
    chat = load_chat(place)
    batches = WARM_UP + sizes.steps
    half = batches * sizes.pairs
    make = documents if base == "micro-llama" else english
    answers = make(random.Random(SEED), sizes.joined * max(batches * sizes.prompts, 2 * half))
    answers = joined(answers, sizes.joined)
    contexts = [prompt for prompt, _ in answers[: batches * sizes.prompts]]
    # chosen: the prompt's own answer; rejected: another prompt's
    pairs = [(answers[i][0], answers[i][1], answers[half + i][1]) for i in range(half)]
    work = {
        "model": str(place),
        "shipped": shipped,
        "sizes": asdict(sizes),
        "policy": contexts,
        "pairs": pairs,
        "contexts": {} if sizes.waltz is None else waltz_contexts(chat, str(place), sizes),
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


def random_llama(folder: Path, sizes: Sizes) -> Path:
    """A Llama of `sizes.shape`, made on its device. It has more ids than its tokenizer, whose texts are short."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from choreo.models.load import load_chat
    from choreo.models.resolve import base_folder

    chat = load_chat(base_folder("micro-llama"))
    ends = {"pad_token_id": chat.pad_id, "bos_token_id": None, "eos_token_id": chat.end_id}
    torch.manual_seed(SEED)
    with torch.device(sizes.device):
        model = AutoModelForCausalLM.from_config(LlamaConfig(**sizes.shape, **ends), dtype=getattr(torch, sizes.dtype))
    model.save_pretrained(folder)
    chat.tokenizer.save_pretrained(folder)
    return folder


def documents(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(prompt, answer) texts of the microworld."""
    from choreo.environments.microworld.documents import texts
    from choreo.environments.microworld.writers import COINS

    found = []
    while len(found) < count:
        sort, before, target = texts(rng, COINS)
        if sort == "answer":
            found.append((before[0], target))
    return found


def english(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(prompt, answer) texts of the labelled answers that ship, as often as it takes."""
    from choreo.data.answers import load

    rows = [(row.prompt.text, row.answer) for row in load("choreo:english/answers.jsonl").rows]
    rng.shuffle(rows)
    return [rows[i % len(rows)] for i in range(count)]


def joined(answers: list[tuple[str, str]], count: int) -> list[tuple[str, str]]:
    """`count` answers together are one, to the first one's prompt."""
    groups = [answers[i : i + count] for i in range(0, len(answers), count)]
    return [(group[0][0], " ".join(text for _, text in group)) for group in groups]


def waltz_contexts(chat: Any, base: str, sizes: Sizes) -> dict[str, list[str]]:
    """What the agents of the timed WaltzRL run are asked: the first answer's state p and the review's (p, c_0), one of
    each per prompt, step after step. c_0 is the untrained pair's, or as long and in English where the model's shape is
    given. A peer then samples each `samples` times."""
    from choreo import config
    from choreo.environments.microworld.world import World
    from choreo.game.play import play
    from choreo.methods.waltz.agents import Pair
    from choreo.methods.waltz.batches import draw
    from choreo.types import CONVERSATION, FEEDBACK

    recipe = config.load("waltz", overrides(base, sizes))
    prompts = World(recipe.world).training()
    states: dict[str, list[str]] = {CONVERSATION: [], FEEDBACK: []}
    pair = None if sizes.shape else Pair(recipe)
    for step in range(1, WARM_UP + sizes.steps + 1):
        first = [(prompt, 0) for prompt, sample in draw(prompts, recipe.learning, SEED, step) if sample == 0]
        if pair is None:
            for one, _ in first:
                prompt = chat.encode(one.text)
                states[CONVERSATION].append(spell(chat, chat.answer_context(prompt)))
                states[FEEDBACK].append(review_state(chat, prompt, recipe.protocol.answer_tokens, (step, one.id)))
            continue
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


def review_state(chat: Any, prompt: tuple[int, ...], tokens: int, key: tuple[int, str]) -> str:
    """The text of a review's context, whose answer has `tokens` ids of English that are read again as they are."""
    rng = random.Random(f"{SEED}/{key}")
    while True:
        ((_, text),) = joined(english(rng, 16), 16)
        context = chat.review_context(prompt, chat.encode(text)[:tokens])
        if encode(chat, spelt := spell(chat, context)) == context:
            return spelt


def spell(chat: Any, ids: tuple[int, ...]) -> str:
    """The text of a context, role tokens included."""
    return chat.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def spelled(work: Mapping[str, Any], prompts: list[str]) -> list[str]:
    """Each prompt as the text of the context that choreo's chat format makes of it."""
    from choreo.models.load import load_chat

    chat = load_chat(work["model"])
    return [spell(chat, chat.answer_context(chat.encode(text))) for text in prompts]


def encode(chat: Any, text: str) -> tuple[int, ...]:
    """As a trainer that is given text does it: role tokens are read as such."""
    return tuple(chat.tokenizer(text)["input_ids"])


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), sys.argv[2])
